"""The ledger: every packet and every event accounted for, hop by hop, a row a ring.

Of each ring the final record counts, else the last one with the flow table's sums, else the last. `stored` and `gaps`
are counted below the position that record calls acknowledged, so all numbers are of one moment; events stored are
counted from ranges, so retention does not change them.

Exact (docs/architecture.md, ledger) once the ring is final. On a live ring the counters are read one after the other
while packets arrive: up to LIVE_TOLERANCE may differ, and what is acknowledged but not yet stored is `in_flight`.
"""

from datetime import UTC, datetime
from typing import Any

import duckdb

from sink.history import moments

LIVE_TOLERANCE = 64
"""Packets or events that may differ between counters read from a ring in use."""
_MOST = (1 << 63) - 1


def _counter(name: str) -> str:
    return f"coalesce(l.counters['{name}'], 0)::HUGEINT"


def _shown(name: str) -> str:
    """What is worked out in 128 bits, in 64: a broken record may count 2^63 packets and more, and its ring is shown."""
    cut = f"CASE WHEN {name} > {_MOST} THEN {_MOST} WHEN {name} < -{_MOST} THEN -{_MOST} ELSE {name} END"
    return f"({cut})::BIGINT AS {name}"


_NUMBERS = (
    "parsed", "judged", "flows", "untracked", "due", "emitted", "pending", "lost", "held_back", "published", "stored",
    "gap_events", "in_flight",
)  # fmt: skip
_SHOWN = ", ".join(map(_shown, _NUMBERS))


_TOLD = f"least(judged_packets::HUGEINT + produced + consumed, {1 << 62})"
ORDER = f"({_TOLD} * {1 << 64} + epoch_ns(time))"
"""What rises from record to record of a ring: its counters, which never fall, then the time. Not the time first: a
clock that is set back would leave the records of an hour ago the newest."""


def taken(order: str) -> str:
    """SQL of the time of the record whose ORDER is `order`."""
    return f"make_timestamp_ns(({order} % {1 << 64})::BIGINT)"


def needed(where: str = "true") -> str:
    """SELECT of (ring, time) of the records `where` that the ledger is made of, besides the final ones."""
    of = f"SELECT (ring, {taken(f'max({ORDER})')}) FROM store.loss WHERE ({where})"
    return f"{of} GROUP BY ring UNION ALL {of} AND flows_live IS NOT NULL GROUP BY ring"


VIEW = f"""CREATE OR REPLACE VIEW ledger AS
WITH newest AS (
    SELECT ring, max({ORDER}) AS last, max({ORDER}) FILTER (final) AS final,
        max({ORDER}) FILTER (flows_live IS NOT NULL) AS scanned
    FROM store.loss GROUP BY ring
), records AS (
    SELECT l.*, {taken("n.last")} AS last FROM store.loss AS l JOIN newest AS n
    ON l.ring = n.ring AND l.time = {taken("coalesce(n.final, n.scanned, n.last)")}
), sums AS (
    SELECT r.id, r.node, r.ring, r.first_stored, l.time, l.last, coalesce(l.final, false) AS final,
        r.id IN (SELECT ring FROM store.policy WHERE kind = 'closed') AS closed, l.mode, l.revision,
        {_counter("parsed")} AS parsed, l.judged_packets::HUGEINT AS judged,
        ({_counter("ended_packets")} + l.flows_packets) AS flows,
        {_counter("untracked_unattributable")} + {_counter("untracked_table_full")} + {_counter("untracked_closing")}
            AS untracked,
        {_counter("events_due")} AS due, (l.produced // l.stride)::HUGEINT AS emitted, l.flows_due::HUGEINT AS pending,
        {_counter("samples_lost")} AS lost, {_counter("samples_held_back")} AS held_back,
        (l.consumed // l.stride)::HUGEINT AS published,
        coalesce((SELECT sum(least(x.past, l.consumed) - least(x.first, l.consumed)) FROM store.ranges AS x
            WHERE x.ring = r.id), 0)::HUGEINT // r.stride AS stored,
        coalesce((SELECT sum(least(g.past, l.consumed) - least(g.first, l.consumed)) FROM store.gaps AS g
            WHERE g.ring = r.id), 0)::HUGEINT // r.stride AS gap_events
    FROM store.rings AS r LEFT JOIN records AS l ON l.ring = r.id
), balances AS (
    SELECT *, CASE WHEN final THEN 0 ELSE {LIVE_TOLERANCE} END AS tolerance,
        published - stored - gap_events AS in_flight,
        coalesce(abs(parsed - judged) <= tolerance
            AND coalesce(abs(parsed - flows - untracked) <= tolerance, NOT final), false) AS packets_balanced,
        coalesce(coalesce(abs(due - emitted - pending - lost - held_back) <= tolerance, NOT final)
            AND in_flight >= 0 AND published <= emitted
            AND (NOT final OR (in_flight = 0 AND published = emitted)), false) AS events_balanced
    FROM sums
)
SELECT node, ring, time, last, final, closed, mode, revision, {_SHOWN},
    packets_balanced, events_balanced, packets_balanced AND events_balanced AS balanced
FROM balances ORDER BY first_stored, node, ring"""
"""The view `ledger`. A ring without any loss record has NULLs and is not balanced."""


def _missed(kind: str, decision: str, events: str) -> str:
    return f"""SELECT since, time AS until, ring, '{kind}' AS kind, {decision} AS decision,
        least({events}, {_MOST})::BIGINT AS events FROM steps WHERE {events} > 0"""


def _step(counter: str) -> str:
    """What a counter grew by since the ring's record before; NULL from a node that does not know it."""
    return f"counters['{counter}']::HUGEINT - coalesce(lag(counters['{counter}']) OVER w, 0)::HUGEINT"


