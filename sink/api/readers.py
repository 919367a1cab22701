"""Who reads the store for a question: a few at a time, each in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

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
T = TypeVar("T")
Left = Callable[[], Awaitable[bool]]
"""Has who asked left?"""


class Readers:
    """`settings.readers` of them."""

    def __init__(self, store: Store, settings: SinkSettings) -> None:
        self._store = store
        self._settings = settings
        self._free = asyncio.Semaphore(settings.readers)
        self._threads = ThreadPoolExecutor(settings.readers + 2, thread_name_prefix="reader", initializer=give_way)
        self.busy = 0
        """Questions that found none free in time."""

    async def take(self) -> None:
        """Wait for a free one, and take it. Raises BusyError."""
        try:
            await asyncio.wait_for(self._free.acquire(), WAITING * self._settings.query_timeout)
        except TimeoutError:
            self.busy += 1
            raise BusyError(
                f"{self._settings.readers} questions are being answered already", "ask again in a moment"
            ) from None

    def give(self) -> None:
        """It is free again."""
        self._free.release()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """In a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def submit(self, work: Callable[[], None]) -> None:
        """In a thread, some time."""
        self._threads.submit(work)

    async def attended(self, asker_left: Left, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """What `work` gives, in a thread, with a reader; `stop` is called when who asked has left."""
        await self.take()
        try:
            doing = asyncio.ensure_future(self.run(work))
            try:
                while not (await asyncio.wait([doing], timeout=LOOKS))[0]:
                    if await asker_left():
                        stop()
                return await doing
            finally:
                stop()
        finally:
            self.give()

    async def read(self, asker_left: Left, work: Callable[[Reading], T], asked: Any = None) -> T:
        """What `work` reads for a question. Raises what it raises; BusyError."""
        theirs = bool(getattr(asked, "where", ()))
        left = threading.Event()
        now: list[Reading] = []

        def stop() -> None:
            left.set()
            for reading in now:
                reading.stop()

        def reads() -> T:
            def once() -> T:
                with Reading(self._store.cursor(), self._settings.query_timeout, theirs=theirs) as reading:
                    now[:] = [reading]
                    return work(reading)

            return again(self._store, once, left)

        return await self.attended(asker_left, reads, stop)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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
