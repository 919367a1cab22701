"""When a hole is a gap."""

import pytest

from sink.gaps import HoleWatch
from sink.store.ranges import RangeSet
from sink.store.state import Ring, State


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def state(closed: bool = False, gaps: RangeSet | None = None) -> State:
    """A ring that was acknowledged up to 100 and lacks [10, 20) and [90, 100)."""
    ring = Ring(1, "n", "r", 10, RangeSet([(0, 10), (20, 90), (120, 150)]), gaps or RangeSet(), 100, closed)
    return State(rings={("n", "r"): ring})


def test_holes_are_below_the_acknowledged_position() -> None:
    assert [hole[1:] for hole in HoleWatch.holes(state())] == [(10, 20), (90, 100)]
    assert [hole[1:] for hole in HoleWatch.holes(state(gaps=RangeSet([(10, 20)])))] == [(90, 100)]


def test_a_live_ring_waits_for_the_deadline(clock: Clock) -> None:
    watch, holes = HoleWatch(30, clock), HoleWatch.holes(state())
    assert watch.ripe(holes, last=7, read=7) == []
    clock.now += 29
    assert watch.ripe(holes, last=9, read=9) == []
    clock.now += 1
    assert [(first, past) for _, first, past, _ in watch.ripe(holes, last=9, read=9)] == [(10, 20), (90, 100)]


def test_a_closed_ring_waits_only_until_all_is_read(clock: Clock) -> None:
    watch, holes = HoleWatch(30, clock), HoleWatch.holes(state(closed=True))
    assert watch.ripe(holes, last=7, read=5) == []
    assert watch.ripe(holes, last=50, read=6) == []
    assert len(watch.ripe(holes, last=50, read=7)) == 2


def test_no_deadline_counts_while_the_stream_is_not_read(clock: Clock) -> None:
    watch, holes = HoleWatch(30, clock), HoleWatch.holes(state())
    watch.ripe(holes, last=7, read=5)
    clock.now += 1000
    assert watch.ripe(holes, last=7, read=6) == []
    assert len(watch.ripe(holes, last=7, read=7)) == 2


def test_a_hole_that_changed_is_a_new_one(clock: Clock) -> None:
    watch, holes = HoleWatch(30, clock), HoleWatch.holes(state())
    watch.ripe(holes, last=7, read=7)
    clock.now += 40
    ring = holes[0][0]
    assert watch.ripe([(ring, 10, 15)], last=7, read=7) == []
