"""The writer: everything a commit stores goes into one transaction, so a kill leaves all of it or nothing.

Ranges decide what is new. A batch may come twice or cut anew: what the ring's ranges hold already is cut off, the rest
is stored, and the new ranges go into the same transaction. The watermark only says where to read on.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from schemas.envelope import Envelope
from schemas.errors import EnvelopeError
from schemas.messages import LossRecord, PolicyRecord
from schemas.verdict import STRIDE
from sink.counters import Counters
from sink.errors import MemoryFullError, ReopenedError, StoreError
from sink.settings import SinkSettings
from sink.store import records, rows
from sink.store.database import now_ns, open_memory, open_writer
from sink.store.ranges import RangeSet
from sink.store.state import Ring, State, Stream, load

T = TypeVar("T")
P = ParamSpec("P")
log = logging.getLogger("ztlens.sink")

CLOCK_STEP = 1_000_000_000
"""ns by which a node's clock has moved at least since it was last noted, to have been set."""
TOO_LATE = "came after verdicts behind it had been deleted"
"""Cause of such a gap."""


@dataclass(frozen=True)
class Batch:
    """An envelope ready to be stored: [first, past) of a ring and its stored columns."""

    node: str
    ring: str
    first: int
    past: int
    stride: int
    n: int
    columns: dict[str, np.ndarray]
    clock: int  # ns that were added to the ring's own clock

    def split(self, n: int) -> tuple["Batch", "Batch"]:
        """The first `n` rows and the rest."""
        middle = self.first + n * self.stride
        head = {name: column[:n] for name, column in self.columns.items()}
        tail = {name: column[n:] for name, column in self.columns.items()}
        return replace(self, past=middle, n=n, columns=head), replace(self, first=middle, n=self.n - n, columns=tail)


@dataclass
class Commit:
    """What goes into one transaction. `marks`: last sequence read, by name of stream."""

    batches: list[Batch] = field(default_factory=list)
    records: list[PolicyRecord | LossRecord] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    missed: list[tuple[str, int, int]] = field(default_factory=list)  # stream, first and last sequence not delivered
    messages: int = 0
    dead: int = 0  # of these, dead letters

    @property
    def rows(self) -> int:
        """Verdicts in it."""
        return sum(batch.n for batch in self.batches)


def prepare(envelope: Envelope) -> Batch:
    """Convert an envelope. Raises EnvelopeError when it cannot be stored."""
    if envelope.start % envelope.stride:
        raise EnvelopeError(f"position {envelope.start} is no multiple of the stride {envelope.stride}")
    if envelope.stride >= 1 << 32:
        raise EnvelopeError(f"stride {envelope.stride}")
    columns = rows.stored_columns(envelope)
    return Batch(envelope.node, envelope.ring, envelope.start, envelope.end, envelope.stride, envelope.n, columns,
                 envelope.clock)  # fmt: skip


