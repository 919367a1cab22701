"""Asks the sink's API, once for all who look at the same.

An answer is shared by everybody who asks the same while it is under way, and as long as nothing new was stored; of a
span that has ended for a while.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from web.errors import AwayError, RefusedError

Query = Mapping[str, str | Sequence[str]]
KEPT = 200
"""Answers kept."""
ENDED = 30.0
"""Seconds an answer about a span that has ended serves."""
PATIENCE = 60.0
"""Seconds a question may take: the sink gives up before."""
_BROKE_OFF = ("The answer broke off", "Ask for less: a shorter time, a narrower filter, a LIMIT.")
_AWAY = "The sink does not answer"
_HINT = "Start it with `ztlens up` or `ztlens sink`; the page goes on by itself."


@dataclass
class _Answer:
    asked: float
    task: "asyncio.Task[Any]"
    waiting: int = 0


class Source:
    """Questions to the sink on `socket`. `news`: monotonic time at which something new was stored last."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1/", timeout=PATIENCE)
        self._answers: OrderedDict[tuple[str, Any], _Answer] = OrderedDict()
        self.news = 0.0

    async def ask(self, path: str, query: Query | None = None, *, ended: bool = False) -> Any:
        """The answer to GET. `ended`: the question is of a span that has ended. Raises AwayError, RefusedError."""
        parameters = tuple((name, value) for name, given in (query or {}).items() for value in _listed(given))
        key = (path, parameters)
        known = self._answers.get(key)
        if known is None or not self._serves(known, ended):
            asking = self._get(path, parameters)
            known = self._answers[key] = _Answer(time.monotonic(), asyncio.create_task(asking))
            self._answers.move_to_end(key)
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        return await self._awaited(known)

    def _serves(self, answer: _Answer, ended: bool) -> bool:
        if not answer.task.done():
            return True
        if answer.task.cancelled() or answer.task.exception() is not None:
            return False
        return time.monotonic() - answer.asked < ENDED if ended else answer.asked >= self.news

    async def _awaited(self, answer: _Answer) -> Any:
        """Who gives up leaves the others theirs; the last one ends the question."""
        answer.waiting += 1
        try:
            return await asyncio.shield(answer.task)
        finally:
            answer.waiting -= 1
            if not answer.waiting and not answer.task.done():
                answer.task.cancel()

    async def post(self, path: str, body: Any, *, patience: float = PATIENCE) -> Any:
        """The answer to POST: asked anew each time. Raises AwayError, RefusedError."""
        return _document(await self.raw(path, body, patience=patience))

    async def raw(self, path: str, body: Any, *, patience: float = PATIENCE) -> bytes:
        """The same as it comes, whole."""
        headers = {"content-type": "application/json"}
        return await self._answered("POST", path, content=json.dumps(body), headers=headers, timeout=patience)

    async def _get(self, path: str, parameters: tuple[tuple[str, str], ...]) -> Any:
        return _document(await self._answered("GET", path, params=httpx.QueryParams(parameters)))

    async def _answered(self, method: str, path: str, **how: Any) -> bytes:
        try:
            async with self._http.stream(method, path, **how) as answer:
                try:
                    content = await answer.aread()
                except httpx.HTTPError as error:
                    raise RefusedError(*_BROKE_OFF, 503) from error
        except httpx.HTTPError as error:
            raise AwayError(_AWAY, _HINT) from error
        if answer.status_code != 200:
            said = _document(content)
            raise RefusedError(str(said.get("error")), str(said.get("hint")), answer.status_code)
        return content

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()


def _listed(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _document(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise RefusedError(*_BROKE_OFF, 503) from error
