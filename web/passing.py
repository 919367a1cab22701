"""`/api/v1/…` of the page is the sink's: passed through as it is, both ways, streams too. Nothing else is."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

_PATH = re.compile(rb"/api/v1(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
"""Whole segments of plain characters: none that begins with a dot, nothing encoded."""
_TAKEN = ("content-type", "accept")
_GIVEN = ("content-type", "cache-control")


class Passing:
    """Asks the sink on `socket` for whoever asks here."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=64))
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://sink", timeout=httpx.Timeout(10.0, read=None)
        )

    async def __call__(self, request: Request) -> Response:
        """The sink's answer, as it comes."""
        path = request.scope.get("raw_path") or b""
        path = path.partition(b"?")[0]
        if not _PATH.fullmatch(path):
            return JSONResponse({"error": "there is no such path", "hint": "GET /api/v1/openapi.json", "exit": 2}, 404)
        url = httpx.URL("http://sink").copy_with(raw_path=path + b"?" + request.scope["query_string"])
        headers = {name: request.headers[name] for name in _TAKEN if name in request.headers}
        asked = self._http.build_request(
            request.method, url, headers=headers, content=request.stream() if request.method == "POST" else None
        )
        try:
            answer = await self._http.send(asked, stream=True)
        except httpx.HTTPError:
            return JSONResponse({"error": "the sink does not answer", "hint": "`ztlens status`", "exit": 3}, 503)
        given = {name: answer.headers[name] for name in _GIVEN if name in answer.headers}
        return StreamingResponse(_body(answer), answer.status_code, given)

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Breaks off where the sink does: the end mark of the connection is missing then."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
