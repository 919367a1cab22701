"""Sweeps: which flows, exactly how many packets, whatever two CPUs do meanwhile."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from collector.kernel import DatapathSettings, Interface, open_datapath
from collector.kernel.interface import Datapath
from collector.kernel.private import PrivateDatapath, private_datapath
from collector.kernel.sweep import flow_classes
from schemas.codes import EventKind, FlowClass
from schemas.structs import FLOW, FLOW_KEY, dtype
from tests.support.datapath_suite import balanced, drain
from tests.support.kernel import KNOBS, instance, quiet_veth, udp_frame
from tests.support.netns import Lab
from tests.support.trafficgen import TrafficGen

NS = 1_000_000_000
HOUR = 3600 * NS


@pytest.fixture(scope="module")
def loaded(loader: str) -> Iterator[PrivateDatapath]:
    with private_datapath(KNOBS, loader=loader) as datapath:
        yield datapath


@pytest.fixture
def datapath(loaded: PrivateDatapath) -> PrivateDatapath:
    """Empty of flows and events, with long time-outs."""
    loaded.end_all_flows()
    drain(loaded)
    loaded.set_config(timeouts=[HOUR] * 6, sample=0)
    return loaded


def age(datapath: PrivateDatapath, seconds: int, ports: set[int] | None = None) -> None:
    """Make flows (those of these source ports) look as if their last packet came `seconds` earlier."""
    keys, flows = datapath.handle.flows.read()
    mine = np.isin(keys["lo_port"], list(ports)) if ports is not None else np.ones(len(keys), bool)
    flows["last_seen"] -= np.uint64(seconds * NS)
    datapath.handle.flows.put(keys[mine], flows[mine])


def talk(datapath: PrivateDatapath, sport: int, packets: int = 1) -> None:
    for _ in range(packets):
        datapath.run(udp_frame("10.0.0.1", sport, "10.0.0.2", 53, bytes(18)))


def test_only_what_is_idle_beyond_its_time_out_ends(datapath: PrivateDatapath) -> None:
    for sport, packets in ((1, 3), (2, 4), (3, 5)):
        talk(datapath, sport, packets)
    datapath.set_config(timeouts=[HOUR, HOUR, HOUR, 60 * NS, HOUR, HOUR])
    age(datapath, 61, {1, 3})
    age(datapath, 50, {2})
    drain(datapath)
    report = datapath.sweep()
    assert (report.ended, report.sums.live, report.sums.packets, report.sums.bytes) == (2, 1, 4, 240)
    rows = drain(datapath)
    assert sorted(zip(rows["sport"].tolist(), rows["packets_original"].tolist(), strict=True)) == [(1, 3), (3, 5)]
    assert set(rows["event"]) == {EventKind.END}
    assert datapath.sweep().ended == 0
    assert balanced(datapath)


def test_a_full_ring_ends_nothing_and_loses_nothing(datapath: PrivateDatapath) -> None:
    live = datapath.handle.events.room
    for sport in range(1, 1 + live):
        talk(datapath, sport)
    assert datapath.handle.events.room == 0
    datapath.set_config(timeouts=[0] * 6)
    age(datapath, 1)
    report = datapath.sweep()
    assert (report.ended, report.sums.live) == (0, live)
    drain(datapath)
    assert datapath.sweep().ended == live
    assert datapath.sweep().sums.live == 0
    assert len(drain(datapath)) == live
    assert balanced(datapath)


def test_the_classes_are_those_of_the_kernel_program(datapath: PrivateDatapath) -> None:
    """(protocol, flags original, flags reply, packets of the reply) → class."""
    fin, syn, rst, ack = 1, 2, 4, 16
    rows = [
        (6, syn, 0, 0, FlowClass.TCP_HALF_OPEN),
        (6, syn | ack, syn | ack, 3, FlowClass.TCP_ESTABLISHED),
        (6, syn | fin, syn, 3, FlowClass.TCP_ESTABLISHED),
        (6, syn | fin, syn | fin, 3, FlowClass.TCP_CLOSED),
        (6, syn, rst | ack, 1, FlowClass.TCP_CLOSED),
        (17, 0, 0, 0, FlowClass.UDP),
        (1, 0, 0, 1, FlowClass.ICMP),
        (58, 0, 0, 1, FlowClass.ICMP),
        (132, 0, 0, 1, FlowClass.OTHER),
    ]
    keys, flows = np.zeros(len(rows), dtype(FLOW_KEY)), np.zeros(len(rows), dtype(FLOW))
    now = 2 * HOUR
    for i, (proto, original, reply, replies, _) in enumerate(rows):
        keys[i]["proto"], keys[i]["family"], keys[i]["lo_port"] = proto, 4, i
        flows[i]["tcp_flags"], flows[i]["packets"], flows[i]["last_seen"] = (original, reply), (1, replies), now
    assert flow_classes(keys, flows).tolist() == [row[-1] for row in rows]
    # And the program agrees: with one class's time-out at 0 it ends that class's flows, and no other.
    for wanted in FlowClass:
        datapath.handle.flows.put(keys, flows)
        timeouts = np.full(6, 10 * 365 * 24 * HOUR, np.uint64)
        timeouts[wanted] = 0
        datapath.set_config(timeouts=timeouts)
        flows["last_seen"] = 1
        expected = sum(row[-1] == wanted for row in rows)
        datapath.handle.flows.put(keys, flows)
        assert datapath.sweep().ended == expected, wanted.name
    there, _ = datapath.handle.flows.read()
    datapath.handle.flows.remove(there)


class Watched:
    """A datapath on two veth pairs, and a source of frames on the other end of each.

    Two, since two CPUs that fill one veth's queue overrun it; the flows are the same.
    """

    def __init__(self, lab: Lab, pins: Path, loader: str) -> None:
        netns, _ = quiet_veth(lab)
        outer = f"{lab.prefix}-out"
        lab.link(netns, "veth2", outer, "veth3")
        knobs = {"FLOWS_MAX": 16_384, "RING_BYTES": 16 << 20, "SWEEP_MAX": 32}
        interfaces = (Interface("veth0", "ingress"), Interface("veth2", "ingress"))
        self.datapath: Datapath = open_datapath(
            DatapathSettings(pins, interfaces, netns=netns, loader=loader, knobs=knobs, sample=100)
        )
        self.sources = [TrafficGen(outer, "veth1"), TrafficGen(outer, "veth3")]


@pytest.fixture
def watched(loader: str) -> Iterator[Watched]:
    with instance() as pins, Lab() as lab:
        watched = Watched(lab, pins, loader)
        yield watched
        for source in watched.sources:
            source.close()
        watched.datapath.close()


def test_two_cpus_hammer_the_flows_that_are_swept(watched: Watched) -> None:
    """Every packet is in a flow's `end`, or counted as untracked: none twice, none lost."""
    datapath, frames, rounds = watched.datapath, 65_536, 6
    datapath.handle.config.values["timeouts"][0] = 0  # type: ignore[attr-defined]
    ended, rows = 0, []

    def hammer(cpu: int, source: TrafficGen) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread
        for _ in range(rounds):
            source.send(frames, flows=500)

    cpus = sorted(os.sched_getaffinity(0))
    threads = [
        threading.Thread(target=hammer, args=(cpus[i % len(cpus)], source)) for i, source in enumerate(watched.sources)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ended += datapath.sweep().ended
        rows.append(drain(datapath))
    for thread in threads:
        thread.join()
    datapath.detach()
    datapath.end_all_flows()
    rows.append(drain(datapath))
    counters, all_rows = datapath.counters(), np.concatenate(rows)
    sent = 2 * rounds * frames
    assert sum(source.sent for source in watched.sources) == sent
    assert counters["parsed"] == sent
    assert ended > 0
    ends = all_rows[all_rows["event"] == EventKind.END]
    assert len(ends) == counters["flows_ended"] == counters["flows_created"]
    untracked = sum(n for name, n in counters.items() if name.startswith("untracked"))
    assert int(ends["packets_original"].sum()) + untracked == sent
    assert int(ends["bytes_original"].sum()) + untracked * 60 == sent * 60
    assert len(np.unique(all_rows[all_rows["event"] == EventKind.NEW]["flow_id"])) == counters["flows_created"]
    assert datapath.sweep().sums.live == 0
    assert balanced(datapath)


def test_a_large_table_is_swept_whole(watched: Watched) -> None:
    datapath = watched.datapath
    watched.sources[0].send(16_384, flows=8_000)
    assert datapath.counters()["flows_created"] == 8_000
    report = datapath.sweep()
    assert (report.sums.live, report.sums.packets, report.sums.bytes) == (8_000, 16_384, 16_384 * 60)
    datapath.detach()
    datapath.end_all_flows()
    assert datapath.sweep().sums.live == 0
    rows = drain(datapath)
    assert int(rows[rows["event"] == EventKind.END]["packets_original"].sum()) == 16_384
    assert balanced(datapath)
