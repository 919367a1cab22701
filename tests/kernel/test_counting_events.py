"""Events: which are told, which wait when the ring is full or the budget spent, and that every one is accounted for."""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from schemas.codes import Flag
from schemas.verdict import STRIDE
from tests.support.packets import MACS, UDP, A, B, C, Dot1Q, Ether, Talk, ether, ip
from tests.support.rules import ANY, NO_POLICY, Rule, Rules
from tests.support.workbench import DROP, NS, PASS, Workbench, differences, open_workbench

RING = 16384
ROOM = (RING - 1) // STRIDE
HALF = RING // 2 // STRIDE + 1  # records at which samples stop
TC_NEXT, TC_SHOT = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC: the next filter decides
SPLIT = Rules((Rule("10.0.0.3/32", ANY, ANY, False), Rule(ANY, ANY, ANY, True)))
LO = 1


@pytest.fixture(scope="module")
def bench(loader: str) -> Iterator[Workbench]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # the budget is a CPU's
    bench = open_workbench(loader, RING_BYTES=RING)
    yield bench
    bench.close()
    os.sched_setaffinity(0, before)


def udp(n: int, src: str = A) -> Talk:
    return Talk("udp", src, sport=1000 + n)


class TestSamples:
    def test_every_third_packet_of_each_direction(self, bench: Workbench) -> None:
        bench.fresh(sample=3)
        there = [bench.send(udp(1).there()).kinds for _ in range(7)]
        back = [bench.send(udp(1).back()).kinds for _ in range(4)]
        assert there == [["new"], [], ["sample"], [], [], ["sample"], []]
        assert back == [[], [], ["sample"], []]
        bench.check()

    def test_none(self, bench: Workbench) -> None:
        bench.fresh(sample=0)
        assert [bench.send(udp(1).there()).kinds for _ in range(5)] == [["new"], [], [], [], []]
        assert bench.send(ether(ip(A, B, proto=17))).events == []  # an untracked one neither
        bench.check()

    def test_a_rules_own_rate(self, bench: Workbench) -> None:
        bench.fresh(Rules((Rule(ANY, ANY, ANY, True, sample=2),)), sample=1000)
        assert [len(bench.send(udp(1).there()).events) for _ in range(6)] == [1, 1, 0, 1, 0, 1]

    def test_totals_are_exact_whatever_is_sampled(self, bench: Workbench) -> None:
        bench.fresh(sample=1000)
        frame = udp(1).there(load=bytes(58))
        seen = bench.send(frame, repeat=12_345)
        assert seen.kinds == ["new"] + ["sample"] * 12
        assert [e["packets"][0] for e in seen.events] == [1, *range(1000, 12_001, 1000)]
        assert [e["bytes"][0] for e in seen.events] == [100 * n for n in (1, *range(1000, 12_001, 1000))]
        assert bench.flows()["flow"]["packets"].tolist() == [[12_345, 0]]
        assert bench.rules() == {1: (12_345, 0)}
        bench.check()

    def test_untracked_packets_are_sampled_alike(self, bench: Workbench) -> None:
        bench.fresh(sample=10)
        malformed = ether(ip(A, B, proto=17))
        assert len(bench.send(malformed, repeat=500).events) == 50
        assert bench.rules() == {2: (0, 500)}
        bench.check()


