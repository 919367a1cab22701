"""One stream of the sink's for all pages, over a real socket; and none for nobody."""

import asyncio
from pathlib import Path

import pytest

from schemas.verdict import STRIDE
from sink import api
from sink.api import live as sinks
from sink.settings import SinkSettings
from sink.store import Commit, Store, memory_store, prepare
from tests.support import batches, served
from tests.support.until import until
from web import live as ours
from web.live import Beat, Live

ROWS = batches.traffic(20, seed=4).rows


def put(store: Store, first: int, past: int) -> None:
    store.append(Commit(batches=[prepare(batches.batch(ROWS[first:past], first * STRIDE))]))


def sink_at(socket: Path) -> tuple[Store, api.Api]:
    """It does not listen yet."""
    store = memory_store()
    settings = SinkSettings(Path("unused"), "", socket.parent)
    return store, api.Api(store, settings, lambda: asyncio.sleep(0, served.TOLD))


async def test_the_sink_is_followed_while_somebody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what was stored, that the sink is away and back; the stream ends with the next line for nobody."""
    monkeypatch.setattr(sinks, "BEAT", 0.1)
    socket = tmp_path / "sink.sock"
    store, sink = sink_at(socket)
    live, beats = Live(socket), list[Beat]()
    following = asyncio.create_task(live.run())
    async with served.listening(sink.app, socket):
        assert not live.away, "nobody asked whether it is there"
        live.listen(beats.append)
        await until(lambda: sink.live.counters["viewers"] == 1, "the stream")
        await asyncio.to_thread(put, store, 0, 10)
        await until(lambda: "news" in beats, "news")
        other = beats.count  # does nothing with what it hears
        live.listen(other)
        live.leave(other)
        beats.clear()
        await asyncio.to_thread(put, store, 10, 20)
        await until(lambda: "news" in beats, "news: one listens still")
        live.leave(beats.append)
        await until(lambda: sink.live.counters["viewers"] == 0, "the end of the stream")

        beats.clear()
        live.listen(beats.append)
        await until(lambda: sink.live.counters["viewers"] == 1, "the stream, again")
        sink.close()
    await until(lambda: live.away, "that the sink is away")
    assert "away" in beats
    live.leave(beats.append)
    assert not live.away, "nobody looks whether it is"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    store.close()


async def test_a_sink_that_refuses_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on being a beat; it is asked again, and followed when it has room."""
    monkeypatch.setattr(sinks, "VIEWERS", 0)
    monkeypatch.setattr(ours, "AGAIN", 0.05)
    monkeypatch.setattr(ours, "QUIET", 0.05)
    monkeypatch.setattr(ours, "PATIENCE", 60.0)
    socket = tmp_path / "sink.sock"
    store, sink = sink_at(socket)
    live, beats = Live(socket), list[Beat]()
    live.listen(beats.append)
    following = asyncio.create_task(live.run())
    await until(lambda: live.away, "that no sink is there")
    async with served.listening(sink.app, socket):
        await until(lambda: "back" in beats, "that it is there")
        beats.clear()
        refused = sink.counters["refused"]
        await until(lambda: sink.counters["refused"] > refused + 2 and "time" in beats, "some refusals")
        assert set(beats) == {"time"}
        monkeypatch.setattr(sinks, "VIEWERS", 1)
        await until(lambda: sink.live.counters["viewers"] == 1, "the stream")
        await asyncio.to_thread(put, store, 0, 10)
        await until(lambda: "news" in beats, "news")
        assert set(beats) == {"time", "news"}

        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        sink.close()
    store.close()
