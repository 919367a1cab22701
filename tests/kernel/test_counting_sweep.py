"""Mark and reap, step by step and by themselves; then two CPUs hammering the flows that are being swept."""

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from collector.kernel.private import PrivateDatapath, private_datapath
from schemas.codes import EventKind
from schemas.structs import DUE_BITS, FLOW_STATES
from tests.support.packets import A6, B6, A, B, Talk, ether, ip, pieces, ping
from tests.support.workbench import KNOBS, NS, UNTRACKED, Workbench, differences, open_workbench

DEAD, END = FLOW_STATES["DEAD"], DUE_BITS["END"]


@pytest.fixture(scope="module")
def bench(loader: str) -> Iterator[Workbench]:
    bench = open_workbench(loader, RING_BYTES=16384)
    yield bench
    bench.close()


def udp(n: int) -> Talk:
    return Talk("udp", sport=1000 + n)


def keys(bench: Workbench) -> bytes:
    return bench.flows()["key"].tobytes()


class TestSteps:
    def test_mark_then_reap(self, bench: Workbench) -> None:
        bench.fresh()
        frame = udp(1).there(load=b"12345")
        bench.send(frame, at=-70 * NS)
        bench.send(udp(1).back(), at=-65 * NS)
        bench.send(udp(2).there(), at=-50 * NS)
        both = keys(bench)
        assert bench.d.run(both, program="reap")[0] == 0  # nothing is marked
        assert bench.d.run(both, program="mark")[0] == 1
        assert bench.events() == []
        [flow] = bench.flows()["flow"][bench.flows()["flow"]["state"] == DEAD]
        assert (int(flow["due"]), flow["packets"].tolist()) == (END, [1, 1])
        bench.check()
        assert bench.d.run(both, program="mark")[0] == 1  # again: owed once
        bench.check()
        seen = bench.send(udp(1).there())  # meets a flow that is being ended
        assert differences(seen.events[0], {"event": "sample", "flags": {"untracked"}, "packets": (1, 0)}) == {}
        assert bench.counters()["untracked_closing"] == 1
        assert bench.d.run(both, program="reap")[0] == 1
        [end] = bench.events()
        expect = {"event": "end", "packets": (1, 1), "bytes": (len(frame), len(udp(1).back())), "at": -65 * NS,
                  "sport": 1001, "dport": 80, "direction": "original", "ifindex": 1, "flags": set()}  # fmt: skip
        assert differences(end, expect) == {}
        assert len(bench.flows()) == 1
        bench.check()
        assert bench.d.run(both, program="reap")[0] == 0
        assert bench.send(udp(1).there()).kinds == ["new"]
        bench.check()

    @pytest.mark.parametrize(
        ("packets", "seconds"),
        [([udp(1).there()], 60), ([Talk("sctp").there()], 120), ([ping()], 30), ([ping(A6, B6)], 30),
         ([ether(ip(A, B, proto=47))], 120), ([Talk("tcp").there("S")], 30),
         ([Talk("tcp").there("S"), Talk("tcp").error()], 30),
         ([Talk("tcp").there("S"), Talk("tcp").back("SA")], 600), ([Talk("tcp").there("S"), Talk("tcp").back("R")], 10),
         ([Talk("tcp").there("F"), Talk("tcp").back("F")], 10), ([Talk("tcp").there("R")], 10)],
        ids=["udp", "sctp", "icmp", "icmpv6", "other", "half open", "half open, ICMP error", "established", "reset",
             "closed", "reset unanswered"],
    )  # fmt: skip
    def test_each_time_out(self, bench: Workbench, packets: list[bytes], seconds: int) -> None:
        timeouts = [s * NS for s in (600, 30, 10, 60, 30, 120)]
        for age, ended in ((seconds - 5, 0), (seconds + 1, 1)):
            bench.fresh(timeouts=timeouts)
            for packet in packets:
                bench.send(packet, at=-age * NS)
            report = bench.d.sweep()
            assert (report.ended, report.sums.live) == (ended, 1 - ended)
            bench.check()

    def test_mark_tells_what_is_owed_by_the_living(self, bench: Workbench) -> None:
        bench.fresh(budget=0)
        bench.send(udp(1).there(), at=-5 * NS)
        bench.d.set_config(budget=1000)
        assert bench.d.run(keys(bench), program="mark")[0] == 0
        [new] = bench.events()
        assert differences(new, {"event": "new", "at": -5 * NS, "packets": (1, 0)}) == {}
        bench.check()

    def test_a_late_change_is_dated_by_the_last_packet(self, bench: Workbench) -> None:
        bench.fresh(sample=0)
        bench.send(udp(1).there(), at=-9 * NS)
        bench.d.set_config(budget=0, epoch=bench.revision << 32)
        time_of_change = -3 * NS
        bench.send(udp(1).there(), at=time_of_change)
        bench.d.set_config(budget=1000)
        bench.d.sweep()
        [change] = [e for e in bench.events() if e["sport"] == 1001]
        assert differences(change, {"event": "change", "at": time_of_change, "packets": (2, 0)}) == {}
        bench.check()

    def test_a_full_ring_ends_nothing_and_loses_nothing(self, bench: Workbench) -> None:
        bench.fresh(sample=0)
        bench.hold = True
        for n in range(136):
            bench.send(udp(n).there(), at=-61 * NS)
        assert bench.emitted() == 136
        assert bench.d.run(keys(bench)[:2560], program="mark")[0] == 64
        assert bench.d.run(keys(bench)[:2560], program="reap")[0] == 0
        bench.check()
        ended = 0
        for _ in range(10):
            bench.events()
            ended += bench.d.sweep().ended
            bench.check()
        assert (ended, len(bench.flows())) == (136, 0)

    def test_unknown_keys_and_short_input(self, bench: Workbench) -> None:
        bench.fresh()
        for program in ("mark", "reap"):
            assert bench.d.run(bytes(14), program=program)[0] == 0
            assert bench.d.run(bytes(39), program=program)[0] == 0
            assert bench.d.run(bytes(80), program=program)[0] == 0

    def test_end_all(self, bench: Workbench) -> None:
        bench.fresh(sample=0)
        for n in range(30):
            bench.send(udp(n).there(), repeat=n + 1)
        bench.events()
        bench.d.end_all_flows()
        ends = bench.events()
        assert sorted(e["packets"][0] for e in ends) == list(range(1, 31))
        assert {e["event"] for e in ends} == {"end"}
        assert len(bench.flows()) == 0
        bench.check()


