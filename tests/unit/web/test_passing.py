"""What passes through the page to a sink of this process and back, over real sockets."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from sink import api
from sink.settings import SinkSettings
from sink.store import memory_store
from tests.support.served import listening
from tests.support.until import until
from web import passing
from web.passing import Passing


@pytest.fixture
async def through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """The socket of a Passing that lets two streams and one question through."""
    monkeypatch.setattr(passing, "STREAMS", 2)
    monkeypatch.setattr(passing, "QUESTIONS", 1)
    store = memory_store()
    sink = api.Api(store, SinkSettings(Path("unused"), "", Path("unused"), readers=1), lambda: asyncio.sleep(0, {}))
    given = Passing(tmp_path / "sink.sock")
    async with listening(sink.app, tmp_path / "sink.sock"), listening(given, tmp_path / "page.sock") as socket:
        yield socket
        sink.live.close()
    await given.close()
    sink.close()
    store.close()


@pytest.fixture
async def client(through: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(through))
    async with httpx.AsyncClient(transport=transport, base_url="http://page/api/v1/", timeout=30) as made:
        yield made


async def test_streams_leave_room_for_questions(client: httpx.AsyncClient) -> None:
    async with AsyncExitStack() as streams:
        followed = []  # an iterator that is let go ends its stream
        for _ in range(2):
            stream = await streams.enter_async_context(client.stream("GET", "verdicts/live"))
            followed.append(stream.aiter_text())
            assert (stream.status_code, await anext(followed[-1])) == (200, ": ztlens\n\n")
        for path, headers in (("verdicts/live", {}), ("verdicts", {"accept": "text/event-stream"})):
            refused = await client.get(path, headers=headers)
            assert (refused.status_code, refused.headers["retry-after"], refused.json()) == (503, "1", {
                "error": "2 live streams at once already pass through this page",
                "hint": "close one of them, or ask again", "exit": 3,
            })  # fmt: skip
        assert (await client.get("flows")).json() == {"flows": [], "next": None}
    assert await until(lambda: lets_in(client), "a stream again")


async def lets_in(client: httpx.AsyncClient) -> bool:
    async with client.stream("GET", "verdicts/live") as stream:
        return stream.status_code == 200


async def test_a_sink_that_is_away(tmp_path: Path) -> None:
    away = httpx.ASGITransport(Passing(tmp_path / "none"))
    async with httpx.AsyncClient(transport=away, base_url="http://page") as client:
        answer = await client.get("/api/v1/flows")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "the sink does not answer", "hint": "`ztlens status`", "exit": 3}


async def test_methods_that_the_sink_refuses(client: httpx.AsyncClient) -> None:
    for method, path, allowed in (
        ("OPTIONS", "flows", {"GET", "HEAD"}), ("TRACE", "flows", {"GET", "HEAD"}), ("POST", "flows", {"GET", "HEAD"}),
        ("PROPFIND", "flows", {"GET", "HEAD"}), ("GET", "sql", {"POST"}),
    ):  # fmt: skip
        answer = await client.request(method, path)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, allowed)
        assert answer.json()["error"] == f"/api/v1/{path} does not take {method}"


async def test_a_question_that_breaks_off(through: Path, client: httpx.AsyncClient, caplog: Any) -> None:
    """Nobody is there to be answered, and nothing is worth a line of the log."""
    caplog.set_level(logging.WARNING)
    _, writer = await asyncio.open_unix_connection(through)
    writer.write(b"POST /api/v1/sql HTTP/1.1\r\nhost: page\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.2)  # it is on its way to the sink
    writer.close()
    await writer.wait_closed()
    answer = await client.post("sql", json={"sql": "SELECT 1 AS one", "format": "json"})
    assert answer.json() == [{"one": 1}]
    assert [record.getMessage() for record in caplog.records] == []


async def test_who_leaves_before_the_answer_has_begun_leaves_the_sink_too(tmp_path: Path) -> None:
    asked: list[tuple[str, bytes]] = []
    left: list[str] = []

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        asked.append((scope["method"], body))
        assert (await receive())["type"] == "http.disconnect"
        left.append(scope["method"])

    given = Passing(tmp_path / "sink.sock")
    questions = [("GET", b""), ("POST", b"a question")]
    async with listening(silent, tmp_path / "sink.sock"), listening(given, tmp_path / "page.sock") as socket:
        for n, (method, body) in enumerate(questions, 1):
            transport = httpx.AsyncHTTPTransport(uds=str(socket))
            async with httpx.AsyncClient(transport=transport, base_url="http://page/api/v1/", timeout=30) as client:
                asking = asyncio.create_task(client.request(method, "audit", content=body))
                await until(lambda n=n: len(asked) == n, "a question of the sink")
                asking.cancel()
                await until(lambda n=n: len(left) == n, "that the sink is left")
    await given.close()
    assert asked == questions
