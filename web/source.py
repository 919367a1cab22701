"""Asks the sink's API. Nothing is kept here: it is the sink that answers equal questions once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from web.errors import AwayError, RefusedError

Query = Mapping[str, str | Sequence[str]]
PATIENCE = httpx.Timeout(10.0, read=None, pool=None)
"""The sink knows how long a question may take and wait; when it is frozen `web.live` tells."""
_BROKE_OFF = ("The answer broke off", "Ask for less: a shorter time, a narrower filter, a LIMIT.")
_AWAY = ("The sink does not answer", "Start it with `ztlens up` or `ztlens sink`; the page goes on by itself.")
_TOO_LONG = ("The filters are longer than a question may be", "Take some of them out, or ask under SQL.")


class Source:
    """Questions to the sink on `socket`."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)  # no TLS on a Unix socket
        self._http = httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1/", timeout=PATIENCE)

    async def ask(self, path: str, query: Query | None = None) -> Any:
        """The answer to GET. Raises AwayError, RefusedError."""
        return _document(await self._answered("GET", path, params=dict(query or {})))

    async def post(self, path: str, body: Any) -> Any:
        """The answer to POST: asked anew each time. Raises AwayError, RefusedError."""
        return _document(await self.raw(path, body))

    async def raw(self, path: str, body: Any) -> bytes:
        """The same as it comes, whole."""
        headers = {"content-type": "application/json"}
        return await self._answered("POST", path, content=json.dumps(body), headers=headers)

    async def _answered(self, method: str, path: str, **how: Any) -> bytes:
        try:
            async with self._http.stream(method, path, **how) as answer:
                try:
                    content = await answer.aread()
                except httpx.HTTPError as error:
                    raise RefusedError(*_BROKE_OFF, 503) from error
        except httpx.InvalidURL as error:
            raise RefusedError(*_TOO_LONG, 400) from error
        except httpx.HTTPError as error:
            raise AwayError(*_AWAY) from error
        if answer.status_code != 200:
            said = _document(content)
            raise RefusedError(str(said.get("error")), str(said.get("hint")), answer.status_code)
        return content

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()


def _document(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise RefusedError(*_BROKE_OFF, 503) from error
