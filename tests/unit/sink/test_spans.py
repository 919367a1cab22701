"""A span's relation equals sums over its events, whatever of them is rolled up, folded or deleted."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import envelope
from schemas.codes import EventKind
from schemas.verdict import STRIDE
from sink.errors import BusyError, QueryError
from sink.history.pairs import FOR_EVER
from sink.history.spans import Level, Piece, pieces, relation
from sink.store import Commit, Store, memory_store, prepare, rollup
from tests.support import batches
from tests.support.rollups import HOUR, MINUTE, fold, keep, naive, roll_up, stored, without_nothing

ROWS = batches.traffic(1500, seconds=3 * 3600.0).rows
FIRST = int(ROWS["time"].min()) + batches.CLOCK
LAST = int(ROWS["time"].max()) + batches.CLOCK
BEGIN = batches.CLOCK + batches.START
AMIDST = int(ROWS["time"][ROWS["event"] == EventKind.SAMPLE][333]) + batches.CLOCK
"""The moment of a sample: its flow is open."""
NOW = LAST // HOUR * HOUR + rollup.SETTLED
"""Hours up to the one before the last are folded."""


def append(store: Store, rows: np.ndarray, first: int = 0, **who: str) -> None:
    store.append(Commit(batches=[prepare(batches.batch(rows, first * STRIDE, **who))]))


def within(store: Store, since: int | None = None, until: int | None = None, where: str = "true") -> dict[tuple, tuple]:
    """Sums over the whole span."""
    store.connection.execute("BEGIN")
    found = stored(store, relation(store.connection, since, until), FOR_EVER, where)
    store.connection.execute("COMMIT")
    return without_nothing(found)


def expected(since: int = 0, until: float = float("inf"), rows: np.ndarray = ROWS) -> dict[tuple, tuple]:
    return without_nothing(naive(rows, FOR_EVER, (since, until)))


def asked(store: Store, what: str, since: int | None = None, until: int | None = None) -> list[tuple]:
    store.connection.execute("BEGIN")
    rows = store.connection.execute(f"SELECT {what} FROM {relation(store.connection, since, until)}").fetchall()
    store.connection.execute("COMMIT")
    return rows


LEVELS = [Level("h", HOUR, 10 * HOUR, 0), Level("m", MINUTE, FOR_EVER, 0)]


@pytest.mark.parametrize(
    ("span", "found"),
    [
        ((0, HOUR), [Piece("h", 0, HOUR)]),
        ((5, 5), []),
        ((0, FOR_EVER), [Piece("h", 0, 10 * HOUR), Piece("m", 10 * HOUR, FOR_EVER // MINUTE * MINUTE),
                         Piece("events", FOR_EVER // MINUTE * MINUTE, FOR_EVER)]),
        ((5, 9), [Piece("events", 5, 9)]),
        ((5, MINUTE + 9), [Piece("events", 5, MINUTE + 9)]),
        ((HOUR - MINUTE - 1, 2 * HOUR + 1), [Piece("h", HOUR, 2 * HOUR), Piece("m", HOUR - MINUTE, HOUR),
            Piece("events", HOUR - MINUTE - 1, HOUR - MINUTE), Piece("events", 2 * HOUR, 2 * HOUR + 1)]),
    ],
)  # fmt: skip
def test_pieces_are_as_coarse_as_fits(span: tuple[int, int], found: list[Piece]) -> None:
    assert list(pieces(*span, LEVELS)) == found


def test_pieces_of_what_is_deleted_reach_beyond_and_say_so() -> None:
    levels = [Level("h", HOUR, 10 * HOUR, 5 * HOUR), Level("m", MINUTE, FOR_EVER, 7 * HOUR + 1)]
    assert list(pieces(HOUR + MINUTE, 3 * HOUR, levels)) == [
        Piece("h", 2 * HOUR, 3 * HOUR), Piece("h", HOUR, 2 * HOUR, exact=False),
    ]  # fmt: skip
    assert list(pieces(6 * HOUR + 1, 6 * HOUR + MINUTE + 2, levels)) == [
        Piece("m", 6 * HOUR, 6 * HOUR + 2 * MINUTE, exact=False)
    ]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 12 * HOUR), st.integers(0, 12 * HOUR), st.sampled_from([0, 3 * HOUR]), st.integers(0, 8 * HOUR))
def test_pieces_cover_every_moment_once(first: int, length: int, minutes_from: int, events_from: int) -> None:
    levels = [Level("h", HOUR, 10 * HOUR, minutes_from), Level("m", MINUTE, FOR_EVER, events_from)]
    found = sorted(pieces(first, first + length, levels), key=lambda piece: piece.first)
    at = first
    for piece in found:
        assert max(piece.first, first) == at
        assert piece.exact is False or (first <= piece.first and piece.past <= first + length)
        at = min(piece.past, first + length)
    assert at == first + length


@pytest.fixture(scope="module", params=["nothing", "some", "rolled", "folded"])
def summed(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of ROWS of which so much is rolled up; only to be asked."""
    store = memory_store()
    append(store, ROWS)
    if request.param == "some":
        rollup.step(store, 700)
    elif request.param != "nothing":
        roll_up(store)
    if request.param == "folded":
        fold(store, NOW)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (None, None),
        (FIRST // HOUR * HOUR + HOUR, None),
        (FIRST + 61 * MINUTE + 7, None),
        (FIRST + 61 * MINUTE + 7, FIRST + 61 * MINUTE + 9_000_000_000),
        (FIRST + 30 * MINUTE, LAST - 1),
        (None, FIRST + 95 * MINUTE),
        (LAST, None),
        (LAST + 1, None),
        (FIRST + 9, FIRST + 3),
        (AMIDST, None),
        (None, AMIDST),
        (AMIDST, AMIDST + 1),
    ],
)
def test_a_span_is_the_sum_of_its_events(summed: Store, since: int | None, until: int | None) -> None:
    assert within(summed, since, until) == expected(since or 0, float("inf") if until is None else until)
    assert within(summed, since, until, "NOT detail") == {}


