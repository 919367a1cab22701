"""A policy that allows what was recorded, proved by an audit of the same moment.

Distinct tuples are summed in DuckDB; `policy.suggest` makes rules of them. Who began a conversation is not always
known: TCP met without a SYN, and packets without a flow, may have been recorded the wrong way round. Their service is
taken to be at the lower port, if that is below EPHEMERAL; else they are left out, and told.
"""

import threading
from collections.abc import Callable, Iterable
from ipaddress import ip_address

import duckdb
import msgspec
import numpy as np

from policy.builtin import BUILTINS
from policy.errors import PolicyError
from policy.model import Identity
from policy.suggest import Suggestion, suggest
from policy.suggestion import moment
from policy.tuples import SUMS, Known, Tuples
from policy.units import Generality
from schemas.codes import Decision, Flag, Reason, RuleId
from schemas.present import proto_text
from sink.errors import QueryError
from sink.history import spans
from sink.history.apart import apart
from sink.history.audit import Document, Text, audit
from sink.history.audit import Question as Audit
from sink.history.judges import NOT_POLICYS
from sink.history.ledger import rfc3339
from sink.history.pairs import total
from sink.history.query import explained
from sink.history.revisions import Revisions

MAX_TUPLES = 1_000_000
"""Distinct ones that are looked at: about 1 GB of memory."""
EPHEMERAL = 32_768
"""Ports from here on are taken for those of clients (Linux: ip_local_port_range)."""
ALL = Text("version: 1\ndefault: allow\n", "everything")

