"""A process that views: python -m tests.bench.viewing VIEWERS. It says `ready`, takes a sink's socket as a line of its
standard input, and views until that ends.

A viewer follows live verdicts, every other one the denied ones alone, and has a view of the page open that no other one
has: with the histogram above it, of a span of its own, some with filters. What it asks, and when, is the page's own
code: `Page` and `Shown`, the parameters and pauses of each view, one connection that brings news to all. Nothing is
drawn. Now is the newest verdict that was seen: made-up traffic runs through hours in seconds. Prints what was seen, the
answers of each path, and what was refused and why.
"""

import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from schemas import times
from web import grouping, timeline
from web.errors import WebError
from web.live import Live
from web.page import VIEWS, Page
from web.settings import WebSettings
from web.source import Query, Source
from web.span import Span, text
from web.views import flows, matrix, overview, policy
from web.views import map as map_

Asks = Callable[[Page, datetime], tuple[str, Query]]
"""Page, now → path and parameters."""


def _overview(page: Page, now: datetime) -> tuple[str, Query]:
    return "overview", {"since": "0", **page.span.query, "top": str(overview.TOP)}


def _map(page: Page, now: datetime) -> tuple[str, Query]:
    return "map", {**grouping.asked(page), "nodes": str(map_.NODES), "edges": str(map_.EDGES)}


def _matrix(page: Page, now: datetime) -> tuple[str, Query]:
    ports = page.get("ports") or "false"
    return "matrix", {
        **grouping.asked(page), "rows": str(matrix.ROWS), "columns": str(matrix.COLUMNS), "ports": ports,
    }  # fmt: skip


def _flows(page: Page, now: datetime) -> tuple[str, Query]:
    return "flows", {**page.asked, "limit": str(flows.LIMIT)}


def _policy(page: Page, now: datetime) -> tuple[str, Query]:
    return "policy", page.span.query


def _revisions(page: Page, now: datetime) -> tuple[str, Query]:
    return "policy/revisions", {"limit": str(policy.REVISIONS)}


def _histogram(page: Page, now: datetime) -> tuple[str, Query]:
    return "histogram", {**page.filters, **page.span.around(now).query, "buckets": str(timeline.BUCKETS)}


LOADS: dict[str, tuple[tuple[Asks, float], ...]] = {
    "overview": ((_overview, overview.EVERY),),
    "map": ((_map, map_.EVERY),),
    "matrix": ((_matrix, matrix.EVERY),),
    "flows": ((_flows, flows.EVERY),),
    "policy": ((_policy, policy.EVERY), (_revisions, policy.EVERY_REVISIONS)),
}
"""View → what it asks, and each how many seconds at most."""
OPENED: tuple[tuple[str, dict[str, str]], ...] = (
    ("overview", {}), ("map", {}), ("matrix", {"ports": "true"}), ("flows", {}), ("policy", {}),
    ("map", {"group": "address"}),
)  # fmt: skip
SPANS = ("15m", "1h", "6h", "all")
FILTERS = ({}, {"decision": "deny"}, {"port": "443/tcp"}, {}, {"identity": "clients-7"})
"""Dealt in turn; five, so that each view has several."""


def addresses(count: int) -> list[tuple[str, dict[str, str]]]:
    """View and parameters of each viewer, 24 at most; no two are equal."""
    looks = zip(itertools.product(SPANS, OPENED), itertools.cycle(FILTERS), strict=False)
    found = [
        (view, {"since": since, **given, **(filters if VIEWS[view].filters else {})})
        for (since, (view, given)), filters in itertools.islice(looks, count)
    ]
    assert len(found) == count
    return found


class _Viewing:
    """All viewers of a sink."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1/", timeout=60)
        self._source, self._live = Source(socket), Live(socket)
        self._settings = WebSettings(socket, socket.parent, socket.parent)
        self._begun = asyncio.Event()
        self._now = datetime.fromtimestamp(0, UTC)
        self.seen: Counter[str] = Counter()

    async def until(self, end: asyncio.Future[Any]) -> None:
        """View."""
        looks = addresses(int(sys.argv[1]))
        tasks = [asyncio.create_task(self._follow(i % 2 == 1)) for i in range(len(looks))]
        tasks += [asyncio.create_task(self._live.run()), asyncio.create_task(self._open(looks, pages := []))]
        await end
        for page in pages:
            page.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.close()
        await self._http.aclose()

    async def _follow(self, denied: bool) -> None:
        async with self._http.stream("GET", "verdicts/live", params={"decision": "deny"} if denied else {}) as answer:
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and name == "verdicts":
                    self.seen["verdicts"] += line.count('"position"')
                    self._now = max(self._now, times.moment(line.rpartition('"time":"')[2].partition('"')[0]))
                    self._begun.set()
                elif line.startswith("data: ") and name == "dropped":
                    self.seen["left out"] += json.loads(line[6:])["count"]
                elif line.startswith("data: ") and name == "error":
                    self.seen[f"follows no longer: {json.loads(line[6:])['error']}"] += 1

    async def _open(self, looks: list[tuple[str, dict[str, str]]], pages: list[Page]) -> None:
        """As soon as there is something to look at."""
        await self._begun.wait()
        for view, parameters in looks:
            page = Page(VIEWS[view], list(parameters.items()), self._source, self._live, self._settings)
            pages.append(page)
            for asks, every in ((_histogram, timeline.EVERY), *LOADS[view]):
                self._shows(page, asks, every)

    def _shows(self, page: Page, asks: Asks, every: float) -> None:
        since = page.span.since

        async def load() -> None:
            if since != "all":
                page.span = Span(text(self._now - timedelta(seconds=times.duration(since))))
            path, query = asks(page, self._now)
            try:
                found = await page.ask(path, query)
            except WebError as error:
                self.seen[f"{path}: {error}"] += 1
                raise
            self.seen[path] += 1
            if path == "map":
                shown.every = map_.every(len(found["edges"]))

        shown = page.shows(load, every)


async def _view() -> None:
    print("ready", flush=True)
    viewing = _Viewing(Path(sys.stdin.readline().strip()))
    await viewing.until(asyncio.get_running_loop().run_in_executor(None, sys.stdin.read))
    print(json.dumps(viewing.seen))


if __name__ == "__main__":
    asyncio.run(_view())
