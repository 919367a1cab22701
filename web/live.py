"""When to look again: one subscription to the sink's live verdicts for all pages.

What it brings is not shown, it only says that something new was stored: a page then asks its own question again. So a
page shows the same, whether it was open all the time or is opened now.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import httpx

Beat = Literal["news", "time", "away", "back"]
"""Something was stored; nothing was, but time has passed; the sink went away; it is back."""
Listener = Callable[[Beat], None]
APART = 0.1
"""Seconds between two beats of news at least."""
QUIET = 2.0
"""Seconds after which time alone is a beat."""
AGAIN = 1.0
"""Seconds until a sink that is away, or refuses, is asked again."""
PATIENCE = 5.0
"""Seconds to connect and to ask."""
SILENT = 45.0
"""Seconds without a word (one comes each 15 s) after which the connection is taken for dead."""


class Live:
    """Tells who listens. `away`: the sink does not answer. While nobody listens the sink is not asked."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)  # no TLS on a Unix socket
        patience = httpx.Timeout(PATIENCE, read=SILENT)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1/", timeout=patience)
        self._listeners: set[Listener] = set()
        self._wanted = asyncio.Event()
        self.away = False
        self._told = 0.0
        self._due: asyncio.TimerHandle | None = None

    def listen(self, listener: Listener) -> None:
        """From now on."""
        self._listeners.add(listener)
        self._wanted.set()

    def leave(self, listener: Listener) -> None:
        """No longer."""
        self._listeners.discard(listener)
        if not self._listeners:
            self._wanted.clear()
            self.away = False  # nobody looks whether it is

    def _tell(self, beat: Beat) -> None:
        for listener in list(self._listeners):
            listener(beat)

    def _news(self) -> None:
        """A beat now, or as soon as one may come."""
        if self._due is None:
            wait = max(0.0, self._told + APART - time.monotonic())
            self._due = asyncio.get_running_loop().call_later(wait, self._beat, "news")

    def _beat(self, beat: Beat) -> None:
        self._due = None
        self._told = time.monotonic()
        self._tell(beat)

    async def run(self) -> None:
        """For ever."""
        passing = asyncio.create_task(self._time())
        try:
            while True:
                await self._wanted.wait()
                there = False
                with contextlib.suppress(httpx.HTTPError):
                    there = await self._follow()
                    if not self._wanted.is_set():
                        continue
                if not (there or self.away):
                    self.away = True
                    self._tell("away")
                await asyncio.sleep(AGAIN)
        finally:
            passing.cancel()
            await self._http.aclose()

    async def _follow(self) -> bool:
        """Until the sink goes away, or a line comes for nobody (one does at least each 15 s). Is it there still?

        One that refuses (too many follow) is there: time alone is a beat then.
        """
        async with self._http.stream("GET", "verdicts/live") as answer:
            self._there()
            if answer.status_code != 200:
                return True
            async for line in answer.aiter_lines():
                if not self._wanted.is_set():
                    return True
                if line.startswith("event:"):
                    self._news()
        return False

    def _there(self) -> None:
        if self.away:
            self.away = False
            self._tell("back")

    async def _time(self) -> None:
        while True:
            await asyncio.sleep(QUIET)
            if not self.away and time.monotonic() - self._told >= QUIET:
                self._beat("time")