_TAKEN, _DENIED, _BUILTIN, _NEVER, _UNSURE = range(5)
LEFT_OUT = {_DENIED: "denied", _BUILTIN: "builtin", _NEVER: "always_denied", _UNSURE: "unsure"}
"""Why something is not in the suggestion."""
SHOWN = 100
"""Tuples listed of those that are left out as unsure."""


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked. Times in ns since 1970 UTC, `until` exclusive.

    `identities`: a policy whose names are used; None: those of the running policies. `include_denied`: allow what was
    denied, too. `exact`: give the exact suggestion besides.
    """

    generality: Generality = Generality.SERVICE
    identities: Text | None = None
    since: int | None = None
    until: int | None = None
    node: str | None = None
    include_denied: bool = False
    exact: bool = False


def suggested(
    cursor: duckdb.DuckDBPyConnection,
    question: Question,
    timeout: float = 300.0,
    progress: Callable[[int], None] = lambda rows: None,
) -> Document:
    """The document of `ztlens policy suggest -o json`. `cursor` is closed at the end.

    `policy` is null if nothing was recorded that a policy could allow. Raises PolicyError, SinkError.
    """
    timer = threading.Timer(timeout, cursor.interrupt)
    timer.daemon = True
    timer.start()
    try:
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        revisions = Revisions(cursor, question.node)
        known = _known(question, revisions)
        found = _read(cursor, question, revisions, known)
        tuples = _tuples(found, _TAKEN)
        document = _document(question, found, known)
        if not len(tuples):
            return document
        timer.cancel()
        try:
            made = apart(timeout, progress, suggest, tuples, known, question.generality, _head(question, tuples))
            if question.exact:
                document["exact"] = apart(timeout, progress, suggest, tuples, known, Generality.EXACT).text
        except PolicyError as error:  # which is of no file
            raise QueryError(error.message, error.hint) from error
        document |= _told(made, tuples)
        document["audit"] = _audit(cursor, question, made, timeout, progress)
        return document
    except duckdb.Error as error:
        raise explained(error, timeout) from error
    finally:
        timer.cancel()
        cursor.close()


def _audit(
    cursor: duckdb.DuckDBPyConnection,
    question: Question,
    made: Suggestion,
    timeout: float,
    progress: Callable[[int], None],
) -> Document:
    """Of the same transaction: what is recorded meanwhile would seem denied."""
    asked = Audit(
        candidate=Text(made.text, "suggestion"), against=ALL if question.include_denied else None, identities="now",
        since=question.since, until=question.until, node=question.node,
    )  # fmt: skip
    return audit(cursor, asked, timeout, progress, begun=True)


# ---- what is known


def _known(question: Question, revisions: Revisions) -> Known:
    """Names: those of a file, else those that mean the same on all nodes; `host` where there is one node."""
    last = {node: revisions.last(ring) for ring, node in revisions.nodes.items()}
    host: tuple[str, ...] = ()
    if len(last) == 1:
        recorded = revisions.last_host(max(revisions.nodes)) or ()
        host = tuple(address for address in recorded if not ip_address(address).is_loopback)  # which is not watched
    if question.identities is not None:
        policy = question.identities.policy()
        return Known(policy.identities, host, policy.builtins_off)
    running = [revision for _, revision in sorted(last.items()) if revision is not None]
    by_name: dict[str, list[Identity]] = {}
    for revision in running:
        for name, identity in (revision.identities or {}).items():
            by_name.setdefault(name, []).append(identity)
    agreed = tuple(
        same[0] for same in by_name.values() if all(set(same[0].addresses) == set(i.addresses) for i in same)
    )
    off = [revision.builtins_off for revision in running]
    return Known(agreed, host, frozenset.intersection(*off) if off else frozenset())


# ---- what was recorded

_ENDS = ("src_hi", "src_lo", "dst_hi", "dst_lo", "family", "proto", "dport")
_WITH_PORTS = (6, 17, 132)


def _read(
    cursor: duckdb.DuckDBPyConnection, question: Question, revisions: Revisions, known: Known
) -> dict[str, np.ndarray]:
    """Column → array: `kind`, _ENDS, SUMS, first_seen, last_seen; of what is neither taken nor unsure a row a kind."""
    relation = spans.relation(cursor, question.since, question.until)
    found = cursor.execute(_question(question, revisions, known, relation)).to_arrow_table()
    if found.num_rows > MAX_TUPLES:
        raise QueryError(
            f"more than {MAX_TUPLES:,} distinct sources, destinations and ports were recorded",
            "ask for less of it: --since, --until, --node",
        )
    return {name: found[name].to_numpy() for name in found.column_names}


def _question(question: Question, revisions: Revisions, known: Known, relation: str) -> str:
    on = [int(RuleId[f"BUILTIN_{name.upper()}"]) for name in BUILTINS if name not in known.builtins_off]
    denied = "false" if question.include_denied else f"decision <> {int(Decision.ALLOW)}"
    doubt = f"flags & {int(Flag.MIDSTREAM | Flag.UNTRACKED)} <> 0"
    where = "NOT duplicate" if question.node is None else f"ring IN ({_listed(revisions.nodes)})"
    ends, sums = ", ".join(_ENDS), ", ".join(f"{total(name)}::BIGINT AS {name}" for name in SUMS)
    seen = "min(first_seen) AS first_seen, max(last_seen) AS last_seen"
    kept = ", ".join(f"CASE WHEN kind IN ({_TAKEN}, {_UNSURE}) THEN {name} ELSE 0 END AS {name}" for name in _ENDS)
    turned = {"src_hi": "dst_hi", "src_lo": "dst_lo", "dst_hi": "src_hi", "dst_lo": "src_lo", "dport": "sport"}
    swapped = ", ".join(f"CASE WHEN turned THEN {other} ELSE {name} END AS {name}" for name, other in turned.items())
    return f"""WITH told AS (
            SELECT CASE
                WHEN reason IN ({_listed(NOT_POLICYS)}) OR family NOT IN (4, 6) THEN {_NEVER}
                WHEN reason = {int(Reason.BUILTIN)} AND rule IN ({_listed([*on, RuleId.DEFAULT])}) THEN {_BUILTIN}
                WHEN {denied} THEN {_DENIED} WHEN {doubt} THEN {_UNSURE} ELSE {_TAKEN} END AS kind,
                {ends}, flows, packets_original + packets_reply AS packets, bytes_original + bytes_reply AS bytes,
                epoch_ns(first_seen) AS first_seen, epoch_ns(last_seen) AS last_seen
            FROM {relation} WHERE {where}
        ), summed AS (
            SELECT kind, {kept}, {sums}, {seen} FROM told GROUP BY ALL
        ), lower AS (
            SELECT {ends}, min(sport) AS sport, {_UNSURE} AS kind FROM store.verdicts
            WHERE {doubt} AND proto IN ({_listed(_WITH_PORTS)}) AND sport < least(dport, {EPHEMERAL}) GROUP BY ALL
        ), tried AS (
            SELECT summed.*, sport, sport IS NOT NULL AS turned FROM summed LEFT JOIN lower USING (kind, {ends})
        ), settled AS (
            SELECT CASE WHEN kind = {_UNSURE}
                    AND (turned OR dport < {EPHEMERAL} OR proto NOT IN ({_listed(_WITH_PORTS)})) THEN {_TAKEN}
                ELSE kind END AS kind, {swapped}, family, proto, {", ".join(SUMS)}, first_seen, last_seen FROM tried
        ) SELECT kind, {ends}, {sums}, {seen} FROM settled GROUP BY ALL LIMIT {MAX_TUPLES + 1}"""


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(int(number)) for number in numbers)


def _tuples(found: dict[str, np.ndarray], kind: int) -> Tuples:
    """Those of a kind."""
    some = found["kind"] == kind
    ends = []
    for end in ("src", "dst"):
        halves = np.column_stack([found[f"{end}_hi"][some], found[f"{end}_lo"][some]]).astype(">u8")
        ends.append(np.ascontiguousarray(halves).view("V16").ravel())
    types = {"family": "u1", "proto": "u1", "dport": "<u2"} | dict.fromkeys((*SUMS, "first_seen", "last_seen"), "<i8")
    return Tuples(*ends, *(found[name][some].astype(type_) for name, type_ in types.items()))


# ---- telling


def _document(question: Question, found: dict[str, np.ndarray], known: Known) -> Document:
    """All but what there is only if there is a policy."""
    left_out: Document = {
        word: {name: int(found[name][found["kind"] == kind].sum()) for name in SUMS} for kind, word in LEFT_OUT.items()
    }
    unsure = _tuples(found, _UNSURE)
    addresses, src, dst = unsure.ends()
    text = [str(item) for item in addresses.prefixes()]
    left_out["unsure"]["tuples"] = [
        {"src": text[src[i]], "dst": text[dst[i]], "proto": proto_text(int(proto)), "port": int(port)}
        for i, (proto, port) in enumerate(zip(unsure.proto[:SHOWN], unsure.port[:SHOWN], strict=True))
    ]
    return {
        "policy": None, "generality": str(question.generality), "include_denied": question.include_denied,
        "names": sorted(identity.name for identity in known.identities), "host": known.host, "node": question.node,
        "since": rfc3339(question.since), "until": rfc3339(question.until), "tuples": 0, "rules": [],
        "left_out": left_out, "audit": None,
    }  # fmt: skip


def _told(made: Suggestion, tuples: Tuples) -> Document:
    rules = [
        {"name": part.name, "from": part.source, "to": part.destination, "ports": part.ports, "flows": part.flows,
         "packets": part.packets, "bytes": part.bytes, "first_seen": rfc3339(part.first_seen),
         "last_seen": rfc3339(part.last_seen), "opens": {"sources": part.new_sources,
         "destinations": part.new_destinations, "tuples": part.new_tuples}}
        for part in made.parts
    ]  # fmt: skip
    return {"policy": made.text, "rules": rules, "tuples": len(tuples)}


def _head(question: Question, tuples: Tuples) -> list[str]:
    counts = ", ".join(f"{int(getattr(tuples, name).sum()):,} {name}" for name in ("flows", "packets"))
    span = f"{moment(int(tuples.first_seen.min()))} – {moment(int(tuples.last_seen.max()))}"
    kind = "all recorded traffic, denied too" if question.include_denied else "recorded traffic that was allowed"
    return [f"Suggested by ztlens, generality {question.generality}: {kind}", f"{counts}, {span}"]
