"""RangeSet against a plain set of positions."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sink.store.ranges import RangeSet

PAIR = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair)))


def positions(ranges: list[tuple[int, int]]) -> set[int]:
    return {position for first, past in ranges for position in range(first, past)}


@given(st.lists(PAIR, max_size=12), PAIR)
def test_like_a_set_of_positions(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges = RangeSet()
    for first, past in added:
        ranges.add(first, past)
    model = positions(added)
    assert positions(list(ranges)) == model
    assert positions(ranges.missing(*asked)) == positions([asked]) - model
    assert ranges.within(*asked) == len(positions([asked]) & model)
    assert ranges.total() == len(model)


@given(st.lists(PAIR, max_size=12))
def test_stays_sorted_disjoint_and_merged(added: list[tuple[int, int]]) -> None:
    listed = list(RangeSet(added))
    assert all(first < past for first, past in listed)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(listed))


def test_touching_ranges_become_one() -> None:
    ranges = RangeSet([(0, 10), (20, 30)])
    ranges.add(10, 20)
    assert list(ranges) == [(0, 30)]


def test_missing_comes_in_order_and_trimmed() -> None:
    assert RangeSet([(10, 20), (30, 40)]).missing(5, 35) == [(5, 10), (20, 30)]


def test_a_copy_is_independent() -> None:
    ranges = RangeSet([(0, 10)])
    other = ranges.copy()
    other.add(10, 20)
    assert list(ranges) == [(0, 10)]
    assert list(other) == [(0, 20)]
