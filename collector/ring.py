"""From the ring to JetStream: read, cut into batches, publish, release what is acknowledged.

The ring's consumer position is the only memory: it moves over a prefix of batches that JetStream has
acknowledged and over nothing else, so whatever dies, the rest is still in the ring and is read again.

Waiting: the ring wakes its reader once every 64 events and after 10 ms of quiet. While there is something to
read a 10 ms timer is cheaper than these wake-ups; then the pause doubles up to 250 ms, cut short by a wake-up.
"""

import asyncio
import logging
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from collector.bus import Bus, TooLarge, pause
from collector.kernel.interface import Datapath
from schemas import envelope, subjects
from schemas.verdict import SIZE

log = logging.getLogger("ztlens.collector")

BUSY, IDLE = 0.010, 0.250  # pause between reads, seconds
HEAD = 4096  # bytes of an envelope that are not rows, generously


def clock_offset() -> int:
    """ns to add to CLOCK_MONOTONIC for ns since 1970."""
    return time.time_ns() - time.monotonic_ns()


class Wakeup:
    """The ring's descriptor as something to wait for.

    asyncio's `add_reader` is level-triggered and would spin as long as unreleased records stay in the ring; an
    epoll of our own is edge-triggered and itself readable once an edge. It is listened to only while waiting.
    """

    def __init__(self, fd: int) -> None:
        self._epoll = select.epoll()
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._event = asyncio.Event()

    def _edge(self) -> None:
        self._epoll.poll(0)
        self._event.set()

    def set(self) -> None:
        """End a wait from within."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until an edge, `set`, or the time is over."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._epoll.fileno(), self._edge)
        timer = loop.call_later(seconds, self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()
            loop.remove_reader(self._epoll.fileno())
            self._event.clear()

    def close(self) -> None:
        self._epoll.close()


@dataclass
class Batch:
    """A range on its way."""

    start: int
    end: int
    since: float  # when its first event was read, time.monotonic()
    acknowledged: bool = False


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """One array of several, as plain bytes: numpy joins structs field by field, 152 ns a row against 5."""
    kind = parts[0].dtype
    return np.concatenate([part.view(f"V{kind.itemsize}") for part in parts]).view(kind)


class Pump:
    """Moves one ring into the stream VERDICTS. Counters are events: received = sent + waiting, acknowledged ≤ sent."""

    def __init__(
        self,
        ring: Datapath,
        bus: Bus,
        *,
        node: str,
        batch: int,
        batch_wait: float,
        in_flight: int,
        offer: Callable[[np.ndarray, int, bool], Awaitable[None]] | None = None,
        count: Callable[[np.ndarray], None] | None = None,
        drained: Callable[[float], None] | None = None,
    ) -> None:
        """A batch is sent when it has `batch` rows, or `batch_wait` seconds after the one before: what comes after a
        quiet while is sent at once, and there are no more batches for it.

        `offer(rows, clock, behind)` sees every row as soon as it is read; `behind`: the ring holds a batch more.
        `count(rows)` sees them, too; `drained(seconds)` is told how long a batch took until it was acknowledged."""
        self.received = self.sent = self.acknowledged = 0
        self.ring = ring
        self._bus, self._node, self._offer = bus, node, offer
        self._count, self._drained = count, drained
        self._batch, self._wait = batch, batch_wait
        self._subject = subjects.verdicts(node)
        self._slots = asyncio.Semaphore(in_flight)
        self._under_way: deque[Batch] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts: list[np.ndarray] = []  # read, not yet sent
        self._rows = self._start = 0
        self._since = 0.0
        self._sent_at = time.monotonic()
        self._stopping = False
        self._failure: BaseException | None = None
        self._wakeup = Wakeup(ring.fileno())
        self._moved = asyncio.Event()

    @property
    def drained(self) -> bool:
        """Everything the ring holds is acknowledged."""
        return not self._rows and not self._under_way and self.ring.produced == self.ring.consumed

    async def run(self) -> None:
        """Until `stop`. What was read is sent; `settle` waits for it."""
        rest = BUSY
        while not self._stopping:
            events = self.ring.read(self._limit() - self._rows)
            if events is not None:
                rest = BUSY
                await self._take(events.start, events.rows)
                if self._rows >= self._limit():
                    await self._send()
                    await asyncio.sleep(0)
                    continue
                await asyncio.sleep(BUSY)
            else:
                await self._wakeup.wait(min(rest, self._wait) if self._rows else rest)
                rest = min(rest * 2, IDLE)
            if self._rows and time.monotonic() - self._sent_at >= self._wait:
                await self._send()
            if self._failure is not None:
                raise self._failure
        if self._rows:
            await self._send()

    def _limit(self) -> int:
        return max(1, min(self._batch, (self._bus.max_payload - HEAD) // SIZE))

    async def _take(self, start: int, rows: np.ndarray) -> None:
        if not self._rows:
            self._start, self._since = start, time.monotonic()
        self._parts.append(rows)
        self._rows += len(rows)
        self.received += len(rows)
        if self._count is not None:
            self._count(rows)
        if self._offer is not None:
            behind = self.ring.produced - start > 2 * self._batch * self.ring.stride
            await self._offer(rows, clock_offset(), behind)

    async def _send(self) -> None:
        """Hand the rows read so far to a publisher; waits while `in_flight` batches are unacknowledged."""
        await self._slots.acquire()
        self._sent_at = time.monotonic()
        rows = self._parts[0] if len(self._parts) == 1 else _join(self._parts)
        batch = Batch(self._start, self._start + len(rows) * self.ring.stride, self._since)
        self._parts, self._rows = [], 0
        self.sent += len(rows)
        self._under_way.append(batch)
        task = asyncio.create_task(self._publish(batch, self._encode(rows, batch.start)))
        self._tasks.add(task)
        task.add_done_callback(self._published)

    def _encode(self, rows: np.ndarray, start: int) -> bytes:
        return envelope.encode(
            rows, node=self._node, ring=self.ring.ring_id, start=start, clock=clock_offset(),
            rev=int(rows["revision"][-1]), stride=self.ring.stride,
        )  # fmt: skip

    async def _publish(self, batch: Batch, payload: bytes) -> None:
        await self._deliver(batch.start, batch.end, payload)
        batch.acknowledged = True
        self.acknowledged += (batch.end - batch.start) // self.ring.stride
        if self._drained is not None:
            self._drained(time.monotonic() - batch.since)
        self._advance()

    async def _deliver(self, start: int, end: int, payload: bytes) -> None:
        """Until acknowledged; a message over the server's maximum goes in halves."""
        attempt = 0
        while True:
            try:
                return await self._bus.deliver(self._subject, payload, f"{self.ring.ring_id}:{start}-{end}")
            except TooLarge:
                rows = envelope.decode(payload).rows()
                if len(rows) > 1:
                    break
                log.error("the NATS server's max_payload is below one verdict (%d bytes)", len(payload))
                await pause(attempt)
                attempt += 1
        half = len(rows) // 2
        middle = start + half * self.ring.stride
        await self._deliver(start, middle, self._encode(rows[:half], start))
        await self._deliver(middle, end, self._encode(rows[half:], middle))

    def _published(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._slots.release()
        self._moved.set()
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._wakeup.set()

    def _advance(self) -> None:
        """Release the acknowledged prefix."""
        position = None
        while self._under_way and self._under_way[0].acknowledged:
            position = self._under_way.popleft().end
        if position is not None:
            self.ring.release(position)

    def stop(self) -> None:
        """Read no more; `run` returns soon."""
        self._stopping = True
        self._wakeup.set()

    async def settle(self, seconds: float) -> bool:
        """Wait for acknowledgements of what is under way; then give up the rest. True: nothing was given up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return not left

    async def wait_drained(self, seconds: float) -> bool:
        """Wait, while `run` goes on, until the ring is empty and acknowledged; False when the time is over."""
        end = time.monotonic() + seconds
        while not self.drained:
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._moved.clear()
            self._wakeup.set()
            try:
                async with asyncio.timeout(min(left, BUSY * 2)):
                    await self._moved.wait()
            except TimeoutError:
                continue
        return True

    def close(self) -> None:
        self._wakeup.close()
