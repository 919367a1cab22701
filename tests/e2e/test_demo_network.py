"""The demo's network and machines by themselves: nothing watches, nothing enforces."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.netns import call_in, wait_for
from ztlens import config
from ztlens.demo import clients, leftovers, netns, servers
from ztlens.demo.network import MACHINES, DemoNetwork
from ztlens.demo.traffic import Traffic
from ztlens.demo.workload import SCANNED, SCANNED_PORTS


@pytest.fixture
async def traffic(demo_network: DemoNetwork) -> AsyncIterator[Traffic]:
    """Machines that listen and do not talk yet."""
    traffic = Traffic(demo_network, patience=20)  # nothing is denied: every step is answered, however slow the machine
    demo_network.boot()
    try:
        await traffic.start()
        yield traffic
    finally:
        await traffic.stop()


async def test_everything_answers_when_nothing_enforces(traffic: Traffic) -> None:
    traffic.go()
    await traffic.wait_rounds(1)
    await traffic.stop()
    visitor, frontend, cache, intruder = (
        traffic.reports[name] for name in ("visitor", "frontend", "cache", "intruder")
    )
    assert set(visitor.done) == {"page/v4", "page/v6", "ping/v4", "ping/v6"}
    assert not visitor.failed
    assert set(frontend.done) == {"shortcut/v4", "shortcut/v6"}
    assert not frontend.failed
    assert set(cache.done) == {"metric/v4"}
    reached = {"scan", "steal-database", "steal-cache", "lookup", "ping", "big-ping"}
    assert set(intruder.done) == {f"{what}/v{family}" for what in reached for family in (4, 6)}
    # Refused: every closed port of the scan (each machine has one open among those asked), and SNMP.
    assert set(intruder.failed) == {"scan/v4", "scan/v6", "snmp/v4", "snmp/v6"}
    rounds = intruder.rounds
    if intruder.done["big-ping/v6"] == rounds:  # the last round was not cut short
        assert intruder.failed["scan/v4"] >= rounds * len(SCANNED) * (len(SCANNED_PORTS) - 1)


@pytest.mark.parametrize("family", [4, 6])
async def test_frontend_fetches_from_api_over_both_families(
    demo_network: DemoNetwork, traffic: Traffic, family: int
) -> None:
    visitor = demo_network.namespace("visitor")

    def page() -> str:
        return asyncio.run(clients.http_get(MACHINES["frontend"].address(family), servers.HTTP_PORT, "/item/7"))

    row = f"ROW 7 {'*' * 64}"
    assert call_in(visitor, page) == f"<html><body>{row}</body></html>\n"
    assert call_in(visitor, page) == "<html><body>7 (cached)</body></html>\n"


async def test_a_machine_that_dies_is_named(traffic: Traffic) -> None:
    os.kill(traffic.pids["cache"], 9)
    with pytest.raises(netns.NetworkError, match="demo machine cache ended by itself"):
        await traffic.wait_rounds(1)


async def test_stop_ends_every_process(traffic: Traffic) -> None:
    pids = traffic.pids
    assert set(pids) == set(MACHINES)
    await traffic.stop()
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_create_refuses_taken_names_and_leaves_them(demo_network: DemoNetwork) -> None:
    with pytest.raises(netns.NetworkError, match="File exists"):
        DemoNetwork(demo_network.prefix).create()
    assert all(netns.exists(name) for name in demo_network.namespaces)


def test_reclaim_takes_what_a_dead_run_recorded_and_nothing_else(demo_network: DemoNetwork, tmp_path: Path) -> None:
    records, kept, lost = tmp_path / "records", tmp_path / "kept", tmp_path / "lost"
    pins = config.PINS / demo_network.prefix  # nothing was pinned yet
    kept.mkdir()
    lost.mkdir()
    alive = leftovers.Record("alive", ["no-such-namespace"], pins, [kept], records)
    child = os.fork()
    if not child:  # a run that is killed: its record stays, its lock goes
        leftovers.Record("dead", demo_network.namespaces, pins, [lost], records)
        os._exit(0)
    os.waitpid(child, 0)
    assert leftovers.reclaim(records) == ["dead"]
    assert not lost.exists()
    assert kept.exists()
    wait_for(lambda: not any(netns.exists(name) for name in demo_network.namespaces), "namespaces to go")
    assert [path.name for path in records.iterdir()] == ["alive.json"]
    alive.close()
    assert not records.exists()
