"""Equal questions are answered once: who asks what is being answered waits, and all who waited share the next answer.

An answer serves until something more is stored, and STANDS at most. So none lacks what was stored when it was asked
for, and however many look at the same, one reader at a time works for them.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from sink.api.readers import LEFT, LOOKS, Readers
from sink.errors import BusyError
from sink.history.reading import Reading
from sink.store import Store

STANDS = 1.0
"""Seconds: many a span ends now."""
KEPT = 16
"""Answers kept."""


@dataclass
class _Turn:
    """One answer. `changes`: of the store when it began; None: it waits for the one before."""

    begun: float = 0.0
    changes: int | None = None
    waiting: int = 0
    doing: "asyncio.Task[Any] | None" = None

    async def left(self) -> bool:
        return not self.waiting


class Shared:
    """What `readers` read of `store`, for all who ask."""

    def __init__(self, store: Store, readers: Readers) -> None:
        self._store = store
        self._readers = readers
        self._turns: OrderedDict[Hashable, _Turn] = OrderedDict()

    async def read(self, request: Request, work: Callable[[Reading], Any], asked: Any) -> Any:
        """What `work` reads for the question `asked` of the request's path. Raises what it raises; BusyError."""
        key = (request.url.path, repr(asked))
        turn = self._turns.get(key)
        if turn is None or not self._serves(turn):
            before = None if turn is None else turn.doing
            turn = self._turns[key] = _Turn()
            turn.doing = asyncio.create_task(self._make(turn, before, work, asked))
            turn.doing.add_done_callback(partial(self._made, key, turn))
        self._turns.move_to_end(key)
        while len(self._turns) > KEPT:
            self._turns.popitem(last=False)
        return await _awaited(turn, request)

    def _made(self, key: Hashable, turn: _Turn, done: "asyncio.Task[Any]") -> None:
        """An answer that did not come is not kept: with the error goes what was read for it."""
        if _failed(done) and self._turns.get(key) is turn:
            del self._turns[key]

    def _serves(self, turn: _Turn) -> bool:
        assert turn.doing is not None
        if not turn.doing.done():
            if not turn.waiting:  # all have left: it is being stopped
                return False
            if turn.changes is None:
                return True
        elif _failed(turn.doing):
            return False
        return turn.changes == self._store.changes and time.monotonic() - turn.begun < STANDS

    async def _make(
        self, turn: _Turn, before: "asyncio.Task[Any] | None", work: Callable[[Reading], Any], asked: Any
    ) -> Any:
        if before is not None and not before.done():
            await asyncio.wait([before])
        turn.begun, turn.changes = time.monotonic(), self._store.changes
        return await self._readers.read(turn.left, work, asked)


def _failed(done: "asyncio.Task[Any]") -> bool:
    return done.cancelled() or done.exception() is not None


async def _awaited(turn: _Turn, request: Request) -> Any:
    """Who leaves leaves the others theirs."""
    assert turn.doing is not None
    turn.waiting += 1
    try:
        while not (await asyncio.wait([turn.doing], timeout=LOOKS))[0]:
            if await request.is_disconnected():
                raise BusyError(*LEFT)
        return turn.doing.result()
    finally:
        turn.waiting -= 1
