"""`/api/v1/…` of the page is the sink's: passed through as it is, both ways, streams too. Nothing else is."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

QUESTIONS = 64
STREAMS = 64
"""How many are passed on at a time: streams stay, and would leave no room for questions."""
WAIT = 10.0
"""Seconds a question may wait for its turn; a stream does not."""
_PATH = re.compile(rb"/api/v1(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
"""Whole segments of plain characters: none that begins with a dot, nothing encoded."""
_TAKEN = ("content-type", "accept")
_GIVEN = ("content-type", "cache-control", "allow", "retry-after")


class Passing:
    """Asks the sink on `socket` for whoever asks here: an ASGI application for every method."""

    def __init__(self, socket: Path) -> None:
        self._questions, self._streams = _client(socket, QUESTIONS, WAIT), _client(socket, STREAMS, 0.1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The sink's answer, as it comes."""
        try:
            answer = await self._answered(Request(scope, receive))
        except ClientDisconnect:  # before the end of the question: nobody is there to be answered
            return
        await answer(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        path = request.scope.get("raw_path") or b""
        path = path.partition(b"?")[0]
        if not _PATH.fullmatch(path):
            return _refusal(404, "there is no such path", "GET /api/v1/openapi.json", 2)
        stays = path.endswith(b"/live") or "text/event-stream" in request.headers.get("accept", "")
        http = self._streams if stays else self._questions
        url = httpx.URL("http://sink").copy_with(raw_path=path + b"?" + request.scope["query_string"])
        headers = {name: request.headers[name] for name in _TAKEN if name in request.headers}
        try:
            answer = await _asked(http, url, headers, request)
        except httpx.PoolTimeout:
            many = f"{STREAMS} live streams" if stays else f"{QUESTIONS} questions"
            return _refusal(503, f"{many} at once already pass through this page", "close one of them, or ask again", 3)
        except httpx.HTTPError:
            return _refusal(503, "the sink does not answer", "`ztlens status`", 3)
        given = {name: answer.headers[name] for name in _GIVEN if name in answer.headers}
        return StreamingResponse(_body(answer), answer.status_code, given)

    async def close(self) -> None:
        """Let the connections go."""
        await self._questions.aclose()
        await self._streams.aclose()


def _client(socket: Path, most: int, wait: float) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=httpx.Limits(max_connections=most))
    patience = httpx.Timeout(10.0, read=None, pool=wait)
    return httpx.AsyncClient(transport=transport, base_url="http://sink", timeout=patience)


def _refusal(status: int, error: str, hint: str, exit_status: int) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": error, "hint": hint, "exit": exit_status}, status, headers)


async def _asked(http: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], request: Request) -> httpx.Response:
    """The begin of the sink's answer. Raises ClientDisconnect when who asked leaves before: the sink is told so."""
    read = asyncio.Event()

    async def question() -> AsyncIterator[bytes]:
        async for chunk in request.stream():
            yield chunk
        read.set()

    async def leaves() -> None:
        await read.wait()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    content = question() if request.method == "POST" else None
    if content is None:
        read.set()
    asked = http.build_request(request.method, url, headers=headers, content=content)
    answering, leaving = asyncio.create_task(http.send(asked, stream=True)), asyncio.create_task(leaves())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.wait((answering, leaving))


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Breaks off where the sink does: the end mark of the connection is missing then."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
