"""Pages that are read before they are asked for are the ones that would be read then, and not kept for long."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from schemas import http
from sink.api import ahead
from sink.history.reading import Reading
from sink.store import Commit, memory_store, prepare
from tests.support import batches, served
from tests.support.served import Asker

ROWS = batches.traffic(900, seed=11).rows
COUNT = len(served.flows(ROWS))


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    store = memory_store()
    store.append(Commit(batches=[prepare(batches.batch(ROWS))]))
    async with served.asking(store) as made:
        yield made
    store.close()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Reading]:
    """Questions that were asked of the store."""
    found: list[Reading] = []
    enter = Reading.__enter__

    def entered(reading: Reading) -> Reading:
        found.append(reading)
        return enter(reading)

    monkeypatch.setattr(Reading, "__enter__", entered)
    return found


@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_pages_are_those_that_would_be_read(
    asker: Asker, begun: list[Reading], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    asked: dict[str, Any] = {"sort": "bytes", "order": order}
    together = await asker.pages("flows", "flows", **asked, limit=40)
    assert (len(together), len(begun)) == (COUNT, 1)
    monkeypatch.setattr(ahead, "STANDS", -1.0)
    assert await asker.pages("flows", "flows", **asked, limit=29) == together
    assert len(begun) == 1 + -(-COUNT // 29)


async def test_it_goes_on_after_the_last_that_was_read(
    asker: Asker, begun: list[Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pages are read together."""
    monkeypatch.setattr("sink.history.flows.TOGETHER", 2)
    pages = await asker.pages("flows", "flows", sort="packets", limit=40)
    assert (len(pages), len({flow["flow"] for flow in pages})) == (COUNT, COUNT)
    assert len(begun) == -(-COUNT // 80)


async def test_pages_by_time_are_read_one_by_one(asker: Asker, begun: list[Reading]) -> None:
    await asker.pages("flows", "flows", limit=100)
    assert len(begun) == -(-COUNT // 100)


async def test_another_question_has_none_of_it(asker: Asker) -> None:
    page = await asker.get("flows", sort="bytes", limit=30)
    for other in ({"sort": "packets"}, {"sort": "bytes", "decision": "deny"}, {"sort": "bytes", "order": "asc"}):
        said = await asker.refused(400, "flows", {**other, "limit": 30, "cursor": page["next"]})
        assert "of another question" in said
    (first, *_) = (await asker.get("flows", sort="bytes", limit=7, cursor=page["next"]))["flows"]
    assert (await asker.get("flows", sort="bytes", limit=30, cursor=page["next"]))["flows"][0] == first


def test_what_is_kept_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ahead.Ahead(msgspec.json.Encoder())
    now = 1000.0
    monkeypatch.setattr("sink.api.ahead.time.monotonic", lambda: now)
    monkeypatch.setattr(ahead, "KEPT", 90)  # two pages

    def read(port: int) -> None:
        pages = [{"flows": [port] * 10, "next": f"{port}-1"}, {"flows": [port] * 10, "next": None}]
        assert kept.keep(http.FlowsAsked(port=[str(port)]), pages) == msgspec.json.encode(pages[0])

    def there(port: int) -> bool:
        return kept.get(http.FlowsAsked(port=[str(port)], cursor=f"{port}-1")) is not None

    read(1)
    read(2)
    read(2)  # again: counts once
    assert (there(1), there(2)) == (True, True)
    read(3)
    assert (there(1), there(2), there(3)) == (False, True, True)
    now += 59
    read(4)
    assert (there(2), there(3), there(4)) == (False, True, True)
    now += 2
    assert (there(3), there(4)) == (False, True)
    assert kept.get(http.FlowsAsked(port=["4"])) is None
