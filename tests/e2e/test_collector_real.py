"""The collector over the real kernel side: frames cross a veth pair, it is killed, adopts, and closes the books."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from collector.control.client import request
from collector.errors import CollectorError
from schemas.verdict import STRIDE
from tests.integration.test_collector_nats import check_cover, stored
from tests.support.collectors import records
from tests.support.kernel import instance, quiet_veth, udp_frame
from tests.support.nats import NatsServer
from tests.support.netns import Lab
from tests.support.until import PATIENCE, until

POLICY = """version: 1
default: deny
identities:
  client: {addresses: [10.0.0.1]}
rules:
  - {name: dns, from: client, to: any, ports: [53/udp], action: allow}
"""

PROGRAM = """
import sys
from pathlib import Path
from collector.kernel.interface import Interface
from collector.service import main
from collector.settings import CollectorSettings
run, pins, netns, loader, url, policy = sys.argv[1:]
sys.exit(main(CollectorSettings(node="n1", interfaces=(Interface("veth0", "ingress"),), run_dir=Path(run),
    pins=Path(pins), netns=netns, loader=loader, nats_url=url, policy_file=Path(policy), batch=100,
    knobs={"FLOWS_MAX": 16384, "RING_BYTES": 1 << 20})))
"""


class Child:
    """A collector process."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path) -> None:
        self.process, self.run_dir = process, run_dir

    async def ask(self, op: str, **args: Any) -> Any:
        return await asyncio.to_thread(request, self.run_dir, op, **args)

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE)


@asynccontextmanager
async def child(run_dir: Path, *arguments: object) -> AsyncIterator[Child]:
    """`arguments`: the others of PROGRAM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(run_dir), *map(str, arguments), stderr=asyncio.subprocess.PIPE
    )
    collector = Child(process, run_dir)

    async def answers() -> bool:
        if process.returncode is not None:
            assert process.stderr is not None
            raise AssertionError((await process.stderr.read()).decode())
        try:
            return bool((await collector.ask("status"))["nats"]["connected"])
        except CollectorError:
            return False

    try:
        await until(answers, "a collector that works")
        yield collector
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_killed_adopted_closed(nats_server: NatsServer, tmp_path: Path, loader: str) -> None:
    """2,000 datagrams of 500 flows; kill -9 in the middle; the books balance to the packet."""
    run_dir, policy = tmp_path / "run", tmp_path / "policy.yaml"
    await asyncio.to_thread(policy.write_text, POLICY)
    with instance() as pins, Lab() as lab:
        netns, wire = quiet_veth(lab)

        async def send(first: int, port: int) -> None:
            for i in range(1000):
                wire.send(udp_frame("10.0.0.1", first + i % 250, "10.0.0.2", port, bytes(18)))
                if i % 50 == 0:
                    await asyncio.sleep(0)

        async with child(run_dir, pins, netns, loader, nats_server.url, policy) as collector:
            sending = asyncio.create_task(send(1000, 53))
            await until(lambda: _produced(collector), "verdicts")
            await collector.end(signal.SIGKILL)
            await sending
        async with child(run_dir, pins, netns, loader, nats_server.url, policy) as collector:
            status = await collector.ask("status")
            assert (status["adopted"], status["loader"]) == (True, loader)
            assert (await collector.ask("policy.show"))["text"] == POLICY
            await send(2000, 54)
            done = await collector.ask("down")
            assert await asyncio.wait_for(collector.process.wait(), PATIENCE) == 0
    batches = await stored(nats_server)
    check_cover(batches, done["events"] * STRIDE)
    policy_records, loss = await records(nats_server)
    assert [(r.kind, r.revision) for r in policy_records] == [("start", 1), ("start", 1), ("closed", 1)]
    final = loss[-1]
    counters = final.counters
    assert final.final and final.flows is not None
    assert (final.flows.live, final.flows.due) == (0, 0)
    assert counters["parsed"] == final.judged_packets == counters["ended_packets"] == done["packets"] == 2000
    assert counters["flows_created"] == counters["flows_ended"] == 500
    assert counters["events_due"] == final.produced // STRIDE == done["events"]
    ends: dict[int, tuple[int, int, int]] = {}
    for batch in batches:
        for row in batch.rows():
            if row["event"] == 4:
                ends[int(row["flow_id"])] = (int(row["packets_original"]), int(row["dport"]), int(row["decision"]))
    assert sorted(ends.values()) == [(4, 53, 1)] * 250 + [(4, 54, 2)] * 250


async def _produced(collector: Child) -> bool:
    return bool((await collector.ask("status"))["produced"])