# By counters, which never fall, and not by time: a clock that is set back mixes the records of an hour.
LOST = f"""CREATE OR REPLACE VIEW lost_events AS WITH steps AS (
    SELECT ring, time, lag(time) OVER w AS since, {_step("samples_lost")} AS lost,
        {_step("samples_lost_denied")} AS lost_denied, {_step("samples_held_back")} AS held_back,
        {_step("samples_held_back_denied")} AS held_back_denied
    FROM store.loss
    WINDOW w AS (PARTITION BY ring ORDER BY counters['samples_lost'], counters['samples_held_back'], produced, time)
), missed AS ({
    " UNION ALL ".join(
        _missed(kind, decision, events)
        for kind in ("lost", "held_back")
        for decision, events in (
            ("'deny'", f"{kind}_denied"),
            ("'allow'", f"{kind} - {kind}_denied"),
            ("NULL", f"CASE WHEN {kind}_denied IS NULL THEN {kind} END"),
        )
    )
})
SELECT m.since, m.until, r.node, r.ring, m.kind, m.decision, m.events
    FROM missed AS m JOIN store.rings AS r ON r.id = m.ring
UNION ALL SELECT NULL, g.time, r.node, r.ring, 'gap', NULL, ((g.past - g.first) // r.stride)::BIGINT
    FROM store.gaps AS g JOIN store.rings AS r ON r.id = g.ring"""
"""The view `lost_events`: how many, when, of which decision. `since` to `until`: the two records between which."""

CLOCK_STEPS = """CREATE OR REPLACE VIEW clock_steps AS SELECT c.time, r.node, r.ring, c.position, c.seconds FROM (
        SELECT ring, time, position, (clock - lag(clock) OVER (PARTITION BY ring ORDER BY position)) / 1e9 AS seconds
        FROM store.clocks
    ) AS c JOIN store.rings AS r ON r.id = c.ring WHERE c.seconds IS NOT NULL"""
"""The view `clock_steps`: when a node's clock was set, and by how much."""

_COLUMNS = (
    "node", "ring", "time", "final", "closed", "mode", "parsed", "judged", "flows", "untracked", "due", "emitted",
    "pending", "lost", "held_back", "published", "stored", "in_flight", "packets_balanced", "events_balanced",
    "balanced",
)  # fmt: skip


def rfc3339(ns: int | None) -> str | None:
    """ns since 1970 as RFC 3339 in UTC."""
    if ns is None:
        return None
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000:09d}Z"


def ledger(cursor: duckdb.DuckDBPyConnection, since: int | None = None) -> dict[str, Any]:
    """The document of `ztlens ledger -o json`: rings heard of since `since` (ns since 1970 UTC), all if None.

    `balanced` is over all of them; `gaps` are event numbers [first, past) within the ring. Raises QueryError for a
    moment that history cannot hold.
    """
    moments.check(since)
    names = ", ".join(f"epoch_ns({name})" if name == "time" else name for name in _COLUMNS)
    where = "" if since is None else "WHERE coalesce(epoch_ns(last), 9223372036854775807) >= $since"
    cursor.execute(f"SELECT {names} FROM ledger {where}", {} if since is None else {"since": since})
    found = [dict(zip(_COLUMNS, row, strict=True)) for row in cursor.fetchall()]
    cursor.execute(
        "SELECT r.node, r.ring, g.first // r.stride, g.past // r.stride, epoch_ns(g.time), g.cause"
        " FROM store.gaps AS g JOIN store.rings AS r ON r.id = g.ring ORDER BY r.id, g.first"
    )
    gaps: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for node, ring, first, past, time, cause in cursor.fetchall():
        gap = {"first": first, "past": past, "count": past - first, "time": rfc3339(time), "cause": cause}
        gaps.setdefault((node, ring), []).append(gap)
    cursor.execute(
        "SELECT node, ring, kind, decision, sum(events)::BIGINT, epoch_ns(min(since)), epoch_ns(max(until))"
        " FROM lost_events WHERE kind <> 'gap' GROUP BY ALL ORDER BY kind, decision"
    )
    losses: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for node, ring, kind, decision, events, first, last in cursor.fetchall():
        loss = {"kind": kind, "decision": decision, "events": events, "since": rfc3339(first), "until": rfc3339(last)}
        losses.setdefault((node, ring), []).append(loss)
    cursor.execute("SELECT node, ring, epoch_ns(time), seconds FROM clock_steps ORDER BY position")
    steps: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for node, ring, time, seconds in cursor.fetchall():
        steps.setdefault((node, ring), []).append({"time": rfc3339(time), "seconds": seconds})
    return {
        "balanced": all(row["balanced"] for row in found),
        "rings": [
            _ring(row, *(lists.get((row["node"], row["ring"]), []) for lists in (gaps, losses, steps))) for row in found
        ],
    }


def _ring(
    row: dict[str, Any], gaps: list[dict[str, Any]], losses: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    events = ("due", "emitted", "pending", "lost", "held_back", "published", "stored", "in_flight")
    return {
        "node": row["node"], "ring": row["ring"], "time": rfc3339(row["time"]), "final": row["final"],
        "closed": row["closed"], "mode": row["mode"], "balanced": row["balanced"],
        "packets": {name: row[name] for name in ("parsed", "judged", "flows", "untracked")}
        | {"balanced": row["packets_balanced"]},
        "events": {name: row[name] for name in events}
        | {"gaps": gaps, "losses": losses, "balanced": row["events_balanced"]},
        "clock_steps": steps,
    }  # fmt: skip
