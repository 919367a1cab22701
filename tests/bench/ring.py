"""From the ring to numpy, and from the ring to acknowledgements of JetStream, one process and one core.

The datapath itself fills the ring, by test-run, with samples of 10,000 flows; then the clock runs until everything
is read, or acknowledged and released. The pump is the collector's with its live subjects, the server a real one on
the same machine. The peers are the same loops around BCC's callback, which is a Python call per event.
"""

import asyncio
import ctypes
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Self, cast

import numpy as np
import uvloop
from bcc import libbcc

from collector.bus import Bus
from collector.kernel import libbpf
from collector.kernel.interface import Datapath
from collector.kernel.private import PrivateDatapath, private_datapath
from collector.live import Live
from collector.names import RevisionNames
from collector.ring import Pump, clock_offset
from collector.settings import CollectorSettings
from schemas import envelope, subjects
from schemas.verdict import DTYPE
from tests.bench.figures import Figure, Options
from tests.bench.peers import Peers
from tests.bench.policies import ALLOWED_PORT, policy
from tests.bench.processes import cpu_seconds
from tests.support.kernel import udp_frame
from tests.support.nats import NatsServer
from tests.support.until import until

FLOWS = 10_000
RATE, CPU = "events/s", "ns/event"
NODE = "bench"
DEFAULTS = CollectorSettings(node=NODE, interfaces=())


