"""Packets that have no ports of their own: pieces of datagrams and ICMP errors, each with the flow it belongs to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.packets import (
    A6,
    B6,
    C6,
    ICMP,
    TCP,
    UDP,
    A,
    B,
    C,
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrFragment,
    Raw,
    Talk,
    ether,
    ip,
    patched,
    pieces,
    ping,
)  # fmt: skip
from tests.support.rules import ANY, Rule, Rules
from tests.support.workbench import DROP, PASS, Workbench, differences

ALLOW_UDP = Rules((Rule("10.0.0.1/32", "10.0.0.2/32", "udp/80", True),
                   Rule("fd00::1/128", "fd00::2/128", "udp/80", True),
                   Rule(ANY, ANY, "icmp/8", True), Rule(ANY, ANY, "icmpv6/128", True),
                   Rule(ANY, ANY, "tcp/80", True), Rule(ANY, ANY, "sctp/80", True)))  # fmt: skip


@pytest.mark.parametrize("ends", [(A, B), (A6, B6)], ids=["IPv4", "IPv6"])
class TestFragments:
    def test_all_pieces_belong_to_the_flow_of_the_first(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(ALLOW_UDP)
        frames = pieces(Talk("udp", *ends).there(load=bytes(100)), 32)
        for i, frame in enumerate(frames):
            seen = bench.send(frame)
            assert seen.action == PASS
            [event] = seen.events
            expect = {
                "event": "sample" if i else "new",
                "reason": "rule",
                "packets": (i + 1, 0),
                "sport": 40000,
                "dport": 80,
            }
            assert differences(event, expect | {"bytes": (sum(map(len, frames[: i + 1])), 0)}) == {}
        assert len(frames) == 4
        assert len(bench.flows()) == 1
        bench.check()

    def test_pieces_of_a_reply_count_as_reply(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(ALLOW_UDP)
        talk = Talk("udp", *ends)
        bench.send(talk.there())
        for i, frame in enumerate(pieces(talk.back(load=bytes(100)), 32)):
            [event] = bench.send(frame).events
            assert (event["packets"], event["direction"]) == ((1, i + 1), "reply")
        bench.check()

    def test_pieces_of_a_denied_datagram_are_dropped_and_counted_with_it(
        self, bench: Workbench, ends: tuple[str, str]
    ) -> None:
        bench.fresh(ALLOW_UDP)
        frames = pieces(Talk("udp", *ends, dport=81).there(load=bytes(100)), 32)
        for i, frame in enumerate(frames):
            seen = bench.send(frame)
            assert seen.action == DROP
            assert differences(seen.events[0], {"reason": "default", "decision": "deny", "packets": (i + 1, 0)}) == {}
        assert bench.rules() == {0: (0, 4)}
        bench.check()

    def test_a_later_piece_before_the_first_is_headless(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(ALLOW_UDP)
        first, *later = pieces(Talk("udp", *ends).there(load=bytes(60)), 32)
        for frame, reason, action in (
            (later[0], "headless_fragment", DROP),
            (first, "rule", PASS),
            (later[0], "rule", PASS),
        ):
            seen = bench.send(frame)
            assert (seen.action, seen.events[0]["reason"]) == (action, reason)
        assert bench.counters()["untracked_unattributable"] == 1
        bench.check()

    def test_pieces_of_another_datagram_or_pair_are_headless(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(ALLOW_UDP)
        talk = Talk("udp", *ends)
        bench.send(pieces(talk.there(load=bytes(60)), 32, ident=1)[0])
        others = [pieces(talk.there(load=bytes(60)), 32, ident=2)[1], pieces(talk.back(load=bytes(60)), 32, ident=1)[1]]
        other_proto = Talk("tcp", *ends).there(load=bytes(60))
        others.append(pieces(other_proto, 32, ident=1)[1])
        for frame in others:
            assert bench.send(frame).events[0]["reason"] == "headless_fragment"
        bench.check()

    def test_a_piece_after_its_flow_ended_takes_the_verdict_without_one(
        self, bench: Workbench, ends: tuple[str, str]
    ) -> None:
        bench.fresh(ALLOW_UDP)
        first, later = pieces(Talk("udp", *ends).there(load=bytes(40)), 32)
        bench.send(first)
        table = bench.d.map("flows")
        table.remove(table.read()[0])
        seen = bench.send(later)
        assert seen.action == PASS
        assert differences(seen.events[0], {"reason": "rule", "flags": {"untracked"}, "packets": (1, 0)}) == {}
        assert bench.counters()["untracked_unattributable"] == 1

    def test_atomic_or_whole_packets_leave_no_note(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(ALLOW_UDP)
        if ":" in ends[0]:
            atomic = ether(IPv6(src=ends[0], dst=ends[1]) / IPv6ExtHdrFragment(id=9) / UDP(sport=40000, dport=80))
            assert bench.send(atomic).events[0]["reason"] == "rule"
        bench.send(Talk("udp", *ends).there())
        assert len(bench.d.map("fragments").read()[0]) == 0

    def test_a_fragmented_echo_request(self, bench: Workbench, ends: tuple[str, str]) -> None:
        bench.fresh(ALLOW_UDP)
        frames = pieces(ping(*ends, load=bytes(60)), 32)
        events = [bench.send(frame).events[0] for frame in frames]
        assert [e["packets"] for e in events] == [(1, 0), (2, 0), (3, 0)]
        assert {(e["reason"], e["sport"]) for e in events} == {("rule", 77)}
        bench.check()


def test_a_piece_follows_its_flow_into_the_next_revision(bench: Workbench) -> None:
    bench.fresh(ALLOW_UDP)
    first, later = pieces(Talk("udp").there(load=bytes(40)), 32)
    bench.send(first)
    bench.d.set_config(epoch=bench.d.revision << 32)  # monitor: judged again, by the first piece's ports
    seen = bench.send(later)
    assert seen.kinds == ["change"]
    assert differences(seen.events[0], {"reason": "rule", "rule": 64, "packets": (2, 0), "flags": set()}) == {}
    bench.check()


@dataclass(frozen=True)
class Error:
    """An ICMP error after `before` was sent. `flow`: packets of the flow it belongs to; None: unrelated, dropped."""

    name: str
    error: bytes
    before: tuple[bytes, ...]
    flow: tuple[int, int] | None
    expect: dict[str, Any] = field(default_factory=dict)


def _errors() -> Iterator[Error]:
    for proto in ("tcp", "udp", "sctp"):
        for family, ends in (("IPv4", (A, B)), ("IPv6", (A6, B6))):
            talk = Talk(proto, *ends)
            name, first = f"{proto}, {family}", (talk.there("S"),)
            yield Error(f"from a router: {name}", talk.error(), first, (1, 1), {"direction": "reply", "dport": 80})
            yield Error(
                f"from the responder: {name}", talk.error(sender=talk.dst), first, (1, 1), {"direction": "reply"}
            )
            both = (*first, talk.back("SA"))
            about_reply = {"direction": "original", "sport": 40000}
            yield Error(f"about a reply: {name}", talk.error(quote_reply=True), both, (2, 1), about_reply)
            yield Error(f"quote cut in the ports: {name}", talk.error(cut=22), first, None)
            yield Error(f"quote one byte short of 8: {name}", talk.error(cut=27), first, None)
            yield Error(f"quote cut in its IP header: {name}", talk.error(cut=10), first, None)
            yield Error(f"to another than it quotes: {name}", talk.error(to=C if family == "IPv4" else C6), first, None)
            other = Talk(proto, *ends, sport=40001)
            yield Error(f"about another flow: {name}", other.error(), first, None)
            yield Error(f"about no flow: {name}", talk.error(), (), None)
    for family, ends in (("IPv4", (A, B)), ("IPv6", (A6, B6))):
        echo = ping(*ends)
        layer = ICMPv6DestUnreach() if family == "IPv6" else ICMP(type=3)
        yield Error(
            f"about an echo request, {family}", ether(ip(ends[1], ends[0]) / layer / Raw(echo[14:])), (echo,), (1, 1)
        )
        quote = Talk("udp", *ends).error()[14:]
        yield Error(f"about an error, {family}", ether(ip(ends[1], ends[0]) / layer / Raw(quote)), (), None)
        first, later = pieces(Talk("udp", *ends).there(load=bytes(40)), 32)
        about = {n: ether(ip(ends[1], ends[0]) / layer / Raw(f[14:])) for n, f in (("first", first), ("later", later))}
        yield Error(f"about a first fragment, {family}", about["first"], (first,), (1, 1))
        yield Error(f"about a later fragment, {family}", about["later"], (first, later), None)
    talk = Talk("udp")
    whole = ether(ip(C, A) / ICMP(type=3, code=3) / Raw(bytes(ip(A, B) / UDP(sport=40000, dport=80))))
    short = patched(whole, (16, b"\0\x1c"))
    yield Error("the quote lies behind the error's own length", short, (talk.there(),), None)
    yield Error(
        "the quote's ports lie behind the error's own length", patched(whole, (16, b"\0\x36")), (talk.there(),), None
    )
    yield Error("the quote is complete to the byte", patched(whole, (16, b"\0\x38")), (talk.there(),), (1, 1))
    yield Error("the quote claims a shorter total length", patched(whole, (44, b"\0\x1b")), (talk.there(),), None)
    yield Error("the quote has another version", patched(whole, (42, b"\x65")), (talk.there(),), None)
    big = ether(
        ip(C, A) / ICMP(type=3, code=4) / Raw(bytes(ip(A, B, len=1500) / TCP(sport=40000, dport=80, flags="S"))[:28])
    )
    yield Error("the quote claims more than is quoted", big, (Talk("tcp").there("S"),), (1, 1))


ERRORS = list(_errors())


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row.name)
def test_icmp_errors(bench: Workbench, row: Error) -> None:
    bench.fresh(ALLOW_UDP)
    for frame in row.before:
        assert bench.send(frame).action == PASS
    flows = len(bench.flows())
    seen = bench.send(row.error)
    bench.check()
    [event] = seen.events
    assert len(bench.flows()) == flows  # an error never makes a flow
    if row.flow is None:
        expect = {"event": "sample", "reason": "icmp_unrelated", "decision": "deny", "flags": {"untracked"}, "rule": 4}
        assert (seen.action, differences(event, expect | row.expect)) == (DROP, {})
        return
    expect = {"event": "sample", "reason": "rule", "decision": "allow", "packets": row.flow, "flags": set()}
    assert (seen.action, differences(event, expect | row.expect)) == (PASS, {})


def test_an_error_about_a_denied_flow_is_dropped_with_it(bench: Workbench) -> None:
    bench.fresh(ALLOW_UDP)
    talk = Talk("udp", dport=81)
    bench.send(talk.there())
    seen = bench.send(talk.error())
    assert (seen.action, seen.events[0]["reason"], seen.events[0]["packets"]) == (DROP, "default", (1, 1))


def test_an_error_meets_a_stale_flow_and_is_judged_by_its_tuple(bench: Workbench) -> None:
    bench.fresh(ALLOW_UDP)
    talk = Talk("udp")
    bench.send(talk.there())
    bench.d.set_config(epoch=bench.d.revision << 32)
    seen = bench.send(talk.error())
    assert seen.kinds == ["change"]
    assert differences(seen.events[0], {"reason": "rule", "rule": 64, "dport": 80, "flags": set()}) == {}
    bench.check()


def test_an_error_about_a_closing_flow_is_judged_by_its_tuple(bench: Workbench) -> None:
    for talk in (Talk("udp"), Talk("tcp")):  # a reply to the flow: judged as one
        bench.fresh(ALLOW_UDP)
        bench.send(talk.there("S"))
        table = bench.d.map("flows")
        keys, values = table.read()
        values["state"] = 2
        table.put(keys, values)
        seen = bench.send(talk.error())
        assert seen.action == PASS
        assert (
            differences(seen.events[0], {"reason": "rule", "decision": "allow", "flags": {"untracked", "reversed"}})
            == {}
        )
        assert bench.counters()["untracked_closing"] == 1
