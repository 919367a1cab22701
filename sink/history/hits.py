"""When each rule decided last, in all history that is kept: the roll-ups, flows that are open, what is not summed up.

The words of the page (`never hit`) and of the metric of idle rules are both of this.
"""

import duckdb

from sink.history import spans

_HOURS = "time < (SELECT coalesce(max(before), 'epoch'::TIMESTAMP_NS) FROM store.folded)"
SUMS = f"""(SELECT * FROM store.pairs_1h UNION ALL SELECT * FROM store.pairs_1m WHERE NOT ({_HOURS}))"""
"""SQL of all roll-ups, each event once."""


def latest(cursor: duckdb.DuckDBPyConnection) -> str:
    """SQL, in parentheses, of `ring`, `revision`, `rule` and `last`, the time of the last event that was kept of it.

    To be used within the caller's transaction. A sink that stops rolling up leaves more verdicts to read here.
    """
    parts = [
        f"SELECT ring, revision, rule, last_seen AS last FROM {SUMS}",
        "SELECT ring, revision, rule, time FROM store.open_flows WHERE NOT ended",
    ]
    parts += [
        f"SELECT ring, revision, rule, time FROM store.verdicts WHERE ring = {ring} AND position >= {first}"
        for ring, waits in spans.unrolled(cursor).items()
        for first, _ in list(waits)[:1]  # what lies behind and is rolled up is said twice, which changes nothing
    ]
    return f"(SELECT ring, revision, rule, max(last) AS last FROM ({' UNION ALL '.join(parts)}) GROUP BY ALL)"
