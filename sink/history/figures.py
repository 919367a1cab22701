"""What metrics need of the history and no counter has: ledgers, pairs denied for the first time, rules nobody needs.

Each look reads the small tables whole (loss records, sums by hour and by the last minutes); `sink.metrics` does so
rarely, in a thread that gives way.
"""

from typing import NamedTuple

import duckdb
import numpy as np

from schemas.codes import Decision, RuleId
from schemas.metrics import RULES_MOST
from sink.history import hits
from sink.history.ledger import ORDER

PACKETS = ("parsed", "judged", "flows", "untracked")
EVENTS = ("due", "emitted", "pending", "lost", "held_back", "published", "stored", "gaps", "in_flight")
RECENT = 86_400
"""Seconds: rings that were not heard of for so long are no longer asked whether they balance."""


class Books(NamedTuple):
    """The ledger of a node: whether its recent rings balance, and its newest ring's numbers by account."""

    balanced: bool
    packets: dict[str, int]
    events: dict[str, int]


def books(cursor: duckdb.DuckDBPyConnection) -> dict[str, Books]:
    """By node. Raises duckdb.Error."""
    numbers = ", ".join(f"{name}::BIGINT" for name in (*PACKETS, *EVENTS)).replace("gaps", "gap_events")
    cursor.execute(
        f"""SELECT node, balanced, epoch_ns(last) >= epoch_ns(now()) - {RECENT * 10**9}, {numbers} FROM ledger"""
    )
    found: dict[str, Books] = {}
    for node, balanced, recent, *values in cursor.fetchall():  # the ring that was seen first comes first
        known = {name: n for name, n in zip((*PACKETS, *EVENTS), values, strict=True) if n is not None}
        before = found.get(node)
        found[node] = Books(
            (before is None or before.balanced) and (bool(balanced) or recent is False),
            {name: known[name] for name in PACKETS if name in known},
            {name: known[name] for name in EVENTS if name in known},
        )
    return found


def denied_pairs(cursor: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """Of each node the pairs that were ever denied, as sorted hashes (uint64). Raises duckdb.Error."""
    found = cursor.execute(
        f"""SELECT r.node AS node, list(DISTINCT hash(src_hi, src_lo, dst_hi, dst_lo, proto, dport)) AS pairs
            FROM {hits.SUMS} AS v JOIN store.rings AS r ON r.id = v.ring
            WHERE v.decision = {int(Decision.DENY)} AND NOT v.duplicate GROUP BY r.node"""
    ).to_arrow_table()
    return {
        str(node): np.sort(np.asarray(pairs.values)) for node, pairs in zip(found["node"], found["pairs"], strict=True)
    }


def new_pairs(before: np.ndarray, now: np.ndarray) -> int:
    """How many of `now` are not in `before`; both sorted."""
    return len(now) - int(np.isin(now, before, assume_unique=True).sum())


def idle_rules(cursor: duckdb.DuckDBPyConnection, nodes: list[str]) -> dict[str, dict[str, int]]:
    """Of each of `nodes` the running rules, in the kernel's order, and when each last decided, ns since 1970;
    of one that never did, when its name came into force. Raises duckdb.Error."""
    cursor.execute(
        f"""WITH running AS (
            SELECT r.node, l.ring, arg_max(l.revision, {ORDER}) AS revision
            FROM store.loss AS l JOIN store.rings AS r ON r.id = l.ring
            WHERE r.node IN (SELECT unnest($nodes::VARCHAR[])) GROUP BY r.node, l.ring
            QUALIFY l.ring = max(l.ring) OVER (PARTITION BY r.node)
        ), named AS (
            SELECT r.node, x.ring, x.revision, x.id, x.name FROM store.rules AS x JOIN store.rings AS r ON r.id = x.ring
        ), hits AS (
            SELECT * FROM {hits.latest(cursor)} WHERE rule >= {int(RuleId.FIRST)}
        ), last_hits AS (
            SELECT n.node, n.name, max(h.last) AS last
            FROM named AS n JOIN hits AS h ON h.ring = n.ring AND h.revision = n.revision AND h.rule = n.id GROUP BY ALL
        ), begun AS (
            SELECT n.node, n.name, min(p.time) AS since
            FROM named AS n JOIN store.policy AS p ON p.ring = n.ring AND p.revision = n.revision
            WHERE p.kind IN ('start', 'revision') GROUP BY ALL
        )
        SELECT n.node, n.name, epoch_ns(coalesce(h.last, b.since))
            FROM running AS g JOIN named AS n ON n.ring = g.ring AND n.revision = g.revision
            LEFT JOIN last_hits AS h ON h.node = n.node AND h.name = n.name
            LEFT JOIN begun AS b ON b.node = n.node AND b.name = n.name
            WHERE coalesce(h.last, b.since) IS NOT NULL
            QUALIFY row_number() OVER (PARTITION BY n.node ORDER BY n.id) <= {RULES_MOST}
            ORDER BY n.node, n.id""",
        {"nodes": nodes},
    )
    found: dict[str, dict[str, int]] = {}
    for node, rule, last in cursor.fetchall():
        found.setdefault(node, {})[rule] = int(last)
    return found
