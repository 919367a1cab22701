"""Verdicts as server-sent events: what was stored, to whoever wants it, and how many are left out."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from schemas.verdict import STRIDE
from sink import api
from sink.api import live
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.support import batches, served
from tests.support.until import PATIENCE, until

ROWS = batches.traffic(600, seed=3).rows


@pytest.fixture
async def http(memory: Store, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    memory.append(Commit(records=[batches.policy_record()]))

    async def status() -> dict[str, Any]:
        return served.TOLD

    settings = SinkSettings(Path("unused"), "", tmp_path)
    made = api.Api(memory, settings, status)
    transport = httpx.AsyncHTTPTransport(uds=str(settings.socket))
    async with (
        served.listening(made.app, settings.socket),
        httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1", timeout=30) as client,
    ):
        yield client
        made.close()


def put(store: Store, first: int, past: int) -> None:
    store.append(Commit(batches=[prepare(batches.batch(ROWS[first:past], first * STRIDE))]))


class Stream:
    """Events of one viewer."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self) -> tuple[str, Any]:
        """Name and data of the next event; comments are passed over."""
        name = ""
        while True:
            line = await asyncio.wait_for(anext(self._lines), PATIENCE)
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                return name, json.loads(line[6:])


@asynccontextmanager
async def viewing(http: httpx.AsyncClient, path: str = "verdicts/live", **query: Any) -> AsyncIterator[Stream]:
    async with http.stream("GET", path, params=query, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer)


async def test_what_is_stored_is_told_once_as_verdicts_has_it(http: httpx.AsyncClient, memory: Store) -> None:
    put(memory, 0, 100)
    async with viewing(http) as all_of_it, viewing(http, "verdicts", decision="deny") as denied:
        await asyncio.to_thread(put, memory, 100, 200)
        name, rows = await all_of_it.next()
        assert name == "verdicts"
        expected = served.records(ROWS[:200])[100:]
        assert rows == sorted(expected, key=lambda v: (v["time"], v["position"]))
        assert (await denied.next())[1] == [v for v in rows if v["decision"] == "deny"]
        await asyncio.to_thread(put, memory, 150, 210)  # the first 50 came already
        assert [v["position"] for v in (await all_of_it.next())[1]] == [n * STRIDE for n in range(200, 210)]
    status = (await http.get("status")).json()
    assert status == served.TOLD


async def test_more_than_a_viewer_is_sent_is_counted(
    http: httpx.AsyncClient, memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "AT_ONCE", 20)
    async with viewing(http, decision="allow") as stream:
        await asyncio.to_thread(put, memory, 0, 300)
        allowed = sum(v["decision"] == "allow" for v in served.records(ROWS[:300]))
        assert await stream.next() == ("dropped", {"count": allowed - 20, "reason": "rate"})
        assert len((await stream.next())[1]) == 20


async def test_a_viewer_that_does_not_read_is_told_what_it_missed() -> None:
    viewer = live.Viewer("TRUE")
    lost = [viewer.give(b"[]", 7) for _ in range(live.QUEUE + 3)]
    assert lost == [0] * live.QUEUE + [7] * 3
    events = viewer.events()
    assert await anext(events) == b": ztlens\n\n"
    assert await anext(events) == b'event: dropped\ndata: {"count":21,"reason":"slow"}\n\n'
    assert await anext(events) == b"event: verdicts\ndata: []\n\n"
    viewer.end()
    assert len([event async for event in events]) == live.QUEUE - 1  # the end took the place of one


async def test_what_nobody_had_time_to_look_at_is_counted(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BACKLOG", 150)
    viewers = live.Live(memory)
    one = viewers.join("TRUE")
    for first in range(0, 500, 100):
        put(memory, first, first + 100)
    await asyncio.sleep(0)  # the loop hears of all before anything is looked at
    assert one.left_out == {"busy": 400}
    assert viewers.counters == {"viewers": 1, "live_sent": 0, "live_left_out": 400}
    viewers.leave(one)
    viewers.close()
    assert memory.listener is None


async def test_a_look_that_fails_is_told_and_the_next_goes_on(
    http: httpx.AsyncClient, memory: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "REST_MOST", 0.1)
    whole, full = pa.concat_tables, True

    def concat_tables(*given: Any, **how: Any) -> pa.Table:
        if full and threading.current_thread().name.startswith("live"):
            raise pa.ArrowMemoryError("malloc of size 1 failed")
        return whole(*given, **how)

    monkeypatch.setattr(pa, "concat_tables", concat_tables)
    async with viewing(http) as stream:
        await asyncio.to_thread(put, memory, 0, 30)
        await until(lambda: caplog.records, "a line of the log")
        full = False
        await asyncio.to_thread(put, memory, 30, 40)
        assert await stream.next() == ("dropped", {"count": 30, "reason": "failed"})
        assert len((await stream.next())[1]) == 10
    (told,) = caplog.records
    assert told.getMessage() == "live verdicts that could not be looked at are left out"
    assert told.exc_info is not None and told.exc_info[0] is pa.ArrowMemoryError


async def test_who_leaves_is_forgotten(http: httpx.AsyncClient, memory: Store) -> None:
    async with viewing(http):
        assert memory.listener is not None
    for _ in range(100):
        if memory.listener is None:
            break
        await asyncio.sleep(0.05)
    assert memory.listener is None
    put(memory, 0, 10)


async def test_viewers_have_a_limit_and_bad_words_are_refused_before_the_first_byte(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "VIEWERS", 1)
    async with viewing(http):
        answer = await http.get("verdicts/live")
        assert (answer.status_code, answer.json()["error"]) == (503, "1 viewers follow already")
    for query in ({"decision": "maybe"}, {"where": "nope = 1"}, {"since": "1h"}, {"limit": "3"}, {"where": "1) OR (1"}):
        answer = await http.get("verdicts/live", params=query)
        assert answer.status_code == 400, query
        assert set(answer.json()) == {"error", "hint", "exit"}
    live_span = await http.get("verdicts", params={"since": "1h"}, headers={"Accept": "text/event-stream"})
    assert live_span.status_code == 400


async def test_words_that_take_too_long_end_their_stream_alone(
    http: httpx.AsyncClient, memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PATIENCE", 10.0)
    endless = "packets > (SELECT sum(a.range * b.range) FROM range(100000000) a, range(100000000) b)"
    async with viewing(http) as good, viewing(http, where=endless) as bad:
        await asyncio.to_thread(put, memory, 0, 30)
        assert len((await good.next())[1]) == 30
        name, said = await bad.next()
        assert (name, set(said)) == ("error", {"error", "hint", "exit"})
        await asyncio.to_thread(put, memory, 30, 40)
        assert len((await good.next())[1]) == 10
