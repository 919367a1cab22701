"""Who reads the store for a question: a few at a time, each in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, TypeVar

import duckdb

from sink.errors import BusyError, ReopenedError
from sink.history.reading import Reading
from sink.priority import give_way
from sink.settings import SinkSettings
from sink.store import Store

WAITING = 2.0
"""Times its own time a question waits for a reader: the one before it may take all of its own, and some to stop."""
REOPENING = 5.0
"""Seconds a question waits for a store that is being opened anew (after a full disk)."""
LOOKS = 0.5
"""Seconds between looks at who asked."""
REST_MOST = 5.0
"""Seconds. While the sink is behind, none is begun after a question for as long as that took, or for these."""
LEFT = ("who asked has left", "ask again")
"""What nobody reads."""
T = TypeVar("T")
Left = Callable[[], Awaitable[bool]]
"""Has who asked left?"""
Room = Callable[[], AbstractAsyncContextManager[Any]]


class Few:
    """`most` questions at a time, each in a thread of its own; the others wait for their turn, `patience` s at most.

    `spare` threads do what is no question.
    """

    def __init__(self, name: str, most: int, patience: float, *, spare: int = 0) -> None:
        self._most, self._patience = most, patience
        self._free = asyncio.Semaphore(most)
        self._threads = ThreadPoolExecutor(most + spare, thread_name_prefix=name, initializer=give_way)
        self.busy = 0
        """Questions that found no room in time."""

    async def _take(self) -> None:
        """Wait for the turn. Raises BusyError."""
        try:
            await asyncio.wait_for(self._free.acquire(), self._patience)
        except TimeoutError:
            self.busy += 1
            raise BusyError(f"{self._most} questions are being answered already", "ask again in a moment") from None

    def give(self) -> None:
        """There is room for one more."""
        self._free.release()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """In a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def submit(self, work: Callable[[], None]) -> None:
        """In a thread, some time."""
        self._threads.submit(work)

    async def attended(
        self,
        asker_left: Left,
        work: Callable[[], T],
        stop: Callable[[], None],
        *,
        keep: bool = False,
        room: Room = nullcontext,
    ) -> T:
        """What `work` gives, in a thread, when its turn has come; `stop` is called when who asked has left.

        `keep`: what was given holds its place, until `give`. `room`: what it waits for besides, and holds while it
        works. Raises what `work` raises; BusyError.
        """
        await self._take()
        held = False
        try:
            async with room():
                found = await self._done(asker_left, work, stop)
            held = keep
            return found
        finally:
            if not held:
                self.give()

    async def _done(self, asker_left: Left, work: Callable[[], T], stop: Callable[[], None]) -> T:
        if await asker_left():
            raise BusyError(*LEFT)
        doing = asyncio.ensure_future(self.run(work))
        try:
            while not (await asyncio.wait([doing], timeout=LOOKS))[0]:
                if await asker_left():
                    stop()
            return await doing
        except BaseException:
            stop()
            raise

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Readers(Few):
    """`settings.readers` of them. While what stores is `behind` they read for one question after the other, and rest.

    Else they would take a CPU from it, though they give way: memory, DuckDB's locks and Python's have no nice value.
    Audits, which may take minutes, hold up nobody.
    """

    def __init__(self, store: Store, settings: SinkSettings, behind: Callable[[], bool] = lambda: False) -> None:
        super().__init__("reader", settings.readers, WAITING * settings.query_timeout, spare=2)
        self._store = store
        self._settings = settings
        self._behind = behind
        self._alone = asyncio.Lock()
        self._rested = 0.0

    @asynccontextmanager
    async def _room(self) -> AsyncIterator[None]:
        if not self._behind():
            yield
            return
        async with self._alone:
            if self._behind():
                await asyncio.sleep(self._rested - time.monotonic())
            yield

    async def read(self, asker_left: Left, work: Callable[[Reading], T], asked: Any = None) -> T:
        """What `work` reads for a question. Raises what it raises; BusyError."""
        theirs = bool(getattr(asked, "where", ()))

        def reads(cursor: duckdb.DuckDBPyConnection) -> T:
            with Reading(cursor, self._settings.query_timeout, theirs=theirs) as reading:
                return work(reading)

        return await self.ask(asker_left, reads)

    async def ask(self, asker_left: Left, work: Callable[[duckdb.DuckDBPyConnection], T], *, keep: bool = False) -> T:
        """What `work` gives for a cursor of its own; `keep`: the reader is not free before `give`."""
        left = threading.Event()
        now: list[duckdb.DuckDBPyConnection] = []

        def stop() -> None:
            left.set()
            for cursor in now:
                with suppress(duckdb.Error):  # closed a moment ago
                    cursor.interrupt()

        def once() -> T:
            now[:] = [self._store.cursor()]
            begun = time.monotonic()
            try:
                return work(now[0])
            finally:
                ended = time.monotonic()
                self._rested = max(self._rested, ended + min(REST_MOST, ended - begun))

        return await self.attended(asker_left, lambda: again(self._store, once, left), stop, keep=keep, room=self._room)


def again(store: Store, work: Callable[[], T], left: threading.Event | None = None) -> T:
    """Asked again, for a while, if `store` broke it off: who asked need not know. Counted once, however often."""
    until = time.monotonic() + REOPENING
    counted = False
    while True:
        try:
            return work()
        except ReopenedError:
            if time.monotonic() > until or (left is not None and left.is_set()):
                raise
        if not counted:
            store.asked_again()
            counted = True
        time.sleep(0.1)