@pytest.mark.once
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_came_and_was_rolled_up_counts_once(data: st.DataObject) -> None:
    """Batches in random order, so with holes; some become gaps, are rolled up past, and are filled later."""
    rows = ROWS[:120]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), min_size=2, max_size=8)))
    edges = [0, *cuts, len(rows)]
    here = np.zeros(len(rows), bool)
    store = memory_store()
    for first, past in data.draw(st.permutations(list(pairwise(edges)))):
        append(store, rows[first:past], first)
        here[first:past] = True
        ring = store.state.rings["n1", "r1"]
        if data.draw(st.booleans()):
            ring.acknowledged = len(rows) * STRIDE
            store.declare_gaps([(ring, *hole, "a test") for hole in ring.holes()])
        if data.draw(st.booleans()):
            roll_up(store, data.draw(st.integers(5, len(rows))))
        assert within(store) == expected(rows=rows[here])
    store.close()


def test_two_rings_do_not_mix(memory: Store) -> None:
    append(memory, ROWS[:700])
    append(memory, ROWS[:700], node="n1", ring="r2")  # the same flow numbers
    rollup.step(memory, 300)
    since = FIRST + 31 * MINUTE + 7
    once = expected(since, rows=ROWS[:700])
    assert within(memory, since) == {key: tuple(2 * n for n in value) for key, value in once.items()}


@pytest.mark.parametrize("rolled", [False, True])
def test_flows_open_at_the_beginning_are_counted_beside(memory: Store, rolled: bool) -> None:
    append(memory, ROWS)
    if rolled:
        roll_up(memory)
    since = AMIDST
    began = {
        int(row["flow_id"]) for row in ROWS if row["event"] == EventKind.NEW and row["time"] + batches.CLOCK < since
    }
    inside = {int(row["flow_id"]) for row in ROWS if row["time"] + batches.CLOCK >= since}
    assert len(began & inside) > 0
    assert asked(memory, "sum(crossing), sum(flows)", since) == [(len(began & inside), len(inside - began))]
    assert asked(memory, "sum(crossing)") == [(0,)]


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("cut", [1, 61, 62, 100, 121, 3631])
def test_a_clock_set_back_comes_by_twice(memory: Store, rolled: bool, cut: int) -> None:
    """The minute that is cut may hold events of both times; those between are needed for the differences."""
    told = ((0, 0, 1), (60, 0, 4), (3630, 0, 10), (3661, HOUR, 30), (3720, HOUR, 40))  # s, set back by, packets so far
    for number, (at, back, packets) in enumerate(told):
        row = batches.verdict(time=batches.START + at * 10**9, event=2 if at else 1, packets_original=packets)
        where = {"node": "n1", "ring": "r1", "start": number * STRIDE}
        data = envelope.encode(row, clock=batches.CLOCK - back, rev=1, **where)
        memory.append(Commit(batches=[prepare(envelope.decode(data))]))
    if rolled:
        roll_up(memory)
    adds = {0: 1, 60: 3, 3630: 6, 61: 20, 120: 10}
    packets = "coalesce(sum(packets_original), 0)::UBIGINT"
    assert asked(memory, packets, None, BEGIN + cut * 10**9) == [(sum(n for at, n in adds.items() if at < cut),)]
    assert asked(memory, packets, BEGIN + cut * 10**9) == [(sum(n for at, n in adds.items() if at >= cut),)]


