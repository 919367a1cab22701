"""Policies of nodes as they were recorded: what runs, what its rules did, which revisions there were, what differs."""

from typing import Any, NamedTuple

from policy.check import check as warnings_of
from policy.compile import compile_policy
from policy.diff import diff, document, with_a_host
from policy.errors import PolicyError
from policy.source import compile_text
from schemas import http
from schemas.codes import RuleId, word
from schemas.present import reserved_rule
from sink.errors import AbsentError, QueryError
from sink.history import asked as asking
from sink.history import hits, spans
from sink.history.pairs import total
from sink.history.reading import Reading
from sink.history.revisions import IN_FORCE

NEVER = ("shadowed", "never_matches")
"""Warnings that say a rule cannot decide."""
_KINDS = ", ".join(f"'{kind}'" for kind in IN_FORCE)
_REVISIONS = f"""SELECT r.node, r.ring, p.ring AS number, p.revision, min(p.time) AS begun,
        arg_min(p."default", p.time) AS "default", arg_min(p.hash, p.time) AS hash, arg_min(p.who, p.time) AS who,
        arg_max(p.state, p.time) AS state, arg_max(p.mode, p.time) AS mode, arg_min(p.yaml, p.time) AS text
    FROM store.policy AS p JOIN store.rings AS r ON r.id = p.ring
    WHERE p.kind IN ({_KINDS}) GROUP BY r.node, r.ring, p.ring, p.revision"""
"""A row a revision of a ring, from when it came into force first."""
_COLUMNS = """node, ring, revision, begun AS time, "default", hash, who, state, mode"""
_TEXT = "CASE WHEN text = '' AND hash <> '' THEN NULL ELSE text END AS text"


class Key(NamedTuple):
    """Of the last revision of a page."""

    time: int
    ring: int
    revision: int


def revision(reading: Reading, node: str, ring: str, number: int) -> dict[str, Any] | None:
    """One revision with its text; None: nothing is recorded of it."""
    found = reading.records(
        f"SELECT {_COLUMNS}, {_TEXT} FROM ({_REVISIONS}) WHERE node = ? AND ring = ? AND revision = ?",
        [node, ring, number],
    )
    return found[0] if found else None


def of_node(reading: Reading, number: int, asked: http.RevisionAsked) -> dict[str, Any]:
    """The newest revision of that number on a node. Raises AbsentError, QueryError: no node named, and several."""
    node = _node(reading, asked.node)
    found = reading.records(
        f"SELECT {_COLUMNS}, {_TEXT} FROM ({_REVISIONS}) WHERE node = ? AND revision = ? ORDER BY number DESC LIMIT 1",
        [node, number],
    )
    if not found:
        raise AbsentError(f"node {node!r} has no revision {number}", "`policy/revisions` lists those that are recorded")
    return found[0]


def _node(reading: Reading, name: str) -> str:
    known = [node for (node,) in reading.rows("SELECT DISTINCT node FROM store.rings ORDER BY node")]
    if name in known:
        return name
    if not name and len(known) == 1:
        return str(known[0])
    listed = ", ".join(known) or "none"
    if not name and known:
        raise QueryError("there are several nodes", f"name one of them: {listed}")
    raise AbsentError(f"no node is called {name!r}", f"recorded are: {listed}")


def revisions(reading: Reading, asked: http.RevisionsAsked) -> dict[str, Any]:
    """A page, newest first. Raises SinkError."""
    after = asking.place(asked, Key)
    beyond = f"(epoch_ns(begun), number, revision) < ({', '.join(map(str, after[1]))})" if after else "true"
    found = reading.records(
        f"""SELECT {_COLUMNS}, NULL::VARCHAR AS text, epoch_ns(begun) AS begun_ns, number FROM ({_REVISIONS})
        WHERE (node = $node OR $node = '') AND {beyond}
        ORDER BY begun DESC, number DESC, revision DESC LIMIT {asked.limit + 1}""",
        {"node": asked.node},
    )
    places = [(row.pop("begun_ns"), row.pop("number"), row["revision"]) for row in found]
    following = None
    if len(found) > asked.limit:
        following = asking.cursor(asked, (None, None), places[asked.limit - 1])
    return {"revisions": found[: asked.limit], "next": following}


# ---- what runs


def running(reading: Reading, node: str = "") -> list[dict[str, Any]]:
    """What runs on each node (or on one) by what was recorded last: a Revision, its `number` of the ring, `pending`."""
    newest = reading.records(
        f"""SELECT r.node, r.ring, p.ring AS number, p.revision, p.mode, p.state, p.kind, p.who, p.from_revision,
            p.from_mode, p.time AS changed
        FROM store.policy AS p JOIN store.rings AS r ON r.id = p.ring
        WHERE p.kind IN ({_KINDS}) AND (r.node = $node OR $node = '')
        QUALIFY row_number() OVER (PARTITION BY r.node ORDER BY p.ring DESC, p.time DESC, p.revision DESC) = 1
        ORDER BY r.node""",
        {"node": node},
    )
    out = []
    for row in newest:
        known = revision(reading, row["node"], row["ring"], row["revision"])
        assert known is not None  # it is recorded: this row says so
        pending = None
        if row["state"] == "pending":
            pending = {key: row[key] for key in ("kind", "from_revision", "from_mode", "who")} | {
                "time": row["changed"]
            }
        told = known | {"mode": row["mode"], "state": row["state"]}
        out.append({"running": told, "pending": pending, "number": row["number"]})
    return out


