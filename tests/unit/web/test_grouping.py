"""What a map and a matrix say of many, and which flows an end stands for."""

from pathlib import Path
from typing import Any

import pytest

import web.views.flows
import web.views.map  # noqa: F401 (they have addresses then)
from web import grouping
from web.live import Live
from web.page import VIEWS, Page
from web.settings import WebSettings
from web.source import Source


@pytest.fixture
async def page() -> Page:
    settings = WebSettings(socket=Path("s"), run_dir=Path("r"), state=Path("t"))
    given = [("draft", "d"), ("port", "22"), ("since", "1h")]
    return Page(VIEWS["map"], given, Source(Path("s")), Live(Path("s")), settings)


def of(allowed: int = 0, would_deny: int = 0, denied: int = 0) -> dict[str, Any]:
    counts = {"allowed": allowed, "would_deny": would_deny, "denied": denied}
    return {key: {"flows": count, "packets": 2 * count, "bytes": 0} for key, count in counts.items()}


def test_of_too_many_those_that_were_denied_are_in_the_table() -> None:
    many = [of(allowed=9), of(allowed=8, would_deny=1), of(allowed=7), of(allowed=1, denied=1), of(would_deny=1)]
    assert grouping.tabled(many, 5) == many
    assert grouping.tabled(many, 4) == [many[3], many[1], many[4], many[0]]
    assert grouping.said(many, 5) == "the table below says the same"
    assert grouping.said(many, 4) == "the table below says the same of 4, those denied first"


def test_what_is_left_out_is_told_with_its_denials() -> None:
    assert grouping.left_out({"left_out": {"nodes": 0, "edges": 0, **of()}}, "nodes", "edges") == ""
    left = {"left_out": {"nodes": 3, "edges": 1200, **of(allowed=5)}}
    assert grouping.left_out(left, "nodes", "edges") == "; the smallest are left out: 3 nodes, 1,200 edges"
    left = {"left_out": {"nodes": 0, "edges": 2, **of(would_deny=1000, denied=4)}}
    told = "; the smallest are left out: 0 ends, 2 pairs, flows: 1,000 would deny, 4 denied"
    assert grouping.left_out(left, "ends", "pairs") == told


async def test_flows_of_an_end(page: Page) -> None:
    """A draft goes along, and so do time and filters."""
    for group, name, one, either in (
        ("identity", "web", {"from_identity": "web"}, {"identity": "web"}),
        ("address", "10.0.0.1", {"from_ip": "10.0.0.1"}, {"ip": "10.0.0.1"}),
        ("network", "10.0.0.0/24", {"from_ip": "10.0.0.0/24"}, {"ip": "10.0.0.0/24"}),
        ("address", "unknown", {"reason": "malformed"}, {"reason": "malformed"}),
        ("label", "app=web", {"from_label": "app=web"}, {"from_label": "app=web"}),
        ("label", "", {"from_label": "!app"}, {"from_label": "!app"}),
    ):
        page.query["group"] = [group]
        assert grouping.end(page, "from", name) == one
        assert grouping.either_end(page, name) == either
    flows = grouping.flows(page, {"ip": "10.0.0.1"})
    assert flows.partition("?")[2] == "since=1h&draft=d&port=22&ip=10.0.0.1"
    assert page.address("flows").partition("?")[2] == "since=1h&draft=d"


async def test_how_large_a_network_is_is_asked_only_of_networks(page: Page) -> None:
    page.query |= {"prefix_4": ["22"], "label": ["tier"]}
    for group, more in (
        ("identity", {}), ("address", {}), ("network", {"prefix_4": "22", "prefix_6": "64"}),
        ("label", {"label": "tier"}),
    ):  # fmt: skip
        page.query["group"] = [group]
        assert grouping.asked(page) == {**page.asked, "group": group, "by": "flows", **more}
