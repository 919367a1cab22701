"""The flow table as it fills, and what a change of policy or mode does to the flows in it."""

from collections.abc import Iterator

import pytest

from schemas.codes import Mode
from tests.support.packets import A6, B6, A, B, Talk, ether, ip, pieces, ping
from tests.support.rules import ANY, NO_POLICY, Rule, Rules
from tests.support.workbench import DROP, NS, PASS, Workbench, differences, open_workbench

FROM_A = Rules((Rule("10.0.0.1/32", ANY, ANY, True), Rule("fd00::1/128", ANY, ANY, True)))
DENY_80 = Rules((Rule(ANY, ANY, "tcp/80", False), Rule(ANY, ANY, "udp/80", False), Rule("10.0.0.1/32", ANY, ANY, True)))
REPORT_80 = Rules((Rule(ANY, ANY, "udp/80", False, report_only=True), Rule("10.0.0.1/32", ANY, ANY, True)))


@pytest.fixture(scope="module")
def bench(loader: str) -> Iterator[Workbench]:
    bench = open_workbench(loader, FLOWS_MAX=64)
    yield bench
    bench.close()


def udp(n: int) -> Talk:
    return Talk("udp", sport=1000 + n)


def table(bench: Workbench) -> tuple[int, int, int]:
    """(flows, of these denied or half open, packets without room)."""
    flows = bench.flows()
    return len(flows), int(flows["flow"]["tentative"].sum()), bench.counters()["untracked_table_full"]


