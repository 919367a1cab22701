"""Everything on this host: NATS, the sink, the collector and the page as children of one process, `ztlens up`.

They are started one after the other, each awaited; one that dies is restarted with back-off. The end is in order, so
that nothing is lost: the collector detaches, ends every flow, drains the ring and closes the record; the sink stores
what the stream holds; then sink and NATS stop.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from web.published import told
from ztlens import nats, show
from ztlens.checks import before_start, pinned
from ztlens.config import Settings
from ztlens.down import clean_up, lost
from ztlens.errors import BadInput, CliError, Missing, one_line
from ztlens.lookup import collector_request, sink_ledger, sink_status, web_link
from ztlens.nats_store import StoreWatch
from ztlens.parts import Part, clean_environment, ztlens_command
from ztlens.privilege import kept
from ztlens.running import Lock

PATIENCE = {"nats": 60.0, "sink": 120.0, "collector": 120.0, "web": 60.0}
"""Seconds until a part must work; BCC compiles for some 10 s on a small machine."""
DRAIN = 60.0
"""Seconds for the collector to drain."""
STALLED = 30.0
"""Seconds without any progress after which the sink is not waited for."""

Step = Callable[["Up"], Awaitable[None]]
Watch = Callable[["Up", asyncio.Event], Coroutine[Any, Any, None]]
"""Sets the event once nothing can be missed any more."""


class Up:
    """One run of `up`: `run`, or `start` and `stop` by whoever has a loop of his own."""

    def __init__(self, settings: Settings, report: Callable[[str], None] = show.say) -> None:
        self.settings = settings
        self.url = settings.nats
        self.parts: dict[str, Part] = {}
        self.stopping = asyncio.Event()
        self.ledger: dict[str, Any] | None = None
        self.metrics = metrics_of_parts(settings["metrics"])
        self._report = report
        self._keepers: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._lock: Lock | None = None
        self._store = StoreWatch(settings.state)
        self._since = time.time()
        self._ours = False  # the kernel side is this run's to take away
        self.closed: str | None = None  # the ring whose record the collector closed
        self.settled = False  # the store holds all that was published

    async def run(self, tell: Step, watch: Watch | None = None) -> None:
        """Start, tell, wait for Ctrl-C or SIGTERM, stop. Raises CliError if the start fails (all is stopped then).

        `watch` runs from before the collector starts, so that it sees the first verdict; what it raises is told.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stopping.set)
        try:
            await self.start(watch)
            await tell(self)
            await self.stopping.wait()
        finally:
            await self.stop()
            await self._stop_watching()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def start(self, watch: Watch | None = None) -> None:
        """NATS, sink, collector, each awaited. Raises CliError; then call `stop` all the same."""
        await asyncio.to_thread(before_start, self.settings, "up")
        self._lock = Lock(self.settings)
        self.settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.url:
            server = nats.configure(self.settings)
            self.url = server.url
            self._add("nats", [str(server.program), "--config", str(server.config)], self._nats_answers)
        else:
            await nats.check(self.url)
        file = self.settings.run_dir / "up.toml"
        nats.write_private(file, self.settings.replaced(nats=self.url).toml())
        # Published first: `down` must find us from here on, even while parts start.
        self._publish()
        for name, answers in (("sink", self._sink_answers), ("collector", self._collector_answers)):
            listen = ["--metrics", self.metrics[name]] if self.metrics else []
            self._add(name, ztlens_command(name, "--config", str(file), *listen), answers)
        self._ours = not pinned(self.settings)
        for name, part in self.parts.items():
            if name == "collector" and watch is not None:
                await self._unless_stopped(self._begin_watching(watch))
            await self._unless_stopped(part.start(PATIENCE[name]))
        self._ours = True
        await self._start_page(file)
        self._keepers = [asyncio.ensure_future(part.keep(PATIENCE[name])) for name, part in self.parts.items()]
        self._publish()
        if "nats" in self.parts:
            self._keepers.append(asyncio.ensure_future(self._store.keep(self.parts["nats"], self._report)))

    def _publish(self) -> None:
        """What runs; once all is up, the processes of the parts that are alive, too. Raises OSError."""
        assert self._lock is not None
        info: dict[str, Any] = {
            "nats": self.url, "state": str(self.settings.state), "since": self._since, "node": self.settings.node,
        }  # fmt: skip
        if self._keepers:
            info["parts"] = {name: part.pid for name, part in self.parts.items() if part.alive}
        self._lock.publish(info)

    def _changed(self) -> None:
        """A part began or ended. No room for the file is no reason to stop either."""
        if self._keepers:  # before they keep and while they are stopped it says nothing of parts
            try:
                self._publish()
            except OSError as error:
                self._report(f"up.json names processes of before: {one_line(str(error))}")

    async def _start_page(self, file: Path) -> None:
        """A page that cannot be had is told, and stops nothing."""
        if self.settings["web"] in ("off", ""):
            return
        self._add("web", ztlens_command("web", "--config", str(file)), self._web_answers)
        try:
            await self._unless_stopped(self.parts["web"].start(PATIENCE["web"]))
            self._report(f"web: {told(web_link(self.settings.run_dir))}")
        except CliError as error:
            if self.stopping.is_set():
                raise
            del self.parts["web"]
            self._report(f"no page: {one_line(str(error))} ({one_line(error.hint)})")

    async def _begin_watching(self, watch: Watch) -> None:
        ready = asyncio.Event()
        self._watching = asyncio.ensure_future(watch(self, ready))
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait([self._watching, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._watching.add_done_callback(self._watching_ended)

    def _watching_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(f"live verdicts: {one_line(str(error)) or type(error).__name__}")

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _unless_stopped(self, step: Awaitable[None]) -> None:
        """`step`, given up when somebody asks to stop."""
        task = asyncio.ensure_future(step)
        stop = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise Missing("stopped while starting", "start it again")
        stop.cancel()
        await task

    def _add(self, name: str, command: list[str], ready: Callable[[], Awaitable[None]]) -> None:
        worth = {"nats": self._store.worth_telling, "web": _no_address}.get(name, bool)
        self.parts[name] = Part(
            name, command, ready, self._report, self._changed, environment=clean_environment(), worth_telling=worth,
            kept=None if name == "collector" else kept(self.settings, command[0]),
        )  # fmt: skip

    async def _nats_answers(self) -> None:
        await nats.check(self.url)

    async def _sink_answers(self) -> None:
        await asyncio.to_thread(sink_status, self.settings.run_dir)

    async def _collector_answers(self) -> None:
        await asyncio.to_thread(collector_request, self.settings.run_dir, "status")

    async def _web_answers(self) -> None:
        await asyncio.to_thread(web_link, self.settings.run_dir)

    async def stop(self) -> None:
        """The end, in order. Idempotent; what does not answer is passed over, and said."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        collector, sink, server, page = (self.parts.get(name) for name in ("collector", "sink", "nats", "web"))
        if page is not None:
            await page.stop(5.0)
        if collector is not None:
            await self._stop_collector(collector)
        if sink is not None and sink.alive:
            await self._store_the_rest()
            await sink.stop(30.0)
        if server is not None:
            await server.stop(10.0)
        self.parts = {}
        if self._lock is not None:
            (self.settings.run_dir / "up.toml").unlink(missing_ok=True)
            self._lock.release()
            self._lock = None
            with contextlib.suppress(OSError):
                self.settings.run_dir.rmdir()

    async def _stop_collector(self, collector: Part) -> None:
        """Its own `down`; if it cannot, its datapath is cleaned up from here."""
        if collector.alive:
            try:
                done = await asyncio.to_thread(collector_request, self.settings.run_dir, "down", timeout=DRAIN)
                self.closed = done["ring"] if done["recorded"] else None
                assert collector.process is not None
                await asyncio.wait_for(collector.process.wait(), DRAIN)
            except Exception as error:
                self._report(f"collector does not answer `down`: {one_line(str(error)) or type(error).__name__}")
        await collector.stop(10.0)
        if not self._ours:
            return  # the start failed and something was running before: it goes on
        try:
            unread = await asyncio.to_thread(clean_up, self.settings)
            if unread is not None:
                self._report("took the kernel side away without its collector" + lost(unread))
        except Exception as error:
            self._report(f"the kernel side is still there: {one_line(str(error))}")

    async def _store_the_rest(self) -> None:
        """Wait until the sink holds all that was published, or stops getting nearer."""
        last, since = None, time.monotonic()
        while time.monotonic() - since < STALLED:
            try:
                self.ledger = await asyncio.to_thread(sink_ledger, self.settings.run_dir)
            except Exception as error:
                self._report(f"the sink does not answer: {one_line(str(error))}")
                return
            self.settled = settled(self.ledger, self.settings.node, self.closed)
            if self.settled:
                return
            if self.ledger != last:
                last, since = self.ledger, time.monotonic()
            await asyncio.sleep(0.05)
        self._report("the sink did not store everything in time; the stream keeps the rest until the next start")


def _no_address(line: str) -> bool:
    """The page's address is told once it answers: it knows no terminal here."""
    return not line.startswith("http://")


def metrics_of_parts(address: str) -> dict[str, str]:
    """Where collector and sink tell their metrics: at HOST:PORT and the port after it; {}: nowhere. Raises BadInput."""
    if not address:
        return {}
    host, _, port = address.rpartition(":")
    if int(port) == 65535:
        raise BadInput(f"--metrics {address}: the sink needs the port after it", "name a lower port")
    return {"collector": address, "sink": f"{host}:{int(port) + 1}"}


def settled(ledger: dict[str, Any], node: str, closed: str | None) -> bool:
    """Whether the store holds all that `node` published; `closed` is the ring whose last records must be there too."""
    rings = {ring["ring"]: ring for ring in ledger["rings"] if ring["node"] == node}
    if closed is not None and not (closed in rings and rings[closed]["closed"] and rings[closed]["final"]):
        return False
    return all((ring["events"]["in_flight"] or 0) <= 0 for ring in rings.values())