class TestRing:
    def test_what_does_not_fit_stays_due(self, bench: Workbench) -> None:
        bench.fresh(sample=0)
        bench.hold = True
        for n in range(ROOM + 20):
            bench.send(udp(n).there(), at=n)
        bench.check()
        c = bench.counters()
        assert (bench.emitted(), c["events_due"], c["reserve_failed"]) == (ROOM, ROOM + 20, 20)
        assert len(bench.events()) == ROOM
        bench.hold = False
        late = bench.send(udp(ROOM + 3).there(), at=10**6)
        expect = {"event": "new", "packets": (2, 0), "sport": 1000 + ROOM + 3, "at": ROOM + 3}
        assert [differences(e, expect) for e in late.events] == [{}]
        assert bench.send(udp(ROOM + 3).there()).events == []
        report = bench.d.sweep()
        assert (report.ended, report.flushed, report.sums.due) == (0, 19, 0)
        ports = {e["sport"]: e for e in bench.events()}
        assert sorted(ports) == [1000 + n for n in range(ROOM, ROOM + 20) if n != ROOM + 3]
        assert all(e["event"] == "new" and e["at"] == port - 1000 for port, e in ports.items())
        bench.check()

    def test_late_ones_keep_their_order(self, bench: Workbench) -> None:
        bench.fresh(SPLIT, sample=0)
        fill(bench)
        talk = Talk("tcp")
        bench.send(talk.there("S"), at=1)
        bench.send(talk.back("RA"), at=2)
        bench.d.set_config(epoch=bench.revision << 32)
        bench.send(talk.there("A"), at=3)
        flow = flow_of(bench, 6)
        assert (int(flow["due"]), int(flow["state"])) == (3, 0)  # new, change
        bench.check()
        again = bench.send(talk.there("S"), at=4)
        assert again.action == PASS
        flow = flow_of(bench, 6)
        assert (int(flow["due"]), flow["packets"].tolist()) == (7, [2, 1])  # and end; the SYN is not its packet
        assert bench.counters()["untracked_closing"] == 1
        bench.check()
        bench.hold = False
        bench.events()
        report = bench.d.sweep()
        assert report.ended == 1
        told = bench.events()
        assert [(e["event"], e["at"]) for e in told] == [("new", 1), ("change", 3), ("end", 3)]
        assert {(e["packets"], e["sport"], e["revision"]) for e in told} == {((2, 1), 40000, bench.revision)}
        assert len({e["flow_id"] for e in told}) == 1
        bench.check()
        assert bench.send(talk.there("S"), at=5).kinds == ["new"]

    def test_a_restart_without_room_waits_for_the_sweep(self, bench: Workbench) -> None:
        bench.fresh(sample=0)
        talk = Talk("tcp")
        bench.send(talk.there("S"))
        bench.send(talk.back("R"))
        fill(bench)
        for packet in (talk.there("S"), talk.back("SA"), talk.there("A"), talk.back("PA")):
            assert bench.send(packet).action == PASS
        assert bench.counters()["untracked_closing"] == 4
        assert bench.d.sweep().ended == 0  # there is still no room
        bench.check()
        bench.hold = False
        bench.events()
        # Never without mark: between the two lies the grace period that lets other CPUs finish counting into it.
        assert bench.d.run(bench.flows()["key"].tobytes()[:2560], program="reap")[0] == 0
        assert bench.d.sweep().ended == 1
        [end] = bench.events()
        assert differences(end, {"event": "end", "packets": (1, 1), "tcp_flags": (2, 4)}) == {}
        bench.check()

    def test_samples_stop_above_half_fill_and_are_counted(self, bench: Workbench) -> None:
        bench.fresh(sample=1)
        bench.hold = True
        bench.send(udp(1).there(), repeat=200)
        assert (bench.emitted(), bench.counters()["samples_lost"]) == (HALF, 200 - HALF)
        bench.check()
        bench.send(udp(2).there())  # a `new` may use the other half
        assert bench.emitted() == HALF + 1
        bench.send(ether(ip(A, B, proto=17)), repeat=5)  # a sample of an untracked packet not
        assert bench.counters()["samples_lost"] == 205 - HALF
        assert bench.counters()["samples_lost_denied"] == 5
        bench.check()
        bench.hold = False
        assert len(bench.events()) == HALF + 1
        assert bench.send(udp(1).there()).kinds == ["sample"]
        bench.check()

    def test_while_an_event_is_owed_no_sample_is(self, bench: Workbench) -> None:
        bench.fresh(sample=1)
        fill(bench)
        before = bench.counters()["events_due"]
        bench.send(udp(5000).there(), repeat=10)
        assert bench.counters()["events_due"] == before + 1
        assert bench.counters()["reserve_failed"] == 10
        bench.check()


def fill(bench: Workbench) -> None:
    """The ring full to the last record; the bench holds."""
    bench.hold = True
    for n in range(ROOM):
        bench.send(udp(n, "10.0.0.9").there())
    assert (bench.emitted() >= ROOM, bench.counters()["reserve_failed"]) == (True, 0)


def flow_of(bench: Workbench, proto: int) -> Any:
    """The one entry of this protocol."""
    flows = bench.flows()
    [flow] = flows["flow"][flows["key"]["proto"] == proto]
    return flow