def test_parts_of_a_minute_know_what_another_node_counts(memory: Store) -> None:
    rows = np.concatenate([
        batches.verdict(),
        batches.verdict(event=EventKind.SAMPLE, packets_original=5, time=batches.START + 10**10),
        batches.verdict(event=EventKind.END, packets_original=6, time=batches.START + 2 * 10**10),
    ])  # fmt: skip
    for node in ("n1", "n2"):
        append(memory, rows[:2], node=node, ring="r")
    roll_up(memory)
    for node in ("n1", "n2"):
        append(memory, rows[2:], 2, node=node, ring="r")
    for _ in ("not rolled up", "rolled up"):
        for since, counted in ((BEGIN - 1, (1, 0, 6)), (BEGIN + 1, (0, 1, 5))):
            for which in ("duplicate", "NOT duplicate"):
                sums = (f"sum({name}) FILTER ({which})" for name in ("flows", "crossing", "packets_original"))
                assert asked(memory, ", ".join(sums), since) == [counted]
        roll_up(memory)


def test_the_end_of_all_time_holds_nothing_and_beyond_it_is_refused(memory: Store) -> None:
    append(memory, ROWS[:10])
    assert asked(memory, "count(*)", FOR_EVER) == [(0,)]
    with pytest.raises(QueryError):
        asked(memory, "count(*)", FOR_EVER + 1)


def test_deleted_events_leave_whole_minutes_that_say_so(memory: Store) -> None:
    append(memory, ROWS)
    keep(memory, keep_age=1.0)
    since = FIRST + 61 * MINUTE + 7
    start = since // MINUTE * MINUTE
    assert within(memory, since) == expected(start)
    assert within(memory, since, where="detail") == expected(start + MINUTE)
    assert within(memory) == expected()
    assert within(memory, where="NOT detail") == {}


def test_deleted_minutes_leave_whole_hours_that_say_so(memory: Store) -> None:
    append(memory, ROWS)
    roll_up(memory)
    fold(memory)
    keep(memory, keep_age=1.0, keep_minutes=1.0)
    since = FIRST + 61 * MINUTE + 7
    start = since // HOUR * HOUR
    assert within(memory, since) == expected(start)
    assert within(memory, since, where="detail") == expected(start + HOUR)


def test_a_flow_whose_beginning_is_deleted_is_not_taken_for_exact(memory: Store) -> None:
    """Its event in a cut minute holds all it ever did, and says so."""
    since = batches.CLOCK + batches.START + HOUR + 5
    rows = np.concatenate([
        batches.verdict(packets_original=3),
        batches.verdict(event=EventKind.END, packets_original=10, time=batches.START + HOUR + 10),
    ])  # fmt: skip
    append(memory, rows)
    roll_up(memory)
    assert asked(memory, "packets_original, detail", since)[0] == (7, True)
    memory.connection.execute("DELETE FROM store.verdicts WHERE event = 1")
    assert asked(memory, "packets_original, detail", since)[0] == (10, False)


def test_an_empty_store_has_no_rows(memory: Store) -> None:
    assert asked(memory, "count(*)") == asked(memory, "count(*)", 5, 9) == [(0,)]


def test_it_reads_the_snapshot_of_its_transaction(on_disk: Any) -> None:
    store = on_disk()
    append(store, ROWS[:900])
    roll_up(store)
    cursor = store.cursor()
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    sql = f"SELECT sum(flows) FROM {relation(cursor)}"
    before = cursor.execute(sql).fetchone()
    append(store, ROWS[900:], 900)
    roll_up(store)
    assert cursor.execute(sql).fetchone() == before
    cursor.execute("COMMIT")
    cursor.close()
    store.close()


@pytest.mark.once
@settings(max_examples=15, deadline=None)
@given(st.integers(0, LAST - FIRST), st.integers(0, LAST - FIRST), st.integers(0, len(ROWS)), st.booleans())
def test_any_span_at_any_state(begin: int, length: int, rolled: int, folded: bool) -> None:
    store = memory_store()
    append(store, ROWS)
    rollup.step(store, max(1, rolled))
    if folded:
        fold(store, NOW)
    since, until = FIRST + begin, FIRST + begin + length
    assert within(store, since, until) == expected(since, until)
    store.close()


def test_a_history_far_from_rolled_up_is_not_read_into_memory(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    append(memory, ROWS)
    monkeypatch.setattr("sink.history.spans.WAITING_MOST", len(ROWS) - 1)
    with pytest.raises(BusyError, match=r"^1,500 events are not summed up yet$"):
        asked(memory, "count(*)")
    memory.connection.execute("ROLLBACK")
    rollup.step(memory, 1)
    assert asked(memory, "sum(flows)") == [(500,)]
