"""From windows to an output by the schedule, and what it came to."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from schemas import times
from schemas.messages import ReplayRecord
from ztlens.replay.publish import Output, Publisher
from ztlens.replay.schedule import MAX, Schedule
from ztlens.replay.windows import Part, Window, ahead

TOGETHER = 0.004
"""Seconds of the replay that go out at once: less than what a timer is worth, and batches stay batches."""
PROGRESS = 1.0
"""Seconds between two progress records."""


@dataclass
class Totals:
    """What was sent so far. Stamps in ns since 1970 UTC, 0: none yet."""

    verdicts: int = 0
    first: int = 0
    last: int = 0
    begun: float = 0.0
    seconds: float = 0.0

    def add(self, part: Part) -> None:
        """Sent just now."""
        self.first = self.first or int(part[0][1]["time"][0])
        for _, columns in part:
            self.verdicts += len(columns["time"])
            self.last = max(self.last, int(columns["time"][-1]))


class Replay:
    """One session: `run` it once; its counts stay when it was cancelled or failed."""

    def __init__(self, session: str, schedule: Schedule) -> None:
        self.totals = Totals()
        self.session = session
        self._schedule = schedule
        self._output: Output | None = None

    async def run(self, windows: AsyncIterator[Window], output: Output) -> None:
        """Send all of `windows`. Raises what reading and sending raise."""
        self._output = output
        totals, factor = self.totals, self._schedule.factor
        span = None if factor == MAX else max(1, round(TOGETHER * factor * 1e9))
        totals.begun = time.monotonic()
        try:
            async for window in ahead(windows):
                await output.learn(window)
                for part in window.parts(span):
                    due = self._schedule.due(int(part[0][1]["time"][0]))
                    behind = await self._schedule.wait(due)
                    await output.send(part, due, behind=behind)
                    totals.add(part)
        finally:
            totals.seconds = time.monotonic() - totals.begun

    def record(self, *, done: bool = False) -> ReplayRecord:
        """How far it is."""
        return ReplayRecord(
            v=1, replay=self.session, speed=self._schedule.factor, verdicts=self.totals.verdicts,
            first=self.totals.first, last=self.totals.last, live_sent=self._output.live_sent if self._output else 0,
            live_capped=self._output.live_capped if self._output else 0, late=self._schedule.late, done=done,
        )  # fmt: skip

    async def publish(self, windows: AsyncIterator[Window], publisher: Publisher) -> None:
        """`run` onto NATS, with progress each second and a last word however it ends."""
        telling = asyncio.create_task(self._tell(publisher))
        try:
            await self.run(windows, publisher)
        finally:
            telling.cancel()
            await publisher.progress(self.record(done=True))

    async def _tell(self, publisher: Publisher) -> None:
        while True:
            await asyncio.sleep(PROGRESS)
            await publisher.progress(self.record())

    def summary(self) -> str:
        """One line for people."""
        totals, record = self.totals, self.record()
        if not totals.verdicts:
            return "replayed nothing: no recorded verdict is what was asked for"
        rate = totals.verdicts / max(1e-9, totals.seconds)
        text = (
            f"replayed {totals.verdicts:,} verdicts of {times.rfc3339(totals.first)} to {times.rfc3339(totals.last)}"
            f" in {totals.seconds:,.1f} s ({rate:,.0f}/s), {record.late:,} late"
        )
        if record.live_sent or record.live_capped:
            text += f"; live subjects: {record.live_sent:,} sent, {record.live_capped:,} held back"
        return text


async def threaded(windows: Iterable[Window]) -> AsyncIterator[Window]:
    """What blocks, read in a thread."""
    iterator = iter(windows)
    while (window := await asyncio.to_thread(next, iterator, None)) is not None:
        yield window