class Bench:
    """See the module."""

    NAME = "ring"
    WHAT = "events/s out of the ring"
    FIGURES = (
        Figure("BCC → bytes", "BCC's callback, each record copied out", RATE),
        Figure("ring → numpy", "read, copied, released", RATE, at_least=5e6, peer="BCC → bytes"),
        Figure("BCC → JetStream", "BCC's callback, batches acknowledged by JetStream", RATE),
        Figure("ring → JetStream", "the collector's pump, everything acknowledged and released", RATE, at_least=1e6,
               peer="BCC → JetStream"),
        Figure("without live", "the same without live subjects", RATE, peer="ring → JetStream"),
        Figure("collector CPU", "of the pump's process, per event", CPU),
        Figure("nats-server CPU", "of the server's process, per event", CPU),
    )  # fmt: skip

    def __init__(self, options: Options) -> None:
        self.notes: list[str] = []
        self._loader, self._rounds = options.loader, 3 if options.quick else 10
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        stack = self._stack
        self._datapath: PrivateDatapath = stack.enter_context(
            private_datapath(loader=self._loader, sample=1, budget=4_000_000_000)
        )
        self._policy = policy(10)
        self._datapath.apply(self._policy, 1)
        self._peers = Peers()
        stack.callback(self._peers.close)
        self._frame = np.frombuffer(udp_frame("10.1.0.1", 40_000, "10.2.0.1", ALLOWED_PORT, bytes(18)), np.uint8)
        self._fill_size = self._datapath.ring_bytes // 2 // self._datapath.stride  # above half, samples stop
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        self._server = stack.enter_context(NatsServer(scratch))
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        # The first packets of all flows are events of their own kind: out of the way.
        self._fill()
        self._read()
        self.notes.append(f"{self._rounds} × {self._fill_size:,} events each, batches of {DEFAULTS.batch:,}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        out = {
            "BCC → bytes": self._rate(self._fill_bcc, self._read_bcc, 1),
            "ring → numpy": self._rate(self._fill, self._read, self._rounds),
            "BCC → JetStream": uvloop.run(self._with_bus(self._publish_bcc)),
        }
        out["without live"] = uvloop.run(self._with_bus(lambda bus: self._publish(bus, live=False)))
        mine, theirs = process_time(), cpu_seconds(self._server.pid)
        filling = self._filling
        out["ring → JetStream"] = uvloop.run(self._with_bus(lambda bus: self._publish(bus, live=True)))
        events = self._rounds * self._fill_size / 1e9
        out["collector CPU"] = (process_time() - mine - (self._filling - filling)) / events
        out["nats-server CPU"] = (cpu_seconds(self._server.pid) - theirs) / events
        return out

    _filling = 0.0  # CPU seconds of this process spent on filling

    def _fill(self) -> int:
        """Fill the ring to its half from the datapath; → events."""
        datapath = self._datapath
        assert datapath.produced == datapath.consumed, "the ring is not empty"
        before, begun = datapath.produced, process_time()
        stir = self._peers.stir(datapath.handle.programs["xdp_ingress"], FLOWS)
        # In a thread: what uvloop has the kernel do for this one interrupts a test-run (EINTR).
        self._thread.submit(libbpf.test_run, stir, self._frame, repeat=self._fill_size).result()
        n = (datapath.produced - before) // datapath.stride
        assert n >= self._fill_size, f"{self._fill_size} packets made {n} events"
        self._filling += process_time() - begun
        return n

    def _rate(self, fill: Callable[[], int], drain: Callable[[], int], rounds: int) -> float:
        """Events a second of `drain`, which returns how many it took."""
        events = seconds = 0.0
        for _ in range(rounds):
            n = fill()
            begun = perf_counter()
            drained = drain()
            seconds += perf_counter() - begun
            assert drained == n, f"{n} events in the ring, {drained} read"
            events += n
        return events / seconds

    def _read(self) -> int:
        """As the collector reads."""
        datapath, n = self._datapath, 0
        while (events := datapath.read(DEFAULTS.batch)) is not None:
            datapath.release(events.start + len(events.rows) * datapath.stride)
            n += len(events.rows)
        return n

    # ── through BCC's own ring buffer reader ────────────────────────────────────────────────────────────────────

    def _consume_bcc(self, each: Callable[[bytes], None]) -> None:
        """Call `each` with every record; BCC moves the consumer position itself."""

        def callback(_: Any, data: Any, size: int) -> int:
            each(ctypes.string_at(data, size))
            return 0

        function = libbcc._RINGBUF_CB_TYPE(callback)
        fd = self._datapath.handle.events.fd
        reader = libbcc.lib.bpf_new_ringbuf(fd, function, None)
        assert reader, "BCC cannot open the ring"
        try:
            libbcc.lib.bpf_consume_ringbuf(reader)
        finally:
            libbcc.lib.bpf_free_ringbuf(reader)
        self._datapath.handle.totals.values["consumed"][0] = self._datapath.consumed // self._datapath.stride

    def _fill_bcc(self) -> int:
        """`_fill`; our own reader looks at it once, so that it goes on behind what BCC will release."""
        n = self._fill()
        while self._datapath.read(65_536) is not None:
            pass
        return n

    def _read_bcc(self) -> int:
        records: list[bytes] = []
        self._consume_bcc(records.append)
        return len(records)

    async def _publish_bcc(self, bus: Bus) -> float:
        """The simplest such loop: gather a batch, publish it, wait for the acknowledgement of all."""
        n, consumed = self._fill_bcc(), self._datapath.consumed
        begun = perf_counter()
        records: list[bytes] = []
        tasks: list[asyncio.Task[None]] = []

        def publish() -> None:
            rows = np.frombuffer(b"".join(records), DTYPE)
            start = consumed + len(tasks) * DEFAULTS.batch * self._datapath.stride
            payload = envelope.encode(rows, node=NODE, ring="bcc", start=start, clock=clock_offset(), rev=1)
            tasks.append(asyncio.create_task(bus.deliver(subjects.verdicts(NODE), payload, f"bcc:{begun}-{start}")))
            records.clear()

        def each(record: bytes) -> None:
            records.append(record)
            if len(records) == DEFAULTS.batch:
                publish()

        self._consume_bcc(each)
        if records:
            publish()
        await asyncio.gather(*tasks)
        return n / (perf_counter() - begun)

    # ── through the collector's pump ────────────────────────────────────────────────────────────────────────────

    async def _with_bus(self, work: Callable[[Bus], Coroutine[Any, Any, float]]) -> float:
        bus = Bus(self._server.url, name="bench", max_bytes=1 << 30)
        task = asyncio.create_task(bus.run())
        try:
            await until(lambda: bus.connected, "connected to NATS")
            return await work(bus)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _publish(self, bus: Bus, *, live: bool) -> float:
        datapath, names = self._datapath, RevisionNames()
        names.remember(1, self._policy)
        told = Live(bus, NODE, DEFAULTS.live_cap, names)

        async def offer(rows: np.ndarray, clock: int, behind: bool) -> None:
            await told.offer(rows, clock=clock, ring=datapath.ring_id, behind=behind)

        events = seconds = 0.0
        for _ in range(self._rounds):
            n = self._fill()
            pump = Pump(
                cast(Datapath, datapath), bus, node=NODE, batch=DEFAULTS.batch, batch_wait=DEFAULTS.batch_wait,
                in_flight=DEFAULTS.in_flight, offer=offer if live else None,
            )  # fmt: skip
            begun = perf_counter()
            running = asyncio.create_task(pump.run())
            drained = await pump.wait_drained(60)
            seconds += perf_counter() - begun
            pump.stop()
            await running
            pump.close()
            assert drained and pump.acknowledged == n, f"{n} events, {pump.acknowledged} acknowledged"
            events += n
        return events / seconds
