"""The views people query, made from `schemas.codes`: words for numbers, names for rules, text for addresses.

They are made anew at every start of a sink, so they never lag behind the codes. `flows` takes a flow's totals and
verdict from its last event by ring position; arrival order plays no part. `pairs_1m` and `pairs_1h` hold each
conversation once, whoever saw it; `node_pairs_1m` and `node_pairs_1h` what each node saw.
"""

import re
from collections.abc import Iterable
from enum import IntEnum

from schemas.codes import PROTOCOLS, Decision, Direction, EventKind, Flag, IdentityId, Outcome, Reason, RuleId, words
from schemas.present import reserved_identity, reserved_rule
from sink.history.ledger import ORDER, taken


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _case(expression: str, table: dict[int, str], otherwise: str | None = None) -> str:
    """The word of a code; an unknown code (of a newer node) as its number."""
    whens = " ".join(f"WHEN {code} THEN {_text(word)}" for code, word in table.items())
    return f"CASE {expression} {whens} ELSE {otherwise or f'{expression}::VARCHAR'} END"


def _word(column: str, kind: type[IntEnum]) -> str:
    return f"{_case(f'v.{column}', words(kind))} AS {column}"


def _names(kind: type[IntEnum], reserved: object) -> dict[int, str]:
    return {int(code): name for code in kind if (name := reserved(int(code)))}  # type: ignore[operator]


RULE = _case("v.rule", _names(RuleId, reserved_rule), "coalesce(rule_of.name, 'rule:' || v.rule)")
_IDENTITIES = _names(IdentityId, reserved_identity)
COUNTS = (
    "packets_original + v.packets_reply AS packets, v.bytes_original + v.bytes_reply AS bytes,"
    " v.packets_original, v.bytes_original, v.packets_reply, v.bytes_reply"
)


def identity(column: str) -> str:
    """The name of the number in `v.<column>`."""
    return _case(f"v.{column}", _IDENTITIES, f"coalesce({column}_of.name, 'identity:' || v.{column})")


def _flags(*names: str) -> str:
    return ", ".join(f"(v.flags & {int(Flag[name.upper()])}) <> 0 AS {name}" for name in names)


# Outer joins, though every ring has its row: the optimiser may not pull an outer join under the join of `flows`, where
# it took the wide side for the hash table (out of memory at 10 M rows), and leaves out those a question does not need.
IDENTITY_JOINS = """
    LEFT JOIN store.identities AS src_identity_of ON src_identity_of.ring = v.ring
        AND src_identity_of.revision = v.revision AND src_identity_of.id = v.src_identity
    LEFT JOIN store.identities AS dst_identity_of ON dst_identity_of.ring = v.ring
        AND dst_identity_of.revision = v.revision AND dst_identity_of.id = v.dst_identity"""
_RING_JOIN = "LEFT JOIN store.rings AS ring_of ON ring_of.id = v.ring"
RULE_JOIN = """LEFT JOIN store.rules AS rule_of ON rule_of.ring = v.ring AND rule_of.revision = v.revision
        AND rule_of.id = v.rule"""
JOINS = f"""
    {_RING_JOIN}
    {RULE_JOIN}
    {IDENTITY_JOINS}"""

_DESTINATION = f"""address_text(v.dst_hi, v.dst_lo, v.family) AS dst, v.dport, {_case("v.proto", PROTOCOLS)} AS proto,
    v.family, {identity("src_identity")} AS src_identity, {identity("dst_identity")} AS dst_identity"""
WHO = f"address_text(v.src_hi, v.src_lo, v.family) AS src, v.sport, {_DESTINATION}"
_ADDRESSES = "address_number(v.src_hi, v.src_lo) AS src_addr, address_number(v.dst_hi, v.dst_lo) AS dst_addr"


def verdicts_of(rows: str, more: str = "", spoken: str | None = None) -> str:
    """SELECT of the columns of `verdicts` (and `more`) from rows of store.verdicts, which are called `v` in it.

    `spoken`: all the text that will be said of it. Names and addresses that do not occur there are NULL, and nothing is
    joined for them: DuckDB cannot know that a join adds no rows, and makes it for millions; and addresses are half of
    what there is to plan, milliseconds.
    """
    whole = f"""SELECT v.time, {_RING}, v.position,
    {_word("event", EventKind)}, {_word("decision", Decision)}, {_word("outcome", Outcome)},
    {_word("reason", Reason)}, {RULE} AS rule, v.revision, {WHO}, {_word("direction", Direction)},
    v.{COUNTS}, v.tcp_flags_original, v.tcp_flags_reply,
    {_flags("egress", "midstream", "report_only", "untracked", "aggregated", "reversed")}, v.ifindex, v.flow_id,
    {_ADDRESSES} {more}
    FROM {rows} AS v {JOINS}"""
    return whole if spoken is None else _without(whole, spoken, (*_NAMED, *_ADDRESSED))


