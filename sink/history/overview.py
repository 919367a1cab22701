"""What a first look wants, in one answer that is there fast."""

from typing import Any

from schemas import http
from schemas.codes import Decision, EventKind
from sink.errors import QueryError
from sink.history import asked as asking
from sink.history import policies
from sink.history.ledger import ORDER, rfc3339
from sink.history.pairs import MINUTE, within
from sink.history.reading import Reading
from sink.history.said import KINDS, SPLIT, SUMS, said, split
from sink.history.views import IDENTITY_JOINS, RULE, RULE_JOIN, identity
from sink.store.database import now_ns

SECONDS = 60
"""Of the rates."""
_SECOND = 1_000_000_000
_LAST = "max(last_seen) AS last_seen"


def overview(reading: Reading, asked: http.OverviewAsked) -> dict[str, Any]:
    """http.Overview but for `lag` and `notices`, which the sink knows. Raises InputError, SinkError."""
    now = now_ns()
    since, until = asking.span(asked)
    if since is not None and since >= now:
        raise QueryError("since lies in the future", "name a moment before now")
    if until is None and since is not None:
        since = max(0, since) // MINUTE * MINUTE  # whole minutes need no events
    bounds = since, until
    rows = said(reading, http.Filtered(), bounds)
    # By numbers first: few groups are left of millions of rows when names are joined.
    ruled = "ring_number AS ring, revision, rule_number AS rule"
    reading.keep("by_rule", f"SELECT {ruled}, decision, kind, {SUMS}, {_LAST} FROM {rows} GROUP BY ALL")
    pair = "src_number AS src_identity, dst_number AS dst_identity, dport, proto"
    reading.keep("denied", f"SELECT {ruled}, {pair}, outcome, {SUMS}, {_LAST} FROM {rows} WHERE kind <> 0 GROUP BY ALL")
    (totals,) = reading.records(f"SELECT {SPLIT} FROM by_rule")
    denied = reading.records(
        f"""SELECT {identity("src_identity")} AS src_identity, {identity("dst_identity")} AS dst_identity, v.dport,
            v.proto, {RULE} AS rule, v.outcome, {SUMS}, {_LAST} FROM denied AS v {RULE_JOIN} {IDENTITY_JOINS}
        GROUP BY ALL
        ORDER BY flows DESC, packets DESC, src_identity, dst_identity, dport, proto, rule LIMIT {asked.top}"""
    )
    rules = reading.records(
        f"""SELECT {RULE} AS rule, v.decision, {SUMS}, {_LAST} FROM by_rule AS v {RULE_JOIN} GROUP BY ALL
        ORDER BY flows DESC, packets DESC, rule, decision LIMIT {asked.top}"""
    )
    nodes = _nodes(reading)
    return {
        "time": rfc3339(now), "rates": _rates(reading, min(now, until or now)), "totals": split(totals),
        "top_denied": denied, "top_rules": rules, "nodes": nodes, "balanced": all(node["balanced"] for node in nodes),
    }  # fmt: skip


def _rates(reading: Reading, until: int) -> dict[str, Any]:
    """Verdicts in each of the last whole seconds, but for ends: an end has the time of its flow's last packet and comes
    when the flow has been silent long enough, up to minutes later."""
    past = until // _SECOND * _SECOND
    first = past - SECONDS * _SECOND
    found = reading.rows(
        f"""SELECT (epoch_ns(time) - {first}) // {_SECOND} AS second,
            CASE WHEN decision <> {int(Decision.DENY)} THEN 0 WHEN outcome = 2 THEN 1 ELSE 2 END AS kind, count(*)
        FROM store.verdicts WHERE {within(first, past)} AND event <> {int(EventKind.END)} GROUP BY ALL"""
    )
    out: dict[str, Any] = {"times": [rfc3339(first + i * _SECOND) for i in range(SECONDS)]}
    out |= {kind: [0] * SECONDS for kind in KINDS}
    for second, kind, count in found:
        out[KINDS[kind]][second] = count
    return out


def _nodes(reading: Reading) -> list[dict[str, Any]]:
    """http.NodeHealth of each node, by its newest ring."""
    pending = {one["running"]["node"]: one["pending"] for one in policies.running(reading)}
    found = reading.records(
        f"""SELECT n.node, n.ring, n.state, n.mode, n.revision,
            (SELECT arg_max(x.flows_live, {ORDER}) FROM store.loss AS x
                WHERE x.ring = r.id AND x.flows_live IS NOT NULL) AS flows_live,
            coalesce(l.lost, 0)::BIGINT AS samples_lost, coalesce(l.held_back, 0)::BIGINT AS held_back,
            coalesce(l.gap_events, 0)::BIGINT AS gaps, l.in_flight::BIGINT AS in_flight, l.balanced,
            n.last
        FROM nodes AS n JOIN store.rings AS r ON r.node = n.node AND r.ring = n.ring
            LEFT JOIN ledger AS l ON l.node = n.node AND l.ring = n.ring
        QUALIFY row_number() OVER (PARTITION BY n.node ORDER BY r.id DESC) = 1 ORDER BY n.node"""
    )
    return [row | {"pending": pending.get(row["node"])} for row in found]