class Store:
    """The open database. Methods that write are for one thread; `cursor` is for all."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, settings: SinkSettings | None = None) -> None:
        self._connection = connection
        self._settings = settings
        self._lock = threading.Lock()
        self._cursors: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self._broke_off = "reopened"
        self.counters = Counters()
        self.listener: Callable[[pa.Table], None] | None = None
        self.changes = 0
        """Transactions of this store, of whatever kind: as long as it stays, questions have the same answers."""
        """Hears, in the writer's thread, the verdicts of each commit: rows of store.verdicts."""
        self.state: State = load(connection)

    @classmethod
    def open(cls, settings: SinkSettings) -> "Store":
        """Open the file of `settings` as its owner. Raises SinkError."""
        return cls(open_writer(settings.database, settings.memory_limit, settings.threads), settings)

    @property
    def path(self) -> Path | None:
        """The file; None in memory."""
        return self._settings.database if self._settings else None

    @property
    def where(self) -> str:
        """The file, or `memory`."""
        return str(self.path or "memory")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database, for reading. Raises ReopenedError while it is opened anew."""
        with self._lock:
            try:
                cursor = self._connection.cursor()
            except duckdb.ConnectionException as error:
                raise ReopenedError from error
            self._cursors.add(cursor)
        return cursor

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The writer's own connection."""
        return self._connection

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, commit: Commit) -> int:
        """Store a commit; the number of new rows. Raises StoreError: rolled back, give the same commit again."""
        work = _Work(self.state)
        try:
            with self.transaction(self.where) as connection:
                work.write(connection, commit)
        except StoreError:
            self.counters.verdicts.failed += commit.rows
            self.counters.records.failed += len(commit.records)
            self.counters.messages.failed += commit.messages
            raise
        work.adopt()
        self._count(commit, work)
        listener = self.listener
        if listener is not None and work.rows is not None:
            listener(work.rows)
        return work.stored

    def _count(self, commit: Commit, work: "_Work") -> None:
        self.counters.verdicts.received += commit.rows
        self.counters.verdicts.stored += work.stored
        self.counters.verdicts.drop("stride", work.misfits)
        self.counters.verdicts.drop("late", work.late)
        self.counters.verdicts.drop("duplicate", commit.rows - work.stored - work.misfits - work.late)
        if work.late:
            log.warning("%d events came after the verdicts behind them had been deleted: they are a gap", work.late)
        self.counters.records.received += len(commit.records)
        self.counters.records.stored += work.records
        self.counters.records.drop("duplicate", len(commit.records) - work.records)
        self.counters.messages.received += commit.messages
        self.counters.messages.stored += commit.messages - commit.dead
        self.counters.messages.drop("dead", commit.dead)

    @contextmanager
    def transaction(self, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """BEGIN … COMMIT on the writer's connection; on an error ROLLBACK and StoreError, which says `what` failed."""
        ending = False
        try:
            self._connection.execute("BEGIN")
            yield self._connection
            ending = True
            self._connection.execute("COMMIT")
            self.changes += 1
        except BaseException as error:
            self.recover(error, anew=ending and isinstance(error, duckdb.Error) and _memory_full(error))
            if not isinstance(error, duckdb.Error):
                raise
            raise _failed(what, error) from error

    def tried(self, work: Callable[P, T], *args: P.args, **how: P.kwargs) -> T:
        """What `work` gives. What it asks outside of a transaction may fail as well: StoreError."""
        try:
            return work(*args, **how)
        except duckdb.Error as error:
            self.recover(error)
            raise _failed("housekeeping", error) from error

    def recover(self, error: BaseException, anew: bool = False) -> None:
        """End the transaction; after an I/O error DuckDB may refuse everything until the file is opened again.

        `anew`: open it in any case. A COMMIT that fails for want of memory, when DuckDB cleans up behind it, is neither
        done nor undone in memory (github.com/duckdb/duckdb/pull/26019): rows that it deleted cannot be deleted any
        more, and stand there twice after the next try. The file has all of it or nothing.
        """
        with suppress(duckdb.Error):
            self._connection.execute("ROLLBACK")
        try:
            self._connection.execute("SELECT 1 FROM store.rings LIMIT 1").fetchall()
        except duckdb.Error:
            anew = True
        if anew:
            log.warning("the database gave up (%s) and is opened again", _first_line(error))
            self.reopen()

    def reopen(self) -> None:
        """Close every connection and open the file anew. Raises StoreError while that fails."""
        settings = self._settings
        if settings is None:
            return
        self.close(checkpoint=False)
        try:
            self._connection = open_writer(settings.database, settings.memory_limit, settings.threads)
            self.state = load(self._connection)
        except Exception as error:
            raise StoreError(f"{settings.database}: {_first_line(error)}", "free space on its file system") from error

    def interrupt(self, why: str = "memory") -> list[duckdb.DuckDBPyConnection]:
        """Break off the questions under way, which raise ReopenedError; the connections they were asked on.

        `why`: of `Counters.again`.
        """
        with self._lock:
            self._broke_off = why
            cursors = list(self._cursors)
        for cursor in cursors:
            with suppress(duckdb.Error):
                cursor.interrupt()
        return cursors

    def asked_again(self) -> None:
        """Count a question that was broken off, and is not given up. From any thread."""
        with self._lock:
            self.counters.again[self._broke_off] += 1

    def close(self, checkpoint: bool = True) -> None:
        """Write the log into the file and close. Questions under way are interrupted."""
        for cursor in self.interrupt("reopened"):
            with suppress(duckdb.Error):
                cursor.close()
        if checkpoint:
            with suppress(duckdb.Error):
                self._connection.execute("CHECKPOINT")
        with suppress(duckdb.Error):
            self._connection.close()

    # -- streams ---------------------------------------------------------------------------------------------------

    def stream(self, name: str, created: str, last: int) -> Stream:
        """The current incarnation of a stream that was `created` then and whose last sequence is `last`.

        A new one is recorded when the stream was made anew, or set back behind what was read of it: reading on from
        the watermark would wait for ever. It starts at sequence 0; ranges drop what comes again.
        """
        known = self.state.streams.get(name)
        if known is not None and known.created == created and known.sequence <= last:
            return known
        note = "first seen" if known is None else "made anew" if known.created != created else "set back"
        number = self.state.next_stream
        with self.transaction(self.where) as connection:
            connection.execute(
                "INSERT INTO store.streams VALUES (?, ?, ?, make_timestamp_ns(?), ?)",
                [number, name, created, now_ns(), note],
            )
        if known is not None:
            log.warning("stream %s was %s (created %s): reading it from its start", name, note, created)
        self.state.next_stream += 1
        self.state.streams[name] = Stream(number, name, created)
        return self.state.streams[name]

    def declare_gaps(self, gaps: Sequence[tuple[Ring, int, int, str]]) -> None:
        """Record holes [first, past) of rings as gaps, with the cause. Raises StoreError."""
        with self.transaction(self.where) as connection:
            for ring, first, past, cause in gaps:
                connection.execute(
                    "INSERT INTO store.gaps VALUES (?, ?, ?, make_timestamp_ns(?), ?)",
                    [ring.id, first, past, now_ns(), cause],
                )
        for ring, first, past, cause in gaps:
            ring.gaps.add(first, past)
            self.counters.gaps += (past - first) // ring.stride
            log.warning(
                "gap: node %s ring %s lacks %d events (%s)", ring.node, ring.name, (past - first) // ring.stride, cause
            )


class _Work:
    """One transaction: changes go to copies of the state, which replace it after the commit."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rings: dict[tuple[str, str], Ring] = {}
        self._next_ring = state.next_ring
        self._marks: dict[str, int] = {}
        self._range_rows = 0
        self.stored = 0
        self.misfits = 0
        self.late = 0
        self.records = 0
        self.rows: pa.Table | None = None  # new verdicts

    def adopt(self) -> None:
        """The transaction was committed."""
        self._state.rings.update(self._rings)
        self._state.next_ring = self._next_ring
        self._state.range_rows += self._range_rows
        for name, sequence in self._marks.items():
            self._state.streams[name].sequence = sequence

    def write(self, connection: duckdb.DuckDBPyConnection, commit: Commit) -> None:
        """All of `commit`, inside an open transaction."""
        self._write_rows(connection, commit.batches)
        self._write_records(connection, commit.records)
        for name, first, last in commit.missed:
            connection.execute(
                "INSERT INTO store.stream_gaps VALUES (?, ?, ?, make_timestamp_ns(?))",
                [self._state.streams[name].id, first, last, now_ns()],
            )
        for name, sequence in commit.marks.items():
            stream = self._state.streams[name]
            if sequence > stream.sequence:
                connection.execute("INSERT INTO store.watermarks VALUES (?, ?)", [stream.id, sequence])
                self._range_rows += 1
                self._marks[name] = sequence

    def _ring(self, connection: duckdb.DuckDBPyConnection, node: str, name: str, stride: int | None) -> Ring:
        """This transaction's copy of a ring; `stride` None: a policy record does not say it, today's is assumed."""
        key = node, name
        ring = self._rings.get(key)
        if ring is None:
            known = self._state.rings.get(key)
            if known is None:
                ring = Ring(self._next_ring, node, name, stride or STRIDE)
                self._next_ring += 1
                self._insert_ring(connection, ring)
            else:
                ring = known.copy()
            self._rings[key] = ring
        if stride and ring.stride != stride and not len(ring.held) and not len(ring.gaps):
            ring.stride = stride
            connection.execute("DELETE FROM store.rings WHERE id = ?", [ring.id])
            self._insert_ring(connection, ring)
        return ring

    def _insert_ring(self, connection: duckdb.DuckDBPyConnection, ring: Ring) -> None:
        connection.execute(
            "INSERT INTO store.rings VALUES (?, ?, ?, ?, make_timestamp_ns(?))",
            [ring.id, ring.node, ring.name, ring.stride, now_ns()],
        )

    def _write_rows(self, connection: duckdb.DuckDBPyConnection, batches: Sequence[Batch]) -> None:
        parts = []
        new: dict[int, RangeSet] = {}
        for batch in batches:
            ring = self._ring(connection, batch.node, batch.ring, batch.stride)
            if ring.stride != batch.stride:
                self.misfits += batch.n
                continue
            self._note_clock(connection, ring, batch)
            for first, past in self._in_time(connection, ring, ring.held.missing(batch.first, batch.past)):
                i, j = (first - batch.first) // batch.stride, (past - batch.first) // batch.stride
                parts.append((ring.id, batch.columns, i, j))
                ring.held.add(first, past)
                new.setdefault(ring.id, RangeSet()).add(first, past)
                self.stored += j - i
                if ring.gaps.within(first, past):
                    self._shrink_gaps(connection, ring, first, past)
        if not parts:
            return
        self.rows = rows.table(parts)
        connection.register("new_rows", self.rows)
        # From a CTE: the plan is then a plain append. Straight from Arrow it is DuckDB's parallel batch insert, which
        # needs a third more CPU for the same rows and splits them into more pieces.
        connection.execute("INSERT INTO store.verdicts WITH n AS MATERIALIZED (SELECT * FROM new_rows) SELECT * FROM n")
        connection.unregister("new_rows")
        for number, ranges in new.items():
            for first, past in ranges:
                connection.execute("INSERT INTO store.ranges VALUES (?, ?, ?)", [number, first, past])
                self._range_rows += 1

    def _note_clock(self, connection: duckdb.DuckDBPyConnection, ring: Ring, batch: Batch) -> None:
        """Of the ring's newest batch, for late ones have the clock of their day."""
        if batch.first < max((past for _, past in ring.held), default=0):
            return
        if ring.clock is None or abs(batch.clock - ring.clock) >= CLOCK_STEP:
            connection.execute(
                "INSERT INTO store.clocks VALUES (?, ?, make_timestamp_ns(?), ?)",
                [ring.id, batch.first, int(batch.columns["time"][0].astype("i8")), batch.clock],
            )
            ring.clock = batch.clock

    def _in_time(
        self, connection: duckdb.DuckDBPyConnection, ring: Ring, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """`ranges` less what lies before deleted verdicts: these may have told of it in their totals, which are summed
        up, and nobody can know any more. It is a gap, and stays one."""
        for first, past in ranges:
            late = min(past, max(first, ring.deleted))
            if first < late:
                self.late += (late - first) // ring.stride
                self._shrink_gaps(connection, ring, first, late)
                connection.execute(
                    "INSERT INTO store.gaps VALUES (?, ?, ?, make_timestamp_ns(?), ?)",
                    [ring.id, first, late, now_ns(), TOO_LATE],
                )
                ring.gaps.add(first, late)
            if late < past:
                yield late, past

    def _shrink_gaps(self, connection: duckdb.DuckDBPyConnection, ring: Ring, first: int, past: int) -> None:
        """[first, past) came after all: what it fills is no gap any more. Rare, so a DELETE may do it."""
        connection.execute(
            "SELECT first, past, time, cause FROM store.gaps WHERE ring = ? AND first < ? AND past > ?",
            [ring.id, past, first],
        )
        for a, b, declared, cause in connection.fetchall():
            connection.execute("DELETE FROM store.gaps WHERE ring = ? AND first = ? AND past = ?", [ring.id, a, b])
            for left, right in ((a, min(b, first)), (max(a, past), b)):
                if left < right:
                    connection.execute(
                        "INSERT INTO store.gaps VALUES (?, ?, ?, ?, ?)", [ring.id, left, right, declared, cause]
                    )
        ring.gaps.remove(first, past)

    def _write_records(self, connection: duckdb.DuckDBPyConnection, given: Sequence[PolicyRecord | LossRecord]) -> None:
        loss = []
        for record in given:
            stride = record.stride if isinstance(record, LossRecord) else None
            ring = self._ring(connection, record.node, record.ring, stride)
            if isinstance(record, LossRecord):
                loss.append((ring.id, record))
                ring.acknowledged = max(ring.acknowledged, record.consumed)
                ring.heard = time.monotonic()
                continue
            self.records += records.insert_policy(connection, ring.id, record, ring.named)
            if record.kind == "closed":
                ring.acknowledged, ring.closed = max(ring.acknowledged, record.end), True
        if loss:
            self.records += records.insert_loss(connection, loss)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _failed(what: str, error: duckdb.Error) -> StoreError:
    kind = MemoryFullError if _memory_full(error) else StoreError
    return kind(f"{what}: {_first_line(error)}", _hint(error))


def _memory_full(error: duckdb.Error) -> bool:
    """A COMMIT says it as an error of its own kind."""
    said = ("failed to pin block", "could not allocate block", "failed to allocate data")
    return isinstance(error, duckdb.OutOfMemoryException) or any(words in str(error) for words in said)


def _hint(error: Exception) -> str:
    text = str(error)
    if "No space left" in text or "disk" in text.lower():
        return "free space on its file system; nothing is lost, the commit is tried again"
    return "nothing is lost, the commit is tried again"


def memory_store() -> Store:
    """An empty store in memory: the same tables, views and macros, for live batches."""
    return Store(open_memory())
