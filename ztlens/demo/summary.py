"""What the demo saw: asked in SQL of the store it filled, and of the ledger.

The document of `ztlens demo -o json` (docs/cli.md): `verdicts` (records stored), `flows`, `packets` and `bytes` (of
these flows, both directions, layer 2 without FCS), `allowed` and `denied` (flows: they add up to `flows`), `families`
(flows of `ipv4`, `ipv6`), `top_denied[]`, `by_rule[]`, `balanced`, `ledger`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from ztlens import show

TOP = 10

TOTALS = """
    SELECT (SELECT count(*) FROM verdicts)::BIGINT AS verdicts, count(*)::BIGINT AS flows,
           coalesce(sum(packets), 0)::BIGINT AS packets, coalesce(sum(bytes), 0)::BIGINT AS bytes,
           count_if(decision = 'allow')::BIGINT AS allowed, count_if(decision = 'deny')::BIGINT AS denied,
           count_if(family = 4)::BIGINT AS ipv4, count_if(family = 6)::BIGINT AS ipv6
    FROM flows
"""
BY_RULE = """
    SELECT rule, reason, decision, count(*)::BIGINT AS flows, sum(packets)::BIGINT AS packets,
           sum(bytes)::BIGINT AS bytes
    FROM flows GROUP BY ALL ORDER BY decision DESC, flows DESC, rule
"""
TOP_DENIED = f"""
    SELECT src_identity, dst_identity, proto, dport, rule, count(*)::BIGINT AS flows, sum(packets)::BIGINT AS packets,
           sum(bytes)::BIGINT AS bytes, count_if(outcome = 'dropped')::BIGINT AS dropped
    FROM flows WHERE decision = 'deny' GROUP BY ALL
    ORDER BY flows DESC, src_identity, dst_identity, proto, dport LIMIT {TOP}
"""


class History(Protocol):
    """What is asked of `sink.client.History`."""

    def sql(self, sql: str) -> pa.Table: ...
    def ledger(self) -> Mapping[str, Any]: ...


def summarise(history: History) -> dict[str, Any]:
    """The document. Raises what `history` raises."""
    totals = next(show.records(history.sql(TOTALS)))
    ledger = history.ledger()
    return {
        **{key: totals[key] for key in ("verdicts", "flows", "packets", "bytes", "allowed", "denied")},
        "families": {key: totals[key] for key in ("ipv4", "ipv6")},
        "top_denied": list(show.records(history.sql(TOP_DENIED))),
        "by_rule": list(show.records(history.sql(BY_RULE))),
        # Exact, so of rings that were closed: one still in use may differ by what is on its way.
        "balanced": bool(ledger["balanced"] and ledger["rings"] and all(ring["final"] for ring in ledger["rings"])),
        "ledger": ledger,
    }


def write(document: Mapping[str, Any], *, enforced: bool) -> None:
    """The document for people, on stdout."""
    print(
        f"\n{document['verdicts']:,} verdicts on {document['flows']:,} flows, {document['packets']:,} packets, "
        f"{document['bytes']:,} bytes: {document['allowed']:,} flows allowed, {document['denied']:,} denied"
        + (" and dropped" if enforced else " (monitor mode: nothing was dropped)")
    )
    print("\nBy rule")
    _table(document["by_rule"])
    print("\nMost denied")
    _table(document["top_denied"])
    print("\nLedger: every packet and event accounted for" if document["balanced"] else "\nLedger: DOES NOT BALANCE")
    for ring in document["ledger"]["rings"]:
        for name in ("packets", "events"):
            counts = ", ".join(f"{key} {n:,}" for key, n in ring[name].items() if type(n) is int)
            print(f"  {name:7}  {counts}")


def _table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("(none)")
        return
    show.table(list(rows[0]), [list(row.values()) for row in rows])
