"""The collector: one process a node, from the ring to NATS, with a socket for its operator.

Threads: the loop's (ring, NATS, socket) and one that owns every other call to the datapath (`call`), so a long
sweep or a policy swap never stops the drain. Reading and releasing the ring touches nothing else of the datapath.

It ends in one of two ways. SIGTERM: stop reading, flush what is under way for 5 s, leave the datapath to the next
collector. `down`: detach, end every flow, drain all of it, publish the exact last books, unpin.
"""

import asyncio
import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

import collector.kernel
from collector.accounts import Accounts
from collector.bus import Bus
from collector.control.operations import handlers
from collector.control.server import ControlServer
from collector.errors import CollectorError, RefusedError, StreamError
from collector.first import OpenDatapath
from collector.interfaces import Interfaces
from collector.kernel.interface import Datapath
from collector.live import Live
from collector.memory import Memory
from collector.node import Node
from collector.policyfile import PolicyFile, Wanted
from collector.records import Records
from collector.ring import Pump
from collector.settings import CollectorSettings

if TYPE_CHECKING:
    from collector.metrics import Metrics

log = logging.getLogger("ztlens.collector")

TICK = 1.0  # seconds between loss records
NOTICES = 100  # kept for `status`, the latest
SUMS_EVERY = 10.0  # seconds between loss records with the flow table's sums
SWEEP_SHARE = 0.05  # of one CPU, at most: a sweep that took 0.1 s is not repeated within 2 s
FLUSH_SECONDS = 5.0
CLOSE_SECONDS = 30.0
HOST_SECONDS = 1.0  # addresses that change together are one change


