"""What the store holds, mirrored in memory: the sink is the only writer, so this is read once, at opening."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import duckdb

from sink.store.ranges import RangeSet


@dataclass
class Ring:
    """One ring of one node. Positions in bytes."""

    id: int
    node: str
    name: str
    stride: int
    held: RangeSet = field(default_factory=RangeSet)
    gaps: RangeSet = field(default_factory=RangeSet)
    acknowledged: int = 0  # JetStream has everything before this position
    closed: bool = False  # `acknowledged` is its end
    named: set[int] = field(default_factory=set)  # revisions whose rules and identities are stored
    rolled: RangeSet = field(default_factory=RangeSet)
    deleted: int = 0  # verdicts were deleted below this position
    clock: int | None = None  # ns that wall clock is ahead of the ring's own, as last noted
    heard: float = field(
        default_factory=time.monotonic, compare=False
    )  # when its last loss record came or, of one that came before this state was read, was written

    def copy(self) -> "Ring":
        """An independent one."""
        return replace(self, held=self.held.copy(), gaps=self.gaps.copy(), named=set(self.named),
                       rolled=self.rolled.copy())  # fmt: skip

    def holes(self) -> list[tuple[int, int]]:
        """What was acknowledged, but is neither held nor known to be a gap."""
        both = self.held.copy()
        for first, past in self.gaps:
            both.add(first, past)
        return both.missing(0, self.acknowledged)


@dataclass
class Stream:
    """One incarnation of a JetStream stream, read up to `sequence`."""

    id: int
    name: str
    created: str
    sequence: int = 0


@dataclass
class State:
    """All rings and the current incarnation of each stream."""

    rings: dict[tuple[str, str], Ring] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    next_ring: int = 1
    next_stream: int = 1
    range_rows: int = 0  # rows of store.ranges, store.rolled and store.watermarks: when to merge them
    read: float = field(default_factory=time.monotonic, compare=False)  # when: nobody could be heard before


def load_deleted(connection: duckdb.DuckDBPyConnection, rings: Iterable[Ring]) -> None:
    """Set `deleted` of each of the rings."""
    found = connection.execute("SELECT ring, max(past) FROM store.retention WHERE past IS NOT NULL GROUP BY ring")
    deleted = dict(found.fetchall())
    for ring in rings:
        ring.deleted = deleted.get(ring.id, 0)


def _heard(at: int) -> float:
    """A moment of the wall clock, ns since 1970, by time.monotonic(); one that is yet to come: now."""
    return time.monotonic() - max(0, time.time_ns() - at) / 1e9


def load(connection: duckdb.DuckDBPyConnection) -> State:
    """Read the state from the tables."""
    state = State()
    by_id: dict[int, Ring] = {}
    for number, node, name, stride, first in connection.execute(
        "SELECT id, node, ring, stride, epoch_ns(first_stored) FROM store.rings"
    ).fetchall():
        ring = Ring(number, node, name, stride, heard=_heard(first))
        state.rings[node, name] = by_id[number] = ring
        state.next_ring = max(state.next_ring, number + 1)
    for number, first, past in connection.execute("SELECT * FROM store.ranges ORDER BY ring, first").fetchall():
        by_id[number].held.add(first, past)
        state.range_rows += 1
    for number, first, past in connection.execute("SELECT * FROM store.rolled ORDER BY ring, first").fetchall():
        by_id[number].rolled.add(first, past)
        state.range_rows += 1
    for number, first, past in connection.execute("SELECT ring, first, past FROM store.gaps").fetchall():
        by_id[number].gaps.add(first, past)
    for number, consumed, last in connection.execute(
        "SELECT ring, max(consumed), epoch_ns(max(time)) FROM store.loss GROUP BY ring"
    ).fetchall():
        by_id[number].acknowledged, by_id[number].heard = consumed, _heard(last)
    for number, past in connection.execute("SELECT ring, past FROM store.policy WHERE kind = 'closed'").fetchall():
        by_id[number].acknowledged, by_id[number].closed = max(by_id[number].acknowledged, past), True
    load_deleted(connection, by_id.values())
    for number, clock in connection.execute(
        "SELECT ring, arg_max(clock, position) FROM store.clocks GROUP BY ring"
    ).fetchall():
        by_id[number].clock = clock
    for number, revision in connection.execute(
        "SELECT ring, revision FROM store.rules UNION SELECT ring, revision FROM store.identities"
    ).fetchall():
        by_id[number].named.add(revision)
    rows = connection.execute(
        "SELECT s.id, s.stream, s.created, coalesce(max(w.sequence), 0), count(w.sequence) FROM store.streams AS s"
        " LEFT JOIN store.watermarks AS w ON w.stream = s.id GROUP BY ALL ORDER BY s.id"
    ).fetchall()
    for number, name, created, sequence, count in rows:  # the last incarnation of a name is the current one
        state.streams[name] = Stream(number, name, created, sequence)
        state.next_stream = max(state.next_stream, number + 1)
        state.range_rows += count
    return state