class TestBudget:
    """100 events a second: what is allowed leaves a quarter, samples leave half, denials may have all."""

    FULL = 10 * NS  # long after whatever was before: the bucket is full

    def test_denials_keep_a_reserve(self, bench: Workbench) -> None:
        bench.fresh(SPLIT, sample=0, budget=100)
        told = [len(bench.send(udp(n).there(), self.FULL).events) for n in range(80)]
        assert told == [1] * 75 + [0] * 5
        denied = [len(bench.send(udp(n, C).there(), self.FULL).events) for n in range(30)]
        assert denied == [1] * 25 + [0] * 5
        assert bench.counters()["budget_empty"] == 10
        bench.check()
        # 0.1 s later there are ten tokens, below what the allowed must leave.
        assert bench.send(udp(79).there(), self.FULL + NS // 10).events == []
        late = bench.send(udp(29, C).there(), self.FULL + NS // 10)
        assert [(e["event"], e["packets"], e["decision"]) for e in late.events] == [("new", (2, 0), "deny")]
        late = bench.send(udp(79).there(), self.FULL + NS)
        assert [(e["event"], e["packets"], e["at"]) for e in late.events] == [("new", (3, 0), self.FULL)]
        bench.check()

    def test_samples_are_held_back_first(self, bench: Workbench) -> None:
        bench.fresh(sample=1, budget=100)
        seen = bench.send(udp(1).there(), self.FULL, repeat=200)
        assert seen.kinds == ["new"] + ["sample"] * 49
        assert bench.counters()["samples_held_back"] == 150
        malformed = bench.send(ether(ip(A, B, proto=17)), self.FULL)
        assert (malformed.action, malformed.events) == (DROP, [])
        assert bench.counters()["samples_held_back"] == 151
        assert bench.counters()["samples_held_back_denied"] == 1
        assert bench.send(udp(2).there(), self.FULL).kinds == ["new"]
        bench.check()

    def test_a_restart_over_budget_waits_for_the_sweep(self, bench: Workbench) -> None:
        bench.fresh(sample=0, budget=4)
        talk = Talk("tcp")
        for packet in (talk.there("S"), talk.back("R"), udp(1).there(), udp(2).there(), talk.there("S")):
            bench.send(packet, self.FULL)
        assert bench.counters()["budget_empty"] == 1
        assert bench.counters()["untracked_closing"] == 1
        bench.check()
        bench.d.set_config(budget=1000)
        # The packets' clock is ahead of the sweep's: tokens come when the machine's clock has passed it.
        deadline = time.monotonic() + 30
        while not (ended := bench.d.sweep().ended):
            assert time.monotonic() < deadline
        assert ended == 1
        assert [e["packets"] for e in bench.events()] == [(1, 1)]
        bench.check()


class TestEgress:
    def test_what_the_host_sends(self, bench: Workbench) -> None:
        bench.fresh()
        seen = bench.egress(udp(1).there(), ifindex=LO)
        assert seen.action == TC_NEXT
        expect = {"event": "new", "flags": {"egress"}, "ifindex": LO, "src": A, "dst": B, "reason": "no_policy"}
        assert differences(seen.events[0], expect) == {}
        bench.check()

    def test_denied(self, bench: Workbench) -> None:
        bench.fresh(Rules())
        assert bench.egress(udp(1).there()).action == TC_SHOT
        bench.d.set_config(epoch=bench.revision << 32)
        assert bench.egress(udp(1).there()).action == TC_NEXT
        assert bench.rules() == {0: (1, 1)}

    def test_both_hooks_see_one_flow(self, bench: Workbench) -> None:
        bench.fresh(Rules((Rule("10.0.0.1/32", ANY, ANY, True),)))
        assert bench.egress(udp(1).there()).action == TC_NEXT
        seen = bench.send(udp(1).back())
        assert (seen.action, seen.kinds) == (PASS, ["sample"])
        assert differences(seen.events[0], {"packets": (1, 1), "direction": "reply", "flags": set()}) == {}
        bench.check()

    def test_a_merged_packet_counts_as_the_wire_does(self, bench: Workbench) -> None:
        bench.fresh()
        frame = Talk("tcp").there("A", load=bytes(2900))
        seen = bench.egress(frame, gso_segs=2, wire_len=len(frame) + 54)
        assert differences(seen.events[0], {"packets": (2, 0), "bytes": (len(frame) + 54, 0)}) == {}
        assert bench.counters()["parsed"] == 2
        assert bench.rules() == {1: (2, 0)}
        bench.check()

    def test_a_merged_packet_is_sampled_when_it_passes_the_mark(self, bench: Workbench) -> None:
        bench.fresh(sample=10)
        frame = Talk("tcp").there("A", load=bytes(1000))
        told = [bench.egress(frame, gso_segs=4, wire_len=len(frame) + 162).kinds for _ in range(6)]
        assert told == [["new"], [], ["sample"], [], ["sample"], []]
        bench.check()

    def test_what_came_in_through_a_watched_interface_was_judged_there(self, bench: Workbench) -> None:
        watched = bench.d.map("watched")
        one = np.array([LO], np.uint32)
        bench.fresh(Rules())
        assert bench.egress(udp(1).there(), ingress_ifindex=LO).action == TC_SHOT
        watched.put(one, one)
        try:
            assert bench.egress(udp(1).there(), ingress_ifindex=LO).action == TC_NEXT
            assert bench.egress(udp(1).there()).action == TC_SHOT
        finally:
            watched.remove(one)
        assert bench.counters()["egress_skipped"] == 1
        assert bench.rules() == {0: (0, 2)}
        bench.check()

    def test_a_tag_in_the_frame(self, bench: Workbench) -> None:
        bench.fresh()
        frame = bytes(Ether(**MACS) / Dot1Q(vlan=5) / ip(A, B) / UDP(sport=1, dport=2))
        [event] = bench.egress(frame).events
        assert (event["sport"], event["dport"]) == (1, 2)


def test_generic_xdp_says_that_counts_are_merged(bench: Workbench) -> None:
    bench.fresh(flags=int(Flag.AGGREGATED))
    assert bench.send(udp(1).there()).events[0]["flags"] == {"aggregated"}
    assert bench.send(ether(ip(A, B, proto=17))).events[0]["flags"] == {"aggregated", "untracked"}


def test_no_policy_counts_in_its_own_rule(bench: Workbench) -> None:
    bench.fresh(NO_POLICY)
    bench.send(udp(1).there(), repeat=7)
    assert bench.rules() == {1: (7, 0)}
