"""A whole collector over a fake datapath, inside the test's loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats

from collector.control.client import request
from collector.kernel.interface import Datapath, DatapathSettings, Interface
from collector.service import Collector
from collector.settings import CollectorSettings
from schemas import messages, subjects
from schemas.messages import LossRecord, PolicyRecord
from tests.support.fake_datapath import FakeDatapath, FakeKernel
from tests.support.nats import NatsServer
from tests.support.until import PATIENCE, until

POLICY = """version: 1
default: deny
identities:
  web: {addresses: [10.0.0.0/24]}
  db: {addresses: [10.0.2.0/24]}
rules:
  - {name: web-to-db, from: web, to: db, ports: [5432/tcp], action: allow}
"""
OTHER = POLICY.replace("5432", "5433")
BROKEN = "version: 1\nrules: [{from: nobody}]\n"


@dataclass
class Opener:
    """Stands for open_datapath: a handle on `kernel`, adopted if somebody had it before."""

    kernel: FakeKernel
    predecessor: FakeDatapath | None = None
    opened: int = 0

    def __call__(self, settings: DatapathSettings, prepare: Callable[[Datapath], None]) -> Datapath:
        datapath = FakeDatapath(
            self.kernel, adopted=self.opened > 0, predecessor=self.predecessor, interfaces=settings.interfaces
        )
        if not datapath.adopted:
            prepare(datapath)  # type: ignore[arg-type]
        self.opened += 1
        settings.pins.mkdir(exist_ok=True)  # what tells the next one that there is something to adopt
        return datapath  # type: ignore[return-value]


def settings_for(directory: Path, url: str, **given: Any) -> CollectorSettings:
    return CollectorSettings(
        **(
            {
                "node": "n1", "interfaces": (Interface("veth0"),), "nats_url": url, "run_dir": directory / "run",
                "pins": directory / "pins", "batch": 100, "batch_wait": 0.01,
            } | given
        )
    )  # fmt: skip


class Running:
    """A collector that runs; `ask` goes through its control socket."""

    def __init__(self, collector: Collector, task: "asyncio.Task[None]") -> None:
        self.collector, self.task = collector, task

    async def ask(self, op: str, **args: Any) -> Any:
        return await asyncio.to_thread(request, self.collector.settings.run_dir, op, **args)

    async def connected(self) -> None:
        await until(lambda: self.collector.bus.connected, "a connection to NATS")

    async def drained(self) -> None:
        await self.connected()
        assert await self.collector.pump.wait_drained(30)

    async def ended(self) -> None:
        await asyncio.wait_for(self.task, PATIENCE)


@asynccontextmanager
async def collecting(settings: CollectorSettings, opener: Opener) -> AsyncIterator[Running]:
    """A started collector; leaving it is SIGTERM's way out, unless it has ended already."""
    collector, ready = Collector(settings, opener), asyncio.Event()
    task = asyncio.create_task(collector.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        await task
    running = Running(collector, task)
    try:
        yield running
    finally:
        collector.stop()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), PATIENCE)


async def records(server: NatsServer) -> tuple[list[PolicyRecord], list[LossRecord]]:
    """All policy and loss records in the stream RECORDS."""
    client = await nats.connect(server.url)
    js = client.jetstream()
    policy: list[PolicyRecord] = []
    loss: list[LossRecord] = []
    for number in range(1, (await js.stream_info(subjects.RECORDS_STREAM)).state.last_seq + 1):
        message = await js.get_msg(subjects.RECORDS_STREAM, number)
        if message.subject == subjects.policy("n1"):
            policy.append(messages.decode(message.data or b"", PolicyRecord))
        else:
            assert message.subject == subjects.loss("n1")
            loss.append(messages.decode(message.data or b"", LossRecord))
    await client.close()
    return policy, loss
