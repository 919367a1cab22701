"""Places on the map: the same for the same nodes, kept, and apart."""

import itertools
import math

import pytest

from web.layout import MOST, Layout, group_of, usual_key


def laid_out(groups: dict[str, str]) -> Layout:
    layout = Layout()
    layout.place(groups)
    return layout


def test_the_order_of_nodes_plays_no_part() -> None:
    groups = {f"n{i}": f"g{i % 5}" for i in range(60)}
    assert laid_out(groups).places == laid_out(dict(reversed(groups.items()))).places


def test_what_is_there_stays() -> None:
    layout = laid_out({"a": "x", "b": "x", "c": "y"})
    before = dict(layout.places)
    layout.place({"a": "x", "aa": "x", "c": "y", "d": "z", "e": ""})
    assert {name: layout.places[name] for name in before} == before
    assert set(layout.places) == {"a", "aa", "b", "c", "d", "e"}


def test_no_two_nodes_are_close() -> None:
    for groups in (
        {f"n{i}": "" for i in range(500)},
        {f"n{i}": f"g{i % 25}" for i in range(500)},
        {f"n{i}": f"g{i}" for i in range(8)},
    ):
        points = laid_out(groups).places.values()
        assert min(math.dist(a, b) for a, b in itertools.combinations(points, 2)) > 30


def test_the_space_between_nodes_shrinks_with_their_number() -> None:
    """Of a full disc that fills 450 pixels, whatever the number: a share of its area each."""
    for many in (50, 500):
        layout = laid_out({f"n{i}": "" for i in range(many)})
        wide = layout.spacing(list(layout.places), 1100, 450)
        assert wide == pytest.approx(math.sqrt(math.pi * 225**2 / many), rel=0.15)
    assert laid_out({"a": ""}).spacing(["a"], 1100, 450) > 450
    assert laid_out({}).spacing([], 1100, 450) > 450


def test_places_of_nodes_long_gone_are_forgotten_when_they_are_too_many() -> None:
    layout = laid_out({f"a{i}": "x" for i in range(MOST - 1)})
    layout.place({"b": "y"})
    assert len(layout.places) == MOST
    layout.place({"b": "y", "c": "y"})
    assert set(layout.places) == {"b", "c"}
    assert layout.places == laid_out({"b": "y", "c": "y"}).places
    many = {f"d{i}": "x" for i in range(MOST + 1)}
    assert layout.place(many) is None and layout.places.keys() == many.keys()


def test_groups_are_named_while_they_are_there() -> None:
    layout = laid_out({"a": "x", "b": "x", "c": "y", "d": "y", "e": "z", "f": ""})
    assert [disc.name for disc in layout.groups(["a", "b", "c", "d", "e", "f"])] == ["x", "y"]
    assert [disc.name for disc in layout.groups(["b", "c", "d"])] == ["y"]


def test_a_few_without_a_group_stand_alone() -> None:
    """As far from each other as groups are; one after the other no more than a dozen."""
    layout = laid_out({"frontend": "app=frontend", "api": "app=api", "host": "", "world": "", "intruder": ""})
    assert len(layout.discs) == 5
    assert min(math.dist(a, b) for a, b in itertools.combinations(layout.places.values(), 2)) > 100
    for i in range(20):
        layout.place({f"n{i}": ""})
    assert len(layout.discs) == 2 + 12 + 1


def test_groups() -> None:
    assert group_of("frontend", {"app": "web", "tier": "1"}, "app") == "app=web"
    assert group_of("frontend", {"tier": "1"}, "app") == ""
    assert group_of("10.0.1.10", {}, "app") == "10.0.1.0/24"
    assert group_of("fd00::1", {}, "") == "fd00::/64"
    assert usual_key([{"app": "a", "tier": "b"}, {"tier": "c"}, {}]) == "tier"
    assert usual_key([{"b": "1", "a": "1"}]) == "a"
    assert usual_key([{}]) == ""