FRAMES = 400  # a test-run call repeats a packet so often


class Hammer:
    """Two threads, each on a CPU of its own, running packets of the same flows; the main thread sweeps and reads."""

    def __init__(self, datapath: PrivateDatapath) -> None:
        self.d = datapath
        self.stop = threading.Event()
        self.ran = [0, 0]
        self.ended = dict.fromkeys(("packets", "bytes", "events"), 0)
        self.ids: dict[int, int] = {}

    def run(self, thread: int, frames: list[tuple[bytes, int]]) -> None:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[thread]})
        while not self.stop.is_set():
            for frame, repeat in frames:
                self.d.run(frame, repeat=repeat)
                self.ran[thread] += repeat

    def read(self) -> None:
        while (batch := self.d.read(100_000)) is not None:
            rows = batch.rows
            ends = rows[rows["event"] == EventKind.END]
            self.ended["packets"] += int(ends["packets_original"].sum() + ends["packets_reply"].sum())
            self.ended["bytes"] += int(ends["bytes_original"].sum() + ends["bytes_reply"].sum())
            self.ended["events"] += len(ends)
            for i in ends["flow_id"].tolist():
                self.ids[i] = self.ids.get(i, 0) + 1
            self.d.release(batch.start + len(rows) * self.d.stride)