_RING = "ring_of.node, ring_of.ring"
_NAMED = (
    (("node", "ring"), _RING, "NULL::VARCHAR AS node, NULL::VARCHAR AS ring", _RING_JOIN),
    (("rule",), RULE, "NULL::VARCHAR", RULE_JOIN),
    (("src_identity", "dst_identity"), identity("src_identity"), "NULL::VARCHAR", IDENTITY_JOINS),
    (("src_identity", "dst_identity"), identity("dst_identity"), "NULL::VARCHAR", ""),
)
"""Columns, their expressions, what stands for these where nobody wants them, and the joins they need."""
_ADDRESSED = tuple(
    entry
    for side in ("src", "dst")
    for entry in (
        ((side,), f"address_text(v.{side}_hi, v.{side}_lo, v.family)", "NULL::VARCHAR", ""),
        ((f"{side}_addr",), f"address_number(v.{side}_hi, v.{side}_lo)", "NULL::UHUGEINT", ""),
    )
)
"""The same of addresses."""
_ALL = re.compile(r"\b(columns|verdicts)\b", re.IGNORECASE)
"""What may speak of columns without their names: `COLUMNS(…)`, and a row as a whole."""


def _without(select: str, spoken: str, left_out: Iterable[tuple[tuple[str, ...], str, str, str]] = _NAMED) -> str:
    if _ALL.search(spoken):
        return select
    for names, expression, nothing, join in left_out:
        if not any(re.search(rf"\b{name}\b", spoken, re.IGNORECASE) for name in names):
            select = select.replace(expression, nothing).replace(join or "\0", "")
    return select


VERDICTS = f"CREATE OR REPLACE VIEW verdicts AS {verdicts_of('store.verdicts')}"

_FLOW_COLUMNS = f"""{WHO}, {_word("decision", Decision)}, {_word("outcome", Outcome)}, {_word("reason", Reason)},
    {RULE} AS rule, v.revision, v.{COUNTS}, v.tcp_flags_original, v.tcp_flags_reply,
    {_flags("egress", "midstream", "report_only", "untracked", "aggregated", "reversed")}, v.ifindex"""

# Joined back on the last position: an arg_max of every column would hold them all in the hash table at once.
_LAST = """SELECT e.*, last.first_seen, last.events FROM store.verdicts AS e JOIN (
        SELECT ring, max(position) AS position, min(time) AS first_seen, count(*) AS events
        FROM store.verdicts WHERE flow_id <> 0 GROUP BY ring, flow_id
    ) AS last ON last.ring = e.ring AND last.position = e.position"""

_FLOW_SELECT = f"""SELECT ring_of.node, ring_of.ring, v.flow_id, v.first_seen, v.time AS last_seen, {_FLOW_COLUMNS},
    v.event = {int(EventKind.END)} AS ended, v.events,
    {_ADDRESSES}
    FROM ({_LAST}) AS v {JOINS}"""

FLOWS = f"CREATE OR REPLACE VIEW flows AS {_FLOW_SELECT}"

VIOLATIONS = f"""CREATE OR REPLACE VIEW violations AS {_FLOW_SELECT} WHERE v.decision = {int(Decision.DENY)}
    UNION ALL BY NAME SELECT ring_of.node, ring_of.ring, v.flow_id, v.time AS first_seen, v.time AS last_seen,
    {_FLOW_COLUMNS}, true AS ended, 1::BIGINT AS events,
    {_ADDRESSES}
    FROM store.verdicts AS v {JOINS} WHERE v.flow_id = 0 AND v.decision = {int(Decision.DENY)}"""


def pairs_of(rows: str, more: str = "", spoken: str | None = None) -> str:
    """SELECT of the columns of `pairs_1m` (and `more`) from rows of a roll-up, which are called `v` in it.

    `spoken`: as in `verdicts_of`.
    """
    whole = f"""SELECT v.time, {_RING},
    address_text(v.src_hi, v.src_lo, v.family) AS src, {_DESTINATION}, {_word("decision", Decision)},
    {_word("outcome", Outcome)}, {_word("reason", Reason)}, {RULE} AS rule, v.revision, v.flows, v.{COUNTS},
    {_flags("egress", "midstream", "report_only", "untracked", "aggregated", "reversed")}, v.duplicate, v.first_seen,
    v.last_seen, {_ADDRESSES} {more} FROM {rows} AS v {JOINS}"""
    return whole if spoken is None else _without(whole, spoken)