class TestFull:
    def test_half_of_the_table_is_for_unanswered_flows(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, capacity=8)
        for n in range(6):
            seen = bench.send(udp(n).there())
            assert seen.kinds == (["new"] if n < 4 else ["sample"])
            assert seen.action == PASS
        assert table(bench) == (4, 4, 2)
        bench.send(udp(0).back())
        bench.send(udp(1).back())
        assert table(bench) == (4, 2, 2)
        assert [bench.send(udp(n).there()).kinds for n in (4, 5, 6)] == [["new"], ["new"], ["sample"]]
        assert table(bench) == (6, 4, 3)
        bench.check()

    def test_the_whole_table_is_for_answered_ones(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, capacity=8)
        for n in range(9):
            bench.send(udp(n).there())
            bench.send(udp(n).back())
        assert table(bench) == (8, 0, 2)
        bench.check()

    def test_denied_flows_stay_in_their_half_though_both_ends_talk(self, bench: Workbench) -> None:
        bench.fresh(Rules(), capacity=8)
        for n in range(6):
            bench.send(udp(n).there())
            bench.send(udp(n).back())
        assert table(bench) == (4, 4, 4)
        assert bench.rules() == {0: (0, 12)}
        bench.check()

    def test_an_icmp_error_is_no_answer(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, capacity=8)
        talk = Talk("tcp")
        bench.send(talk.there("S"))
        bench.send(talk.error())
        assert table(bench) == (1, 1, 0)
        bench.send(talk.back("SA"))
        assert table(bench) == (1, 0, 0)
        bench.check()

    def test_a_flow_denied_later_goes_back_to_that_half(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, capacity=8)
        talk = Talk("udp")
        bench.send(talk.there())
        bench.send(talk.back())
        assert table(bench) == (1, 0, 0)
        bench.apply(DENY_80)
        bench.send(talk.there())
        assert table(bench) == (1, 1, 0)
        bench.apply(FROM_A)
        bench.send(talk.back())
        assert table(bench) == (1, 0, 0)
        bench.check()

    def test_the_map_itself_full(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, capacity=1000)
        for n in range(80):
            assert bench.send(udp(n).there()).action == PASS
        assert table(bench) == (64, 64, 16)
        bench.check()

    def test_a_known_flow_goes_on_in_a_full_table(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, capacity=2)
        for n in range(3):
            bench.send(udp(n).there())
        [event] = bench.send(udp(0).back()).events
        assert differences(event, {"packets": (1, 1), "flags": set(), "direction": "reply"}) == {}
        bench.check()

    @pytest.mark.parametrize("ends", [(A, B), (A6, B6)], ids=["IPv4", "IPv6"])
    def test_untracked_packets_are_judged_both_ways(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(FROM_A)
        bench.d.set_config(capacity=0)
        first = {"decision": "allow", "reason": "rule", "src": ends[0], "dst": ends[1], "event": "sample", "flow_id": 0}
        for proto in ("udp", "sctp"):
            talk = Talk(proto, *ends)
            there, back = bench.send(talk.there()), bench.send(talk.back())
            assert (there.action, back.action) == (PASS, PASS)
            ports = {"sport": 40000, "dport": 80}
            one = {"packets": (1, 0), "bytes": (len(talk.there()), 0), "direction": "original", "flags": {"untracked"}}
            assert differences(there.events[0], first | ports | one) == {}
            other = {"packets": (0, 1), "bytes": (0, len(talk.back())), "direction": "reply"}
            flags = {"flags": {"untracked", "reversed"}}
            assert differences(back.events[0], first | ports | other | flags) == {}
        [echo] = bench.send(ping(ends[1], ends[0], reply=True)).events
        assert differences(echo, first | {"sport": 77, "flags": {"untracked", "reversed"}}) == {}
        assert len(bench.flows()) == 0
        assert bench.counters()["untracked_table_full"] == bench.sent == 5
        bench.check()

    def test_untracked_tcp(self, bench: Workbench) -> None:
        """A connection lives without an entry, but its SYN decides who may begin one."""
        bench.fresh(FROM_A)
        bench.d.set_config(capacity=0)
        talk, from_b = Talk("tcp"), Talk("tcp", B, A, 80, 40000)
        steps = [(talk.there("S"), set()), (talk.back("SA"), {"reversed"}), (talk.there("A"), {"midstream"})]
        steps.append((talk.back("PA"), {"midstream", "reversed"}))
        for packet, flags in steps:
            seen = bench.send(packet)
            assert (seen.action, seen.events[0]["flags"], seen.events[0]["src"]) == (PASS, {"untracked"} | flags, A)
        assert bench.send(from_b.there("S")).action == DROP
        assert bench.send(from_b.back("SA")).action == DROP
        denied = bench.send(Talk("tcp", B, "10.0.0.3").there("A"))
        assert (denied.action, denied.events[0]["reason"]) == (DROP, "default")
        bench.check()

    def test_a_first_fragment_without_room_still_speaks_for_the_others(self, bench: Workbench) -> None:
        for rules, action in ((FROM_A, PASS), (Rules(), DROP)):
            bench.fresh(rules)
            bench.d.set_config(capacity=0)
            frames = pieces(udp(1).there(load=bytes(100)), 48)
            assert [bench.send(frame).action for frame in frames] == [action] * 3
            c = bench.counters()
            assert (c["untracked_table_full"], c["untracked_unattributable"]) == (1, 2)
            assert sum(sum(n) for n in bench.rules().values()) == 3
            bench.check()


class TestChange:
    def test_a_stale_verdict_is_replaced_and_told_once(self, bench: Workbench) -> None:
        bench.fresh(FROM_A)
        talk = Talk("udp")
        old = bench.revision
        bench.send(talk.there())
        bench.apply(DENY_80)
        for packet, kinds in ((talk.back(), ["change"]), (talk.there(), ["sample"]), (talk.back(), ["sample"])):
            seen = bench.send(packet)
            assert (seen.action, seen.kinds) == (DROP, kinds)
            expect = {"decision": "deny", "outcome": "dropped", "rule": 65, "src": A, "revision": old + 1}
            assert differences(seen.events[0], expect) == {}
        assert bench.rules(old & 1) == {64: (1, 0)}
        assert bench.rules(1 - (old & 1)) == {65: (0, 3)}
        bench.check()

    def test_a_reply_is_judged_again_as_the_opener(self, bench: Workbench) -> None:
        for talk in (Talk("udp"), Talk("tcp"), Talk("sctp")):
            bench.fresh(FROM_A)
            bench.send(talk.there("S"))
            bench.apply(Rules((Rule("10.0.0.1/32", "10.0.0.2/32", ANY, True),)))
            seen = bench.send(talk.back("A"))
            assert (seen.action, seen.kinds) == (PASS, ["change"])
            assert differences(seen.events[0], {"src": A, "direction": "reply", "reason": "rule"}) == {}
            bench.check()

    def test_an_echo_reply_is_judged_again_by_the_request(self, bench: Workbench) -> None:
        for ends, port in (((A, B), "icmp/8"), ((A6, B6), "icmpv6/128")):
            bench.fresh(FROM_A)
            bench.send(ping(*ends))
            bench.apply(Rules((Rule(ANY, ANY, port, True),)))
            seen = bench.send(ping(*reversed(ends), reply=True))
            assert (seen.action, seen.kinds, seen.events[0]["reason"]) == (PASS, ["change"], "rule")
            bench.check()

    def test_a_flow_that_a_reply_opened_stays_one_of_its_type(self, bench: Workbench) -> None:
        bench.fresh(FROM_A)
        bench.send(ping(reply=True))  # type 0, from A
        bench.apply(Rules((Rule(ANY, ANY, "icmp/8", True),)))
        seen = bench.send(ping(B, A))
        assert (seen.action, seen.kinds, seen.events[0]["reason"]) == (DROP, ["change"], "default")
        bench.check()

    def test_reversed_and_midstream_stay_with_the_flow(self, bench: Workbench) -> None:
        bench.fresh(FROM_A, midstream=NS)
        talk = Talk("tcp")
        bench.send(talk.back("A"))
        bench.apply(REPORT_80)
        [event] = bench.send(talk.there("A"), at=2 * NS).events
        assert differences(event, {"event": "change", "flags": {"midstream", "reversed"}, "src": A}) == {}

    def test_unchanged_decisions_are_told_too(self, bench: Workbench) -> None:
        bench.fresh(NO_POLICY)
        bench.send(udp(1).there())
        bench.apply(FROM_A)
        [event] = bench.send(udp(1).there()).events
        assert differences(event, {"event": "change", "reason": "rule", "packets": (2, 0)}) == {}

    def test_a_hundred_changes_without_a_packet_are_one(self, bench: Workbench) -> None:
        bench.fresh(FROM_A)
        bench.send(udp(1).there())
        for _ in range(3):
            bench.apply(DENY_80)
            bench.apply(FROM_A)
        assert bench.send(udp(1).there()).kinds == ["change"]
        assert bench.send(udp(1).there()).kinds == ["sample"]
        bench.check()

    def test_mode_drops_or_not_with_the_same_decision(self, bench: Workbench) -> None:
        bench.fresh(DENY_80, Mode.MONITOR)
        talk = Talk("udp")
        revision = bench.revision << 32
        for mode, action, outcome in ((0, PASS, "passed"), (1, DROP, "dropped"), (0, PASS, "passed")):
            bench.d.set_config(epoch=revision | mode)
            seen = bench.send(talk.there())
            assert seen.action == action
            assert differences(seen.events[0], {"decision": "deny", "outcome": outcome, "rule": 65}) == {}
        assert bench.rules() == {65: (2, 1)}
        assert bench.counters()["flows_created"] == 1
        bench.check()

    def test_report_only_passes_under_enforce(self, bench: Workbench) -> None:
        bench.fresh(REPORT_80, Mode.ENFORCE)
        for packet in (udp(1).there(), udp(1).back()):
            seen = bench.send(packet)
            expect = {"decision": "deny", "outcome": "passed", "flags": {"report_only"}, "rule": 64}
            assert (seen.action, differences(seen.events[0], expect)) == (PASS, {})
        assert bench.rules() == {64: (2, 0)}
        bench.check()


class TestConfirm:
    def test_an_unconfirmed_policy_falls_back_by_the_datapaths_clock(self, bench: Workbench) -> None:
        bench.fresh(FROM_A)
        old = bench.revision
        bench.apply(DENY_80)
        bench.d.set_config(previous=old << 32 | Mode.ENFORCE, confirm_until=bench.t0 + 10 * NS)
        talk = Talk("udp")
        steps = [(0, DROP, "new", old + 1), (10 * NS, DROP, "sample", old + 1), (10 * NS + 1, PASS, "change", old),
                 (10 * NS + 2, PASS, "sample", old)]  # fmt: skip
        for at, action, event, revision in steps:
            seen = bench.send(talk.there(), at)
            assert seen.action == action
            assert differences(seen.events[0], {"event": event, "revision": revision}) == {}
        assert bench.rules(old & 1) == {64: (2, 0)}
        assert bench.rules(1 - (old & 1)) == {65: (0, 2)}
        bench.check()

    def test_an_unconfirmed_mode_falls_back(self, bench: Workbench) -> None:
        bench.fresh(DENY_80, Mode.ENFORCE)
        bench.d.set_config(previous=bench.revision << 32 | Mode.MONITOR, confirm_until=bench.t0 + NS)
        assert [bench.send(udp(1).there(), at).action for at in (0, NS, NS + 1)] == [DROP, DROP, PASS]
        bench.check()

    def test_a_confirmed_one_stays(self, bench: Workbench) -> None:
        bench.fresh(DENY_80, Mode.ENFORCE)
        bench.d.set_config(previous=bench.revision << 32 | Mode.MONITOR, confirm_until=bench.t0 + NS)
        bench.send(udp(1).there())
        bench.d.set_config(confirm_until=0)
        assert bench.send(udp(1).there(), 99 * NS).action == DROP

    def test_what_has_no_flow_falls_back_as_well(self, bench: Workbench) -> None:
        bench.fresh(DENY_80, Mode.ENFORCE)
        bench.d.set_config(previous=bench.revision << 32 | Mode.MONITOR, confirm_until=bench.t0 + NS)
        malformed = ether(ip(A, B, proto=17))
        assert [bench.send(malformed, at).action for at in (NS, NS + 1)] == [DROP, PASS]
        bench.check()
