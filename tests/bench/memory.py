"""Does memory stay what it is under live traffic: every part of `ztlens up` while somebody looks at the page.

Half of the events are flows that begin and end, the rest samples of a thousand that go on; a real browser goes from
view to view all the time. Not among what runs by default: `bench.sh --only memory --seconds 3600` is an hour of it.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any, Self

from sink.client import History
from tests.bench.figures import Figure, Options
from tests.bench.installation import Installation, wait_until
from tests.bench.processes import memory
from tests.support.pages import Browser

STEADY, STEADY_FLOWS = 0.4, 1_000
FRESH, FRESH_SECONDS = 0.3, 100
"""Frames of an event each, and of flows that are over (60 s of silence) when their turn comes again: two each."""
PARTS = ("collector", "sink", "web", "nats")
OURS = PARTS[:3]
SAMPLES = 200
"""Memory is looked at so many times; what it was at the quarter and at the end is the median of the tenth before."""
STAY = 10.0
"""Seconds that the browser looks at a view."""
VIEWS = ("/", "/map", "/matrix", "/flows", "/policy", "/sql")
MIB, TIMES = "MiB", "x"


class Bench:
    """See the module."""

    NAME = "memory"
    WHAT = "memory under live traffic while a browser looks"
    FIGURES = (
        Figure("stored", "events a second (those that end a flow begin after a minute)", "rows/s"),
        *(Figure(f"{part} RSS", "at the end", MIB) for part in PARTS),
        *(Figure(f"{part} growth", "at the end ÷ after a quarter of the time", TIMES, at_most=1.1) for part in OURS),
        Figure("nats growth", "the server's, likewise", TIMES),
    )

    def __init__(self, options: Options) -> None:
        self._loader, self._seconds, self._events = options.loader, options.seconds, options.events
        self.notes = [f"{self._seconds:g} s a run, {self._events:,} events/s; a view each {STAY:g} s"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._up = self._stack.enter_context(Installation(sample="1", loader=self._loader, web="127.0.0.1:0"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        before = self._stored()
        fresh = int(self._events * FRESH)
        senders = [self._send(int(self._events * STEADY), STEADY_FLOWS), self._send(fresh, fresh * FRESH_SECONDS)]
        begun = time.monotonic()
        try:
            samples = asyncio.run(self._looked_at(begun))
            sent = sum(int(sender.communicate(timeout=120)[0]) for sender in senders)
        finally:
            for sender in senders:
                sender.kill()
        wait_until(lambda: self._stored() - before >= sent, "every packet an event, all stored", 120, 0.5)
        stored = self._stored() - before
        out = {"stored": stored / (time.monotonic() - begun)}
        for part in PARTS:
            held = [sample[part] for sample in samples]
            quarter, window = max(1, len(held) // 4), max(1, len(held) // 10)
            first, last = statistics.median(held[:quarter][-window:]), statistics.median(held[-window:])
            out |= {f"{part} RSS": last, f"{part} growth": last / first}
            course = ", ".join(f"{held[i * (len(held) - 1) // 8]:.0f}" for i in range(9))
            self.notes.append(f"{part}, MiB at each eighth: {course}")
        return out

    def _send(self, rate: int, flows: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.bench.sender", self._up.outside, self._up.wire]
        given = [str(rate), str(self._seconds), str(flows)]
        return subprocess.Popen([*command, *given], stdout=subprocess.PIPE, text=True)

    def _stored(self) -> int:
        with History.over_socket(self._up.run_dir / "sink.sock") as history:
            return int(history.status()["counters"]["verdicts"]["stored"])

    def _held(self) -> dict[str, float]:
        """MiB of each part, beside what the kernel holds."""
        return {part: memory(self._up.pids[part]).own for part in PARTS}

    async def _looked_at(self, begun: float) -> list[dict[str, float]]:
        """What is held at each sample."""
        samples: list[dict[str, float]] = []
        async with Browser(self._up.page) as browser:
            looking = asyncio.create_task(_look(browser))
            while time.monotonic() - begun < self._seconds:
                await asyncio.sleep(self._seconds / SAMPLES)
                samples.append(await asyncio.to_thread(self._held))
                if len(samples) % 4 == 0:
                    held = ", ".join(f"{part} {size:.0f}" for part, size in samples[-1].items())
                    print(f"bench: {time.monotonic() - begun:.0f} s: {held} MiB", file=sys.stderr, flush=True)
                if looking.done():
                    looking.result()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        return samples


async def _look(browser: Browser) -> Any:
    """From view to view, for ever."""
    page = await browser.open()
    while True:
        for path in VIEWS:
            await browser.to(page, path)
            await asyncio.sleep(STAY)