def _pairs(name: str, table: str, which: str) -> str:
    return f"CREATE OR REPLACE VIEW {name} AS {pairs_of(f'store.{table}')} WHERE {which}"


PAIRS = (
    *(
        _pairs(name + table, table, which)
        for table in ("pairs_1m", "pairs_1h")
        for name, which in (("", "NOT v.duplicate"), ("node_", "true"))
    ),
    # By the stored number: a condition on the word would be worked out for every row.
    _pairs("violations_1h", "pairs_1h", f"NOT v.duplicate AND v.decision = {int(Decision.DENY)}"),
)

# `start` is a row too: what was in force when the ring began or was taken over.
CHANGES = """CREATE OR REPLACE VIEW changes AS SELECT p.time, r.node, r.ring, p.kind, p.who, p.from_revision,
    p.revision AS to_revision, p.from_mode, p.mode AS to_mode, p.from_hash, p.hash AS to_hash, p.state, p.error
    FROM store.policy AS p JOIN store.rings AS r ON r.id = p.ring"""

POLICY_REVISIONS = """CREATE OR REPLACE VIEW policy_revisions AS SELECT r.node, r.ring, p.revision,
    min(p.time) AS time, arg_min(p."default", p.time) AS "default", arg_min(p.hash, p.time) AS hash,
    arg_min(p.yaml, p.time) AS yaml, arg_min(p.who, p.time) AS who
    FROM store.policy AS p JOIN store.rings AS r ON r.id = p.ring
    WHERE p.kind IN ('start', 'revision') GROUP BY r.node, r.ring, p.revision"""

RULES = """CREATE OR REPLACE VIEW rules AS SELECT r.node, r.ring, x.* EXCLUDE (ring)
    FROM store.rules AS x JOIN store.rings AS r ON r.id = x.ring"""

IDENTITIES = """CREATE OR REPLACE VIEW identities AS SELECT r.node, r.ring, x.* EXCLUDE (ring)
    FROM store.identities AS x JOIN store.rings AS r ON r.id = x.ring"""

LOSS = """CREATE OR REPLACE VIEW loss AS SELECT l.time, r.node, r.ring, l.* EXCLUDE (time, ring)
    FROM store.loss AS l JOIN store.rings AS r ON r.id = l.ring"""

GAPS = """CREATE OR REPLACE VIEW gaps AS
    SELECT g.time, 'ring' AS kind, r.node, r.ring, NULL AS stream, g.first, g.past,
        (g.past - g.first) // r.stride AS events,
        NULL::UBIGINT AS messages, g.cause
    FROM store.gaps AS g JOIN store.rings AS r ON r.id = g.ring
    UNION ALL SELECT g.time, 'stream', NULL, NULL, s.stream, g.first, g.last + 1, NULL, g.last - g.first + 1,
        'the stream no longer had these messages'
    FROM store.stream_gaps AS g JOIN store.streams AS s ON s.id = g.stream"""

RETENTION = """CREATE OR REPLACE VIEW retention AS SELECT t.time, t.cause, r.node, r.ring, t.rows, t.oldest, t.newest
    FROM store.retention AS t JOIN store.rings AS r ON r.id = t.ring"""

SILENT = 15
"""Seconds without a record after which a ring that was not closed is silent: a node tells of itself each second."""
# By the sink's clock: a node whose clock is behind by more than SILENT looks silent here; `ztlens status` does not.
NODES = f"""CREATE OR REPLACE VIEW nodes AS SELECT r.node, r.ring, l.time AS last,
    CASE WHEN n.final OR r.id IN (SELECT ring FROM store.policy WHERE kind = 'closed') THEN 'closed'
        WHEN epoch_ns(l.time) >= epoch_ns(now()) - {SILENT * 10**9} THEN 'live' ELSE 'silent' END AS state,
    l.mode, l.revision FROM store.rings AS r LEFT JOIN (
        SELECT ring, {taken(f"max({ORDER})")} AS time, bool_or(final) AS final FROM store.loss GROUP BY ring
    ) AS n ON n.ring = r.id LEFT JOIN store.loss AS l ON l.ring = n.ring AND l.time = n.time"""

VIEWS: tuple[str, ...] = (
    VERDICTS, FLOWS, VIOLATIONS, *PAIRS, CHANGES, POLICY_REVISIONS, RULES, IDENTITIES, LOSS, GAPS, RETENTION, NODES,
)  # fmt: skip
"""Statements that make the views; `sink.history.ledger.VIEW` is the last."""
