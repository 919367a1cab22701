"""Recorded traffic under another policy: what it would deny and allow that was not, exactly, and what cannot be told.

Increments (`sink.history.spans`) are read as they come and judged by the arrays of the compiled policy, 65,536 at
a time: that costs no more than a hash table of their tuples would, and needs no memory for it. What changes is summed
by pair, port and rules.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from policy.model import Policy
from policy.parse import parse
from schemas.codes import Decision, Flag, Outcome, Reason
from sink.errors import QueryError
from sink.history import spans
from sink.history.changes import COUNTS, Change, Changes, Sums, added
from sink.history.entries import entries
from sink.history.judges import NOT_POLICYS, Judge
from sink.history.ledger import rfc3339
from sink.history.query import Answer, explained
from sink.history.revisions import Revisions
from sink.history.scopes import Rows, Scope, Scopes

_TCP = 6
"""Its segments without a flow are judged both ways, too, but those are MIDSTREAM."""
RUNNING: Literal["running"] = "running"
Document = dict[str, Any]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy.yaml: what it says, and the name that errors carry."""

    text: str
    file: str = "policy.yaml"

    def policy(self) -> Policy:
        """Raises PolicyError."""
        return parse(self.text, self.file)


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of an audit. Times in ns since 1970 UTC, `until` exclusive.

    `against`: what stands for the decisions as they were recorded: those of each node's running policy, or of a file.
    `identities`: those of the `day`, or of the candidate as it is `now`.
    """

    candidate: Text
    against: Literal["running"] | Text | None = None
    identities: Literal["day", "now"] = "day"
    since: int | None = None
    until: int | None = None
    node: str | None = None


def audit(
    cursor: duckdb.DuckDBPyConnection,
    question: Question,
    timeout: float = 300.0,
    progress: Callable[[int], None] = lambda rows: None,
    *,
    begun: bool = False,
) -> Document:
    """The document of `ztlens audit -o json`, in `timeout` seconds. `cursor` is closed at the end; `begun`: it is in a
    transaction.

    `progress` hears how many rows were judged, now and then, and may raise to end it. Raises PolicyError, SinkError.
    """
    now = question.identities == "now"
    changes, done, until = Changes(), 0, time.monotonic() + timeout
    try:
        candidate = Judge(question.candidate.policy(), now=now)
        if not begun:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
        revisions = Revisions(cursor, question.node)
        scopes = Scopes(candidate, _baselines(question, revisions, now), revisions, now)
        relation = spans.relation(cursor, question.since, question.until)
        sql = _SELECT.format(relation=relation, where=_where(question, revisions))
        with Answer(cursor, sql, None, timeout, begun=True) as answer, _ahead(answer.batches()) as batches:
            for batch in batches:
                for rows, scope in scopes.parts(_columns(batch)):
                    _judge(rows, scope, scopes, changes)
                done += batch.num_rows
                progress(done)
                if time.monotonic() > until:
                    raise explained(duckdb.InterruptException(), timeout)
    except duckdb.Error as error:
        raise explained(error, timeout) from error
    finally:
        cursor.close()
    return _document(question, scopes, changes)


_SELECT = """SELECT ring, revision, src_hi, src_lo, dst_hi, dst_lo, family, proto, dport, src_identity, dst_identity,
    rule, decision, outcome, reason, flags, detail::UTINYINT AS detail,
    crossing::UBIGINT AS crossing, flows::UBIGINT AS flows,
    (packets_original + packets_reply)::UBIGINT AS packets, (bytes_original + bytes_reply)::UBIGINT AS bytes,
    epoch_ns(first_seen) AS first_seen, epoch_ns(last_seen) AS last_seen
    FROM {relation} WHERE {where}"""


def _where(question: Question, revisions: Revisions) -> str:
    """Of one node all it saw; of all together each conversation once."""
    if question.node is None:
        return "NOT duplicate"
    return f"ring IN ({', '.join(str(int(ring)) for ring in revisions.nodes)})"


@contextmanager
def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """`batches`, the next one fetched while this one is judged."""
    with ThreadPoolExecutor(1, "audit") as thread:

        def drawn() -> Iterator[pa.RecordBatch]:
            coming = thread.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, batches, None)
                yield batch

        yield drawn()


def _columns(batch: pa.RecordBatch) -> Rows:
    """Column → array; `src`, `dst` (V16) instead of their halves."""
    columns = {
        name: column.to_numpy(zero_copy_only=False)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    for end in ("src", "dst"):
        halves = np.empty((batch.num_rows, 2), ">u8")
        halves[:, 0], halves[:, 1] = columns.pop(f"{end}_hi"), columns.pop(f"{end}_lo")
        columns[end] = halves.view("V16").ravel()
    return columns


def _baselines(question: Question, revisions: Revisions, now: bool) -> dict[int, Judge]:
    """Ring → what judges its rows instead of the record; none for the record. Raises QueryError, PolicyError."""
    if question.against is None:
        return {}
    if isinstance(question.against, Text):
        return dict.fromkeys(revisions.nodes, Judge(question.against.policy(), now=now))
    found: dict[int, Judge] = {}
    judges: dict[str, Judge] = {}  # by hash: many nodes run one policy
    for ring, node in revisions.nodes.items():
        last = revisions.last(ring)
        if last is None:
            raise QueryError(f"the running policy of {node} was not recorded", "give a file with --against FILE")
        if last.hash not in judges:
            judges[last.hash] = Judge(last.policy(node), now=now)
        found[ring] = judges[last.hash]
    return found


# ---- judging


def _judge(rows: Rows, scope: Scope, scopes: Scopes, changes: Changes) -> None:
    """Add what becomes of `rows`."""
    candidate = scopes.candidate
    after = candidate.decide(candidate.on(scope.revision, scope.host), rows, scope.off)
    reason, flags = rows["reason"], rows["flags"]
    rule, denied = rows["rule"], rows["decision"] != Decision.ALLOW
    if scope.baseline is not None:
        before = scope.baseline.decide(scope.baseline.on(scope.revision, scope.host), rows, scope.off)
        rule, denied = before.rule, before.denied
        after.unsure[before.unsure] = True
    change = np.where(
        denied == after.denied, Change.UNCHANGED, np.where(denied, Change.NEWLY_ALLOWED, Change.NEWLY_DENIED)
    )
    change = change.astype("u1")
    judged = ~np.isin(reason, NOT_POLICYS)
    untracked = flags & int(Flag.UNTRACKED) != 0
    # The last that holds is the one that is told.
    causes = (
        (untracked & (rows["proto"] != _TCP) & (change == Change.NEWLY_DENIED), Change.UNTRACKED),
        (after.unsure, Change.BUILTIN),
        (judged & (not scope.host_known), Change.HOST_UNKNOWN),
        (reason == Reason.HEADLESS_FRAGMENT, Change.HEADLESS_FRAGMENT),
        (reason == Reason.ICMP_UNRELATED, Change.ICMP_UNRELATED),
        (flags & int(Flag.MIDSTREAM) != 0, Change.MIDSTREAM),
        (rows["detail"] == 0, Change.ROLLED_UP),
    )
    for holds, cause in causes:
        change[holds] = cause
    changes.add(
        change,
        rows | {
            "src_identity": scopes.of_the_day(scope.names, rows["src_identity"], after.src_identity),
            "dst_identity": scopes.of_the_day(scope.names, rows["dst_identity"], after.dst_identity),
            "rule_before": rule, "rule_after": after.rule, "denied_before": denied, "denied_after": after.denied,
            "lower_bound": untracked | (rows["outcome"] == Outcome.DROPPED) & ~after.denied,
        },
        scope.names,
    )  # fmt: skip


# ---- telling


def _document(question: Question, scopes: Scopes, changes: Changes) -> Document:
    found = changes.columns()
    total = Sums()
    for sums in (changes.unchanged, *([added(found)] if found else [])):
        total.add(sums)
    against = question.against
    return {
        "flows": total.flows, "packets": total.packets, "bytes": total.bytes, "unchanged": _counted(changes.unchanged),
        **entries(found, scopes), "crossing": total.crossing, "first_seen": rfc3339(total.first_seen),
        "last_seen": rfc3339(total.last_seen), "since": rfc3339(question.since), "until": rfc3339(question.until),
        "node": question.node, "candidate": {"file": question.candidate.file, "hash": scopes.candidate.hash},
        "against": against.file if isinstance(against, Text) else against, "identities": question.identities,
    }  # fmt: skip


def _counted(sums: Sums) -> Document:
    return {name: getattr(sums, name) for name in COUNTS} | {
        "first_seen": rfc3339(sums.first_seen), "last_seen": rfc3339(sums.last_seen),
    }  # fmt: skip
