"""The sink: reads both streams, commits, keeps house, answers questions. SIGTERM: what was read is stored first."""

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from nats.aio.client import Client

from schemas import subjects
from sink import api
from sink.archive import Archive
from sink.consume import AWAY, Reader, Waiting, connect, gather, stream_info, take_ready
from sink.errors import MemoryFullError, StoreError
from sink.gaps import HoleWatch
from sink.history import views
from sink.history.ledger import rfc3339
from sink.metrics import Metrics
from sink.settings import SinkSettings
from sink.store import Commit, Store, compaction, retention, rollup

log = logging.getLogger("ztlens.sink")

TICK = 1.0
_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20
"""Bytes."""
_CLOSING = 2.0
"""Seconds a sink that ends spends on roll-ups at most."""
_LAG_SHARE = 0.8
"""A sink that has this share of what a stream keeps still before it is warned about."""


_TRIES = 5
_LETTING_GO = 0.05
"""Seconds a question that is broken off gets to give its memory back; it is asked again after twice as long."""


class Sink:
    """One running sink over an open store."""

    def __init__(self, store: Store, settings: SinkSettings) -> None:
        self.store = store
        self.settings = settings
        self.started = time.time_ns()
        self.client: Client | None = None
        self._queue = Waiting(settings.fetch * 2)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._readers = {
            name: Reader(name, store, settings, self._queue, self.write)
            for name in (subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM)
        }
        self._holes = HoleWatch(settings.gap_deadline, time.monotonic)
        self.last_commit: float | None = None
        self._archive = Archive(settings.archive) if settings.archive else None
        self._filling: asyncio.Task[bool] | None = None
        self._trouble = ""
        self._stopping = False
        self.api = api.Api(store, settings, self.status, self._behind)
        self.metrics = Metrics(self) if settings.metrics else None

    async def write(self, work: Any, *args: Any) -> Any:
        """Run `work` in the one thread that writes."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._with_memory, work, *args)

    def _with_memory(self, work: Any, *args: Any) -> Any:
        """What stores comes before what asks: questions that hold memory it needs are broken off, and asked again."""
        for _ in range(_TRIES):
            try:
                return self.store.tried(work, *args)
            except MemoryFullError as error:
                log.info("%s: questions under way are broken off", error)
                self.store.interrupt()
                time.sleep(_LETTING_GO)
        return self.store.tried(work, *args)

    def _returned(self) -> None:
        for reader in self._readers.values():
            reader.again()

    async def consume(self) -> None:
        """Connect and read both streams, for ever."""
        self.client = await connect(self.settings.nats_url, self._returned)
        await asyncio.gather(*(reader.run(self.client) for reader in self._readers.values()))

    async def commit(self) -> None:
        """Commit what the readers bring, for ever."""
        while True:
            await self._store(await gather(self._queue, self.settings, self.last_commit))

    async def _store(self, commit: Commit) -> bool:
        """One commit, tried again until it is through; while stopping only once, for it will be read again."""
        wait = 0.2
        while True:
            try:
                await self.write(self.store.append, commit)
            except StoreError as error:
                if not self._trouble:
                    log.error("%s (%s)", error, error.hint)
                self._trouble = str(error)
                if self._stopping:
                    return False
            else:
                if self._trouble:
                    log.info("the store takes commits again")
                self._trouble = ""
                self.last_commit = time.monotonic()
                for name in commit.marks:
                    self._readers[name].committed()
                return True
            await asyncio.sleep(wait)
            wait = min(5.0, wait * 2)

    async def flush(self) -> None:
        """Commit what is still in the queue."""
        self._stopping = True
        while not self._queue.empty:
            commit = Commit()
            await take_ready(commit, self._queue, self.settings.commit_rows_max)
            if not await self._store(commit):
                return

    async def keep_house(self) -> None:
        """Gaps each second, merging when it is worth it, roll-ups (much that waits: at once) and retention each at its
        interval."""
        next_rollup = next_retention = 0.0
        while True:
            try:
                await self._declare_gaps()
                await self.write(retention.merge, self.store)
                if time.monotonic() >= min(next_rollup, next_retention) or await self.write(rollup.due, self.store):
                    await self._roll_up()
                    next_rollup = time.monotonic() + self.settings.rollup_interval
                if time.monotonic() >= next_retention and await self._retain():
                    next_retention = time.monotonic() + self.settings.retention_interval
            except StoreError as error:
                log.error("%s (%s)", error, error.hint)
            except AWAY:
                pass  # the readers say so
            await asyncio.sleep(TICK)

    async def _retain(self) -> bool:
        """Retention. What it is to delete goes into the archive first, beside everything else: False until then."""
        if self._archive is not None:
            if self._filling is None:
                until = await self.write(retention.horizon, self.store, self.settings)
                self._filling = asyncio.create_task(asyncio.to_thread(self._archive.fill, self.store, until))
            if not self._filling.done():
                return False
            self._filling.result()
            self._filling = None
        await self.write(retention.apply, self.store, self.settings, self._archive)
        return True

    def _behind(self) -> bool:
        """Whether there is always more to store."""
        return self._queue.size >= self.settings.fetch

    async def _roll_up(self, seconds: float = math.inf) -> None:
        """Step by step, so that commits go between; a sink that is behind stores first. Gives up after `seconds`."""
        end = time.monotonic() + seconds
        while not self._behind() and time.monotonic() < end:
            if not await self.write(rollup.step, self.store) and not await self.write(rollup.fold, self.store):
                return

    async def _declare_gaps(self) -> None:
        holes = await self.write(lambda: self._holes.holes(self.store.state))
        if not holes or self.client is None:
            return
        info = await stream_info(self.client, subjects.VERDICTS_STREAM)
        ripe = self._holes.ripe(holes, info.last, self._readers[subjects.VERDICTS_STREAM].watermark)
        if ripe:
            await self.write(self.store.declare_gaps, ripe)

    async def status(self) -> dict[str, Any]:
        """The document of GET /api/v1/status."""
        path = self.settings.database
        connected = bool(self.client and self.client.is_connected)
        streams, notices = {}, [self._trouble] if self._trouble else []
        for name, reader in self._readers.items():
            entry: dict[str, Any] = {"sequence": reader.watermark, "dead": reader.dead}
            if connected and self.client:
                with contextlib.suppress(*AWAY):
                    info = await asyncio.wait_for(stream_info(self.client, name), 1.0)
                    lag, ratio = info.lag(reader.watermark), round(info.lag_ratio(reader.watermark), 6)
                    entry |= {"last": info.last, "lag": lag, "messages": info.messages, "lag_ratio": ratio}
                    if info.messages > 100 and entry["lag"] > _LAG_SHARE * info.messages:
                        notices.append(f"stream {name}: {entry['lag']} messages behind, it keeps {info.messages}")
            streams[name] = entry
        if not connected:
            notices.append("NATS is away")
        if self._archive is not None and self._archive.trouble:
            notices.append(self._archive.trouble)
        nodes = self._nodes()
        notices += [f"node {name} is silent: nothing heard of it for {node['heard_seconds']:.0f} s"
                    for name, node in nodes.items() if node["state"] == "silent"]  # fmt: skip
        wal = path.with_name(path.name + ".wal")
        return {
            "running": True,
            "pid": os.getpid(),
            "started": rfc3339(self.started),
            "nats": {"url": _without_secrets(self.settings.nats_url), "connected": connected},
            "streams": streams,
            "nodes": nodes,
            "counters": self.store.counters.report(),
            "questions": dict(self.api.counters),
            "last_commit_seconds": None if self.last_commit is None else round(time.monotonic() - self.last_commit, 3),
            "database": {
                "path": str(path),
                "bytes": path.stat().st_size if path.exists() else 0,
                "wal_bytes": wal.stat().st_size if wal.exists() else 0,
            },
            "archive": None
            if self._archive is None
            else {"path": str(self._archive.directory), **self._archive.counters},
            "notices": notices,
        }

    def _nodes(self) -> dict[str, dict[str, Any]]:
        """Of each node how its newest ring does: live, silent or closed."""
        out = {}
        for ring in sorted(self.store.state.rings.values(), key=lambda ring: ring.id):
            quiet = time.monotonic() - ring.heard
            state = "closed" if ring.closed else "silent" if quiet > views.SILENT else "live"
            out[ring.node] = {"ring": ring.name, "state": state, "heard_seconds": round(quiet, 3)}
        return out

    async def close(self) -> None:
        """After the tasks have ended: store what was read, roll it up if that is soon done, close everything."""
        await self.flush()
        with contextlib.suppress(StoreError):  # the next sink goes on with it
            await self._roll_up(_CLOSING)
        if self.client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self.client.close(), 2)
        if self.metrics is not None:
            await asyncio.to_thread(self.metrics.close)
        self.api.close()
        await self.write(self.store.close)
        self._writer.shutdown()


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")


async def cancelled(tasks: "set[asyncio.Task[Any]]") -> None:
    """Cancel tasks until they have ended.

    Once is not enough: in Python 3.11 an error that `wait_for` (and so nats-py) waited for overtakes a cancellation
    that comes at the same moment, as when NATS is stopped together with the sink.
    """
    left = tasks
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.5)
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def bounded(most: int) -> Iterator[None]:
    """This process can allocate `most` bytes, 0: any number.

    DuckDB's limit is of what it keeps in blocks. A text of 4 GB that a question makes is beside it; this turns that
    into an error of the question, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if most and (hard == resource.RLIM_INFINITY or most < hard):
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _give_back() -> None:
    """Arrays of a question go back to the system with it.

    glibc maps what is large by itself, but calls nothing large any more that is smaller than the largest it has freed,
    up to 32 MiB: then the arrays of each thread stay in a heap of its own.
    """
    with contextlib.suppress(AttributeError):  # another C library has no such call, and no such habit
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