def _traffic() -> list[tuple[bytes, int]]:
    out = []
    for n in range(4):
        talk = udp(n)
        out += [(talk.there(), FRAMES), (talk.back(), FRAMES), (talk.error(), 20)]
        connection = Talk("tcp", sport=2000 + n)
        out += [(connection.there("S"), 3), (connection.back("SA"), 3), (connection.there("A"), FRAMES)]
        out += [(connection.back("R"), 1), (connection.there("S"), 1), (connection.back("S"), 1)]  # restarts
        out += [(frame, 5) for frame in pieces(udp(100 + n).there(load=bytes(100)), 48)]
    return [*out, (ether(ip(A, B, proto=17)), 10)]


@pytest.mark.parametrize(
    ("ring", "budget", "pause"),
    [(1 << 22, 10_000_000, 0.0), (1 << 14, 2_000, 0.02)],
    ids=["room", "full and over budget"],
)
def test_two_cpus_hammer_flows_that_are_swept(loader: str, ring: int, budget: int, pause: float) -> None:
    assert len(os.sched_getaffinity(0)) >= 2
    datapath = private_datapath(KNOBS | {"RING_BYTES": ring}, loader=loader, sample=100, budget=budget)
    try:
        # 5 ms: barely more than a tick of the coarse clock, so that flows die between two calls of a thread.
        datapath.set_config(timeouts=[5_000_000] * 6)
        hammer = Hammer(datapath)
        traffic = _traffic()
        threads = [threading.Thread(target=hammer.run, args=(0, traffic)),
                   threading.Thread(target=hammer.run, args=(1, traffic[::-1]))]  # fmt: skip
        for thread in threads:
            thread.start()
        until, swept = time.monotonic() + 3, 0
        while time.monotonic() < until:
            swept += datapath.sweep().ended
            datapath.set_config(epoch=int(time.monotonic() * 10) & 1)  # monitor, enforce: every flow is judged again
            if pause:
                threading.Event().wait(pause)  # the ring is full meanwhile
            hammer.read()
        hammer.stop.set()
        for thread in threads:
            thread.join()
        hammer.read()
        assert swept > 20
        books(datapath, hammer)
        for _ in range(100):
            datapath.set_config(budget=10_000_000)
            datapath.end_all_flows()
            hammer.read()
            if not len(datapath.flows()):
                break
        books(datapath, hammer)
        c = datapath.counters()
        assert len(datapath.flows()) == 0
        assert hammer.ended["packets"] + sum(c[name] for name in UNTRACKED) == sum(hammer.ran)
        assert set(hammer.ids.values()) == {1}  # one `end` a conversation
        assert len(hammer.ids) == c["flows_created"] == c["flows_ended"]
    finally:
        datapath.close()


def books(datapath: PrivateDatapath, hammer: Hammer) -> None:
    """Nothing moves: invariants 1 and 2 to the packet, the byte and the event."""
    c, flows = datapath.counters(), datapath.flows()["flow"]
    rules = np.concatenate([datapath.rule_counters(0), datapath.rule_counters(1)])
    live = int(flows["packets"].sum())
    assert c["parsed"] == sum(hammer.ran)
    assert c["parsed"] == int(rules["packets_passed"].sum() + rules["packets_dropped"].sum())
    assert c["parsed"] == c["ended_packets"] + live + sum(c[name] for name in UNTRACKED)
    assert (c["ended_packets"], c["ended_bytes"]) == (hammer.ended["packets"], hammer.ended["bytes"])
    assert c["flows_ended"] == hammer.ended["events"]
    due = int(np.bitwise_count(flows["due"]).sum())
    assert c["events_due"] == datapath.produced // datapath.stride + due + c["samples_lost"] + c["samples_held_back"]
    totals = datapath.handle.totals.values[0]
    assert (int(totals["flows"]), int(totals["tentative"])) == (len(flows), int(flows["tentative"].sum()))
    assert int(totals["produced"]) * datapath.stride == datapath.produced