class Collector:
    """The running service; `run` is the way in."""

    def __init__(self, settings: CollectorSettings, open_datapath: OpenDatapath | None = None) -> None:
        self.settings = settings
        self.started = time.time()
        self.bus = Bus(
            settings.nats_url, name=f"ztlens collector {settings.node}", max_bytes=settings.stream_max_bytes,
            max_age=settings.stream_max_age,
        )  # fmt: skip
        self.records = Records(self.bus, settings.node)
        self.memory = Memory(settings.run_dir)
        self.metrics = self._metrics() if settings.metrics else None
        self.notices: deque[str] = deque(maxlen=NOTICES)
        self.ending = False
        self._gone = False  # unpinned: what is not delivered now never will be
        self.datapath: Datapath
        self.node: Node
        self.live: Live
        self.pump: Pump
        self.accounts: Accounts
        self.file: PolicyFile | None = None
        self._open = open_datapath or collector.kernel.open_datapath
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel")
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumping: asyncio.Task[None] | None = None
        self._burying: asyncio.Task[None] | None = None
        self._finish: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next_sweep = self._sums_at = 0.0
        self._faults: dict[str, str] = {}

    def _metrics(self) -> "Metrics":
        from collector.metrics import Metrics  # noqa: PLC0415 - its library takes time, and is seldom asked for

        return Metrics(self)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function` in the thread that owns the datapath."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Until SIGTERM, SIGINT or `down`. Raises CollectorError for what cannot be had."""
        wanted = await asyncio.to_thread(Wanted.read, self.settings.policy_file) if self.settings.policy_file else None
        if wanted is not None and wanted.problem is not None and not self.settings.pins.exists():
            raise wanted.problem  # nothing runs that could be adopted: touch no interface
        self.memory.load()
        self._handle_signals()
        control = ControlServer(self.settings.control_socket, handlers(self))
        try:
            self.datapath = await self.call(self._open, self.settings.datapath(), partial(self._prepare, wanted))
            try:
                if self.metrics is not None:
                    self.metrics.listen(self.settings.metrics)
                await self._begin(wanted)
                await control.start()
            except CollectorError:
                await self._undo()
                raise
            if ready is not None:
                ready.set()
            await self._finish
        finally:
            await control.stop()
            await self._end()
            if self.metrics is not None:
                await asyncio.to_thread(self.metrics.close)
            self._thread.shutdown(wait=True)
            self._forget_signals()

    def _prepare(self, wanted: Wanted | None, datapath: Datapath) -> None:
        """Policy and mode before the first packet; in the kernel thread."""
        self.node = self._node(datapath)
        self.node.prepare(wanted, self.settings.mode, datapath.predecessor)

    def _node(self, datapath: Datapath) -> Node:
        return Node(datapath, self.call, self.records, self.memory, self.settings.node, lambda: self.bus.peer)

    async def _begin(self, wanted: Wanted | None) -> None:
        datapath, settings = self.datapath, self.settings
        if datapath.adopted:
            self.node = self._node(datapath)
        if self.metrics is not None:
            self.metrics.begin()
        self.accounts = Accounts(datapath, settings.node, *([self.metrics.rules] if self.metrics is not None else []))
        self.live = Live(self.bus, settings.node, settings.live_cap, self.node.names)
        self.pump = self._pump(datapath, live=True)
        for line in datapath.notices:
            self.notice(line)
        dealt_with = await self.node.begin(wanted, settings.mode)
        if wanted is not None and settings.policy_file is not None:
            self.file = self._policy_file(settings.policy_file)
            self.file.begin(wanted, dealt_with=dealt_with)
        await self.call(self.accounts.take)
        where = ", ".join(f"{name} ({how})" for name, how in datapath.interfaces.items()) or "no interface"
        log.info("ring %s, revision %d, watching %s", datapath.ring_id, datapath.revision, where)
        self._start(self.bus.run())
        self._pumping = self._start(self.pump.run())
        self._start(self.records.run())
        self._start(self._tick_for_ever())
        if self.file is not None:
            self._start(self.file.run())
        self._listen_to_host()
        self._start(Interfaces(datapath, self.call, self.notice, self.node.warn).run())
        if datapath.predecessor is not None:
            self._burying = self._start(self._bury(datapath.predecessor))

    async def _undo(self) -> None:
        """A start that failed leaves nothing behind, unless it found something running."""
        if not self.datapath.adopted:
            await self.call(self.datapath.detach)
            await self.call(self.datapath.unpin)

    def _pump(self, ring: Datapath, *, live: bool) -> Pump:
        async def offer(rows: np.ndarray, clock: int, behind: bool) -> None:
            await self.live.offer(rows, clock=clock, ring=ring.ring_id, behind=behind)

        s = self.settings
        return Pump(
            ring, self.bus, node=s.node, batch=s.batch, batch_wait=s.batch_wait, in_flight=s.in_flight,
            offer=offer if live and s.live_cap > 0 else None,
            count=self.metrics.count if live and self.metrics is not None else None,
            drained=self.metrics.drained if live and self.metrics is not None else None,
        )  # fmt: skip

    def notice(self, line: str) -> None:
        """Something an operator should know, in the log and in `status`."""
        self.notices.append(line)
        log.warning(line)

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._stopped)
        return task

    def _stopped(self, task: "asyncio.Task[None]") -> None:
        """A part that died takes the collector with it: the next one adopts the datapath and loses nothing."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._finish.done():
            return
        log.debug("stopped", exc_info=error)
        if not isinstance(error, CollectorError):
            error = CollectorError(f"{type(error).__name__}: {error}", "this is a fault of ztlens; --debug shows more")
        self._finish.set_exception(error)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: log.debug("%s", context.get("message"), exc_info=context.get("exception"))
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _forget_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Leave the datapath running and end."""
        if not self._finish.done():
            self._finish.set_result(None)

    # ── what changes by itself ──────────────────────────────────────────────────────────────────────────────────

    def _policy_file(self, path: Path) -> PolicyFile:
        who = f"policy file {path} changed"

        async def apply(text: str) -> None:
            await self.node.apply(text, str(path), who)

        def wait() -> bool:
            return self.ending or self.node.unconfirmed() is not None

        return PolicyFile(path, apply, lambda error: self.node.refuse(error, who), wait)

    def _reload(self) -> None:
        """SIGHUP: read the policy file again; a broken one changes nothing."""
        if self.file is not None:
            self._start(self.file.reload())
        else:
            log.warning("SIGHUP: no policy file to read again")

    def _listen_to_host(self) -> None:
        """Wait for an address to come or go, then for those that come with it, then look at all."""
        loop, host = asyncio.get_running_loop(), self.datapath.host

        def moved() -> None:
            loop.remove_reader(host.fileno())
            loop.call_later(HOST_SECONDS, lambda: self._finish.done() or self._start(follow()))

        async def follow() -> None:
            try:
                await self.node.follow()
            except (CollectorError, OSError) as error:
                self._fault("host addresses", error)
            if not self._finish.done():
                loop.add_reader(host.fileno(), moved)

        loop.add_reader(host.fileno(), moved)

    # ── sweep and loss ──────────────────────────────────────────────────────────────────────────────────────────

    async def _tick_for_ever(self) -> None:
        due = time.monotonic()
        while True:
            await self.tick()
            due = max(due + TICK, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def tick(self, *, fresh: bool = False) -> None:
        """Sweep if it is time, look at every counter, queue the loss record. Kernel trouble is told, not fatal."""
        sums = None
        if self.ending:
            return
        try:
            await self.node.settle()
            now = time.monotonic()
            if fresh or now >= self._next_sweep:
                report = await self.call(self.datapath.sweep)
                took = time.monotonic() - now
                self._next_sweep = now + max(TICK, took / SWEEP_SHARE) - TICK / 2
                if fresh or now - self._sums_at >= SUMS_EVERY:
                    sums, self._sums_at = report.sums, now
            look = await self.call(self.accounts.take)
            if self.metrics is not None:
                self.metrics.look()
        except (CollectorError, OSError) as error:
            self._fault("sweep", error)
            return
        if not self.ending:  # nothing may follow the final record
            self.records.put(self.accounts.record(look, collector=self.counters(), flows=sums))

    def _fault(self, what: str, error: Exception) -> None:
        """Say it when it is new."""
        line = f"{what}: {error}"
        if self._faults.get(what) != line:
            self._faults[what] = line
            self.notice(line)

    def counters(self) -> dict[str, int]:
        """LossRecord.collector: events, since this collector started; `retried` counts attempts."""
        return {
            "received": self.pump.received, "sent": self.pump.sent, "acknowledged": self.pump.acknowledged,
            "retried": self.bus.retried, "live_sent": self.live.sent, "live_capped": self.live.capped,
            "live_failed": self.live.failed, "records_refused": self.records.refused,
        }  # fmt: skip

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        """After `down` nothing is left to do; else flush and leave the kernel side running."""
        self.ending = True
        if self._pumping is not None:
            end = time.monotonic() + (0.0 if self._gone else FLUSH_SECONDS)
            self.pump.stop()
            await asyncio.wait(
                [self._pumping], timeout=max(0.0, end - time.monotonic())
            )  # it hands over what it has read
            flushed = await self.pump.settle(max(0.0, end - time.monotonic()))
            flushed &= await self.records.flush(max(0.0, end - time.monotonic()))
            if not flushed and not self._gone:
                log.warning("NATS did not acknowledge everything in %g s; the rest stays in the ring", FLUSH_SECONDS)
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self.pump.close()
        if hasattr(self, "datapath"):
            asyncio.get_running_loop().remove_reader(self.datapath.host.fileno())
            await self.call(self.datapath.close)

    async def down(self, *, force: bool, who: str) -> dict[str, Any]:
        """Take the datapath away; see the module. Raises RefusedError or StreamError; the ring is then kept."""
        if self.ending:
            raise RefusedError("the collector is ending already", "")
        datapath = self.datapath
        if not force:
            await self.bus.tried.wait()  # a start attaches before it connects
        look = await self.call(self.accounts.take)
        waiting = (look.produced - look.consumed) // datapath.stride
        if not self.bus.connected and not force:
            raise StreamError(
                f"NATS at {self.bus.where} is away: {waiting} events and the last state of every flow would be lost",
                "bring NATS back; or stop the collector with SIGTERM, which keeps them until `ztlens down` drops them",
            )
        if self._burying is not None and not self._burying.done():
            await asyncio.wait([self._burying], timeout=CLOSE_SECONDS)
            if not self._burying.done() and not force:
                raise StreamError("the ring of an older version is not drained yet", "look at NATS, then try again")
        self.ending = True
        log.info("down, asked by %s", who)
        await self.call(datapath.detach)
        try:
            await self._close_ring(datapath, self.pump, self.accounts, force=force)
        except StreamError:
            self.ending = False  # a collector without interfaces: SIGTERM keeps the ring, `down` tries again
            raise
        self.node.closed(who, datapath)
        recorded = await self.records.flush(10.0 if self.bus.connected else 0.0)
        if not recorded and not force:
            self.ending = False
            raise StreamError("NATS did not take the ring's last records", "bring NATS back and try again")
        lost = (datapath.produced - datapath.consumed) // datapath.stride
        await self.call(datapath.unpin)
        self.memory.forget()
        self._gone = True
        final = self.accounts.last
        log.info("ring %s closed at %d, %d events lost", datapath.ring_id, datapath.produced, lost)
        return {
            "ring": datapath.ring_id, "events": datapath.produced // datapath.stride, "lost": lost,
            "packets": final.counters["parsed"], "recorded": recorded,
        }  # fmt: skip

    async def _close_ring(self, ring: Datapath, pump: Pump, accounts: Accounts, *, force: bool = False) -> None:
        """End every flow of a detached datapath, drain its ring, queue its exact last books."""
        end = time.monotonic() + CLOSE_SECONDS
        while True:
            await self.call(ring.end_all_flows)
            sums = (await self.call(ring.sweep)).sums
            if force and not self.bus.connected:
                break
            drained = await pump.wait_drained(max(0.0, min(2.0, end - time.monotonic())))
            if drained and not sums.live and not sums.due:
                break
            if time.monotonic() >= end:
                if force:
                    break
                raise StreamError(
                    f"{sums.live} flows and {(ring.produced - ring.consumed) // ring.stride} events are left after "
                    f"{CLOSE_SECONDS:g} s; the ring is kept",
                    "look at NATS, then try again",
                )
        look = await self.call(lambda: accounts.take(exact=True))
        self.records.put(accounts.record(look, collector=self.counters(), flows=sums, final=True))

    async def _bury(self, old: Datapath) -> None:
        """Drain the ring of an older layout, and before it those still older, for as long as it takes; close them."""
        if old.predecessor is not None:
            await self._bury(old.predecessor)
        pump, accounts = self._pump(old, live=False), Accounts(old, self.settings.node)
        pumping = asyncio.create_task(pump.run())
        try:
            while True:
                try:
                    await self._close_ring(old, pump, accounts)
                    break
                except StreamError as error:
                    self._fault("older ring", error)
            self.node.closed("collector start, newer layout", old)
            if await self.records.flush(CLOSE_SECONDS):
                await self.call(old.unpin)
                log.info("older ring %s drained and closed at %d", old.ring_id, old.produced)
        finally:
            pump.stop()
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
            await pump.settle(0)
            pump.close()
        await self.call(old.close)


async def run(
    settings: CollectorSettings, *, open_datapath: OpenDatapath | None = None, ready: asyncio.Event | None = None
) -> None:
    """The collector's life. Raises CollectorError; `ready` is set once the control socket listens."""
    await Collector(settings, open_datapath).run(ready)


def configure_log(debug: bool = False) -> None:
    """One timestamped line a message to stderr; tracebacks only with `debug`."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)-7s collector: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.DEBUG if debug else logging.INFO)


def main(settings: CollectorSettings) -> int:
    """Run on uvloop; returns the exit status of docs/cli.md and has said on stderr what went wrong."""
    configure_log(settings.debug)
    try:
        uvloop.run(run(settings))
    except CollectorError as error:
        log.debug("failed", exc_info=error)
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_status
    return 0