def policies(reading: Reading, asked: http.PolicyAsked) -> list[dict[str, Any]]:
    """What runs on each node and what its rules did in the span; `shadowed` is left empty: `never` tells.

    Raises InputError, SinkError.
    """
    node = _node(reading, asked.node) if asked.node else ""
    nodes = running(reading, node)
    found = _hits(reading, asking.span(asked))
    out = []
    for one in nodes:
        named = found.get(one["running"]["node"], {})
        rules = reading.records(
            "SELECT name, action, report_only, text FROM store.rules WHERE ring = ? AND revision = ? ORDER BY id",
            [one["number"], one["running"]["revision"]],
        )
        names = {rule["name"] for rule in rules}
        others = [rule for name, rule in sorted(named.items()) if name not in names and rule["last_hit"]]
        out.append(
            {
                "running": one["running"],
                "pending": one["pending"],
                "rules": [_NONE | named.get(rule["name"], {}) | rule for rule in rules],
                "other": others,
            }
        )
    return out


_NONE = {"flows": 0, "packets": 0, "bytes": 0, "last_hit": None, "last_ever": None, "shadowed": ""}


def _hits(reading: Reading, bounds: asking.Bounds) -> dict[str, dict[str, dict[str, Any]]]:
    """Node → name of a rule, as each revision called it → http.RuleHits, with action and text of the last of them."""
    relation = spans.relation(reading.cursor, *bounds, crossing=False)
    name = f"coalesce(n.name, CASE WHEN h.rule < {int(RuleId.FIRST)} THEN NULL ELSE 'rule:' || h.rule END)"
    order = "(h.ring, h.revision)"
    found = reading.records(
        f"""SELECT r.node, {name} AS name, CASE WHEN n.name IS NULL THEN h.rule END AS reserved,
            {total("h.flows")} AS flows, {total("h.packets")} AS packets, {total("h.bytes")} AS bytes,
            max(h.last_hit) AS last_hit, max(h.last_ever) AS last_ever,
            coalesce(arg_max(n.action, {order}), '') AS action, coalesce(arg_max(n.text, {order}), '') AS text,
            coalesce(arg_max(n.report_only, {order}), false) AS report_only
        FROM (SELECT ring, revision, rule, sum(flows) AS flows, sum(packets_original + packets_reply) AS packets,
                sum(bytes_original + bytes_reply) AS bytes, max(last_seen) AS last_hit, last_hit AS last_ever
                FROM {relation} GROUP BY ring, revision, rule
            UNION ALL SELECT ring, revision, rule, 0, 0, 0, NULL, last FROM {hits.latest(reading.cursor)}) AS h
            JOIN store.rings AS r ON r.id = h.ring
            LEFT JOIN store.rules AS n ON n.ring = h.ring AND n.revision = h.revision AND n.id = h.rule
        GROUP BY ALL"""
    )
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found:
        node, reserved = row.pop("node"), row.pop("reserved")
        name = row["name"] or reserved_rule(reserved) or f"rule:{reserved}"
        out.setdefault(node, {})[name] = _NONE | row | {"name": name}
    return out


# ---- what needs the policy engine, in a process of its own (`sink.history.apart`)


def never(text: str) -> dict[str, str]:
    """Rule → why it can never decide. Empty for a policy that cannot be read."""
    try:
        return {one.subject: one.message for one in warnings_of(compile_text(text, "policy")) if one.kind in NEVER}
    except PolicyError:
        return {}


def checked(text: str) -> dict[str, Any]:
    """http.Checked of a draft."""
    try:
        compiled = compile_text(text, "draft")
        warnings = warnings_of(compiled)
    except PolicyError as error:
        wrong = {
            "severity": "error", "kind": "error", "subject": "", "message": error.message, "hint": error.hint,
            "line": error.line, "column": error.column,
        }  # fmt: skip
        return {"ok": False, "diagnostics": [wrong], "hash": "", "default": "", "rules": 0, "identities": 0}
    policy = compiled.policy
    assert policy is not None
    told = [
        {"severity": "warning", "kind": one.kind, "subject": one.subject, "message": one.message, "hint": one.hint,
         "line": one.line, "column": one.column}
        for one in warnings
    ]  # fmt: skip
    return {"ok": True, "diagnostics": told, "hash": policy.hash, "default": word(policy.default),
            "rules": len(policy.rules), "identities": len(policy.identities)}  # fmt: skip


def texts(reading: Reading, asked: http.DiffAsked) -> tuple[str, str]:
    """Both sides; empty: no policy. Raises QueryError."""
    before, after = (_text(reading, side) for side in (asked.before, asked.after))
    return before, after


def _text(reading: Reading, side: http.Side) -> str:
    if side.text is not None:
        if side.node or side.revision is not None:
            raise QueryError("a side has a text, or is of a node, not both", "leave one of them out")
        return side.text
    if side.revision is not None:
        found: dict[str, Any] = of_node(reading, side.revision, http.RevisionAsked(node=side.node))
    else:
        nodes = running(reading, _node(reading, side.node))
        if not nodes:
            raise AbsentError(f"nothing is recorded of a policy of {side.node!r}", "give a text")
        found = nodes[0]["running"]
    if found["text"] is None:
        raise QueryError("the text of that revision was too large to record", "give it as a text")
    return str(found["text"])


def difference(before: str, after: str, *, rules: bool) -> dict[str, Any]:
    """http.Diff of two texts, empty: no policy. Raises PolicyError."""
    one, other = (
        compile_text(text, name) if text else compile_policy(None)
        for text, name in ((before, "before"), (after, "after"))
    )
    return document(diff(*with_a_host(one, other), rules=rules))