async def run(settings: SinkSettings, ready: asyncio.Event | None = None) -> None:
    """Be a sink until SIGTERM or SIGINT. `ready` is set once questions are answered.

    Raises SinkError when it cannot start: database in use or of a newer version, socket taken.
    """
    _give_back()
    with bounded(settings.process_memory):
        await _run(settings, ready)


async def _run(settings: SinkSettings, ready: asyncio.Event | None) -> None:
    compaction.settle(settings.database)
    if compaction.worthwhile(settings.database):
        log.info("most of %s is free: it is compacted first", settings.database)
        compaction.compact(settings.database, settings.memory_limit, settings.threads)
    store = Store.open(settings)
    try:
        listener = api.bind(settings.socket)
    except BaseException:
        store.close()
        raise
    sink = Sink(store, settings)
    try:
        if sink.metrics is not None:
            sink.metrics.listen(settings.metrics)
    except BaseException:
        listener.close()
        settings.socket.unlink(missing_ok=True)
        await sink.close()
        raise
    server = api.server(sink.api.app if sink.metrics is None else sink.metrics.measured(sink.api.app))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: somebody else stops us
            loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    work = [sink.consume(), sink.commit(), sink.keep_house()]
    if sink.metrics is not None:
        await sink.metrics.begin()
        work.append(sink.metrics.run())
    tasks = [asyncio.create_task(part) for part in work]
    stopping = asyncio.create_task(stop.wait())
    log.info("%s, answering on %s", settings.database, settings.socket)
    if ready is not None:
        ready.set()
    try:
        done, _ = await asyncio.wait([serving, stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()  # none of them ends by itself: whatever it raised is raised here
    finally:
        await cancelled({*tasks, stopping})
        server.should_exit = True
        sink.api.live.close()  # the server waits for what streams
        await asyncio.gather(serving, return_exceptions=True)
        await sink.close()
        settings.socket.unlink(missing_ok=True)
