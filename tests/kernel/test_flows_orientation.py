"""Conversations, a row each: packets in order, what each was judged, whose it was, what was told."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from schemas.codes import Decision, Mode
from tests.support.packets import (
    A6,
    B6,
    ICMP,
    UDP,
    A,
    B,
    C,
    ICMPv6ND_NS,
    Raw,
    Talk,
    ether,
    ip,
    ping,
)  # fmt: skip
from tests.support.rules import ANY, NO_POLICY, Rule, Rules, identity_of
from tests.support.workbench import DROP, NS, PASS, Workbench, differences

A_TO_B = Rules((Rule("10.0.0.1/32", "10.0.0.2/32", ANY, True), Rule("fd00::1/128", "fd00::2/128", ANY, True)))
TCP, UDP_, SCTP = Talk("tcp"), Talk("udp"), Talk("sctp")
BACKWARDS = Talk("tcp", B, A, 80, 40000)  # the same endpoints, the other opener


@dataclass(frozen=True)
class Step:
    """A packet at `at` ns and what its last event says. `events`: the kinds; `told`: fields of the first event."""

    packet: bytes
    expect: dict[str, Any] = field(default_factory=dict)
    at: int = 0
    action: int = PASS
    events: tuple[str, ...] = ("sample",)
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    name: str
    steps: tuple[Step, ...]
    rules: Rules = A_TO_B
    mode: Mode = Mode.ENFORCE
    config: dict[str, Any] = field(default_factory=dict)


ALLOW = {"decision": "allow", "outcome": "passed", "reason": "rule", "rule": 64}
DENIED = {"decision": "deny", "outcome": "dropped", "reason": "default", "rule": 0}
OPENER = {"src": A, "dst": B, "sport": 40000, "dport": 80}
NEW, RESTART = ("new",), ("end", "new")


def _orientation() -> Iterator[Row]:
    for talk in (TCP, UDP_, SCTP, Talk("tcp", A6, B6), Talk("udp", A6, B6), Talk("udp", B6, A6)):
        name = f"{talk.layer.__name__} {talk.src}"
        opener = {"src": talk.src, "dst": talk.dst, "sport": 40000, "dport": 80}
        yield Row(f"request and reply, {name}", (
            Step(talk.there("S"), ALLOW | opener | {"direction": "original", "packets": (1, 0)}, events=NEW),
            Step(talk.back("SA"), ALLOW | opener | {"direction": "reply", "packets": (1, 1)}),
            Step(talk.there(load=b"xy"), ALLOW | opener | {"direction": "original", "packets": (2, 1)}),
        ), rules=Rules((Rule(talk.src, ANY, ANY, True),)))  # fmt: skip
        back = {"src": talk.dst, "dst": talk.src, "sport": 80, "dport": 40000}
        if talk.src != B6:
            yield Row(f"the denied end begins, {name}", (
                Step(talk.back("S"), DENIED | back, action=DROP, events=NEW),
                *([] if talk.layer.__name__ == "TCP" else [
                    Step(talk.there(), DENIED | back | {"direction": "reply", "packets": (1, 1)}, action=DROP)]),
            ))  # fmt: skip
    yield Row("SYN+ACK first seen: the other way round", (
        Step(TCP.back("SA"), ALLOW | OPENER | {"direction": "reply", "packets": (0, 1), "flags": {"reversed"},
                                               "tcp_flags": (0, 0x12)}, events=NEW),
        Step(TCP.there("A"), ALLOW | {"direction": "original", "packets": (1, 1), "tcp_flags": (0x10, 0x12)}),
    ))  # fmt: skip
    yield Row("SYN+ACK first seen, and its opener is denied", (
        Step(BACKWARDS.back("SA"), DENIED | {"src": B, "dst": A, "flags": {"reversed"}}, action=DROP, events=NEW),
    ))  # fmt: skip
    identities = {
        "src_identity": identity_of(A_TO_B, "10.0.0.1/32"),
        "dst_identity": identity_of(A_TO_B, "10.0.0.2/32"),
    }
    yield Row("identities are of opener and responder", (
        Step(TCP.there("S"), identities, events=NEW), Step(TCP.back("SA"), identities)))  # fmt: skip
    yield Row("identities of a reversed one", (Step(TCP.back("SA"), identities, events=NEW),))
    world = {"src_identity": identities["src_identity"], "dst_identity": 0}
    to_c = Talk("tcp", A, C)
    yield Row("an address nobody named is world", (Step(to_c.there("S"), world, action=DROP, events=NEW),))
    same = ether(ip(A, A) / UDP(sport=5, dport=6))
    other = ether(ip(A, A) / UDP(sport=6, dport=5))
    reply = Step(other, {"sport": 5, "direction": "reply", "packets": (1, 1)})
    yield Row("one host with itself", (Step(same, {"sport": 5, "dport": 6}, events=NEW), reply), NO_POLICY)


def _midstream() -> Iterator[Row]:
    inside, outside = {"config": {"midstream_until": None}}, {}
    flags = {"flags": {"midstream"}}
    yield Row("mid-stream inside the window, as allowed", (
        Step(TCP.there("A"), ALLOW | OPENER | flags, events=NEW),), **inside)  # fmt: skip
    yield Row("mid-stream inside the window, the reply first", (
        Step(TCP.back("PA"), ALLOW | OPENER | {"flags": {"midstream", "reversed"}, "direction": "reply"}, events=NEW),
        Step(TCP.there("A"), ALLOW | {"packets": (1, 1)}),
    ), **inside)  # fmt: skip
    both_denied = DENIED | {"src": C, "dst": B} | flags
    yield Row("mid-stream inside the window, denied both ways", (
        Step(Talk("tcp", C, B).there("A"), both_denied, action=DROP, events=NEW),), **inside)  # fmt: skip
    yield Row("mid-stream after the window, as allowed", (
        Step(TCP.there("A"), ALLOW | OPENER | flags, events=NEW),), **outside)  # fmt: skip
    reply = DENIED | {"src": B, "dst": A} | flags
    yield Row("mid-stream after the window, the reply first", (
        Step(TCP.back("A"), reply, action=DROP, events=NEW),), **outside)  # fmt: skip
    yield Row("mid-stream at the end of the window", (
        Step(TCP.back("A"), reply, at=1000 * NS, action=DROP, events=NEW),), **inside)  # fmt: skip
    yield Row("mid-stream 1 ns before the end of the window", (
        Step(TCP.back("A"), ALLOW | {"src": A}, at=1000 * NS - 1, events=NEW),), **inside)  # fmt: skip
    for name, bits in (("FIN", "FA"), ("RST", "R"), ("no flag at all", "")):
        yield Row(f"mid-stream with {name}", (Step(TCP.there(bits), ALLOW | flags, events=NEW),))


def _restarts() -> Iterator[Row]:
    done = {"packets": (2, 1), "tcp_flags": (0x12, 0x12), "direction": "original", "reason": "rule"}
    opening = (Step(TCP.there("S"), events=NEW), Step(TCP.back("SA")), Step(TCP.there("A")))
    from_b = DENIED | {"src": B, "packets": (1, 0), "flags": set()}
    against = Step(TCP.back("S"), from_b, action=DROP, events=RESTART, told=done)
    yield Row("SYN against the orientation", (*opening, against))
    yield Row("SYN+ACK against the orientation is a reply", (*opening, Step(TCP.back("SA"), {"packets": (2, 2)})))
    yield Row("SYN again on an open flow", (*opening, Step(TCP.there("S"), {"packets": (3, 1)})))
    yield Row("SYN after RST", (
        *opening, Step(TCP.back("R"), {"tcp_flags": (0x12, 0x16)}),
        Step(TCP.there("S"), ALLOW | {"packets": (1, 0), "tcp_flags": (2, 0)}, events=RESTART,
             told={"packets": (2, 2), "tcp_flags": (0x12, 0x16)})))  # fmt: skip
    yield Row("SYN after FIN of both", (
        *opening, Step(TCP.there("FA")), Step(TCP.back("FA")), Step(TCP.there("A"), {"packets": (4, 2)}),
        Step(TCP.there("S"), {"packets": (1, 0)}, events=RESTART, told={"packets": (4, 2)})))  # fmt: skip
    yield Row("SYN after FIN of one", (*opening, Step(TCP.there("FA")), Step(TCP.there("S"), {"packets": (4, 1)})))
    yield Row(
        "SYN after an unanswered SYN", (Step(TCP.there("S"), events=NEW), Step(TCP.there("S"), {"packets": (2, 0)}))
    )
    yield Row("a denied SYN, then the other end opens", (
        Step(TCP.back("S"), DENIED, action=DROP, events=NEW),
        Step(TCP.there("S"), ALLOW | OPENER | {"packets": (1, 0)}, events=RESTART,
             told=DENIED | {"packets": (1, 0)})))  # fmt: skip


def _timeouts() -> Iterator[Row]:
    """Each time-out to the nanosecond; replies and originals both keep a flow alive; ICMP errors do not."""
    gre = ether(ip(A, B, proto=47))
    kinds = {
        "UDP": (60, [UDP_.there()], UDP_.there()), "UDP, answered": (60, [UDP_.there(), UDP_.back()], UDP_.there()),
        "SCTP": (120, [SCTP.there()], SCTP.there()), "GRE": (120, [gre], gre),
        "ICMP": (30, [ping()], ping()), "ICMPv6": (30, [ping(A6, B6)], ping(A6, B6)),
        "half-open TCP": (30, [TCP.there("S")], TCP.there("S")),
        "established TCP": (3600, [TCP.there("S"), TCP.back("SA")], TCP.there("A")),
        "TCP after RST": (10, [TCP.there("S"), TCP.back("RA")], TCP.there("A")),
        "TCP after both FIN": (10, [TCP.there("FA"), TCP.back("FA")], TCP.there("A")),
        "TCP after one FIN": (3600, [TCP.there("S"), TCP.back("FA")], TCP.there("A")),
        "TCP answered by an ICMP error alone": (30, [TCP.there("S"), TCP.error()], TCP.there("S")),
    }  # fmt: skip
    for name, (seconds, before, packet) in kinds.items():
        first = (Step(before[0], events=NEW), *(Step(p) for p in before[1:]))
        n = len(before)
        yield Row(f"{name}: {seconds} s are not over", (*first, Step(packet, at=seconds * NS)))
        yield Row(f"{name}: 1 ns more", (
            *first, Step(packet, {"packets": (1, 0), "at": seconds * NS + 1}, at=seconds * NS + 1, events=RESTART,
                         told={"packets": (1, n - 1) if n > 1 else (1, 0), "at": 0})))  # fmt: skip
    steps = [Step(UDP_.there(), events=NEW)]
    steps += [Step(UDP_.back() if i % 2 else UDP_.there(), at=i * 60 * NS) for i in range(1, 5)]
    yield Row("packets of both directions keep it alive", tuple(steps))
    steps = (
        Step(UDP_.there(), events=NEW),
        Step(UDP_.error(), at=59 * NS),
        Step(UDP_.there(), at=60 * NS + 1, events=RESTART),
    )
    yield Row("an ICMP error does not", steps)
    steps = (Step(UDP_.there(), events=NEW), Step(UDP_.error(), {"packets": (1, 1)}, at=61 * NS))
    yield Row("an ICMP error does not restart one that is over", steps)
    yield Row(
        "the clock stepping back is no time-out", (Step(UDP_.there(), at=99 * NS, events=NEW), Step(UDP_.there()))
    )


MONITOR_DENIED = DENIED | {"outcome": "passed"}
B_FIRST = Rules((Rule(ANY, "10.0.0.2/32", "tcp/80", False), Rule(ANY, ANY, ANY, True)))
REPORT = Rules((Rule(ANY, "10.0.0.2/32", "tcp/80", False, report_only=True), Rule(ANY, ANY, ANY, True)))
ALL_OFF = Rules(builtins=0)


def _decisions() -> Iterator[Row]:
    syn = TCP.there("S")
    yield Row("no policy", (Step(syn, {"decision": "allow", "reason": "no_policy", "rule": 1}, events=NEW),), NO_POLICY)
    yield Row("default deny", (Step(syn, DENIED, action=DROP, events=NEW),), Rules())
    yield Row("default deny in monitor", (Step(syn, MONITOR_DENIED, events=NEW),), Rules(), Mode.MONITOR)
    default_allow = DENIED | {"decision": "allow", "outcome": "passed"}
    yield Row("default allow", (Step(syn, default_allow, events=NEW),), Rules(default=Decision.ALLOW))
    deny = DENIED | {"reason": "rule", "rule": 64}
    yield Row("deny beats allow", (Step(syn, deny, action=DROP, events=NEW),), B_FIRST)
    yield Row("deny in monitor", (Step(syn, deny | {"outcome": "passed"}, events=NEW),), B_FIRST, Mode.MONITOR)
    yield Row("the other port is allowed", (Step(Talk("tcp", dport=81).there("S"), {"rule": 65}, events=NEW),), B_FIRST)
    yield Row("the other protocol is allowed", (Step(UDP_.there(), {"rule": 65}, events=NEW),), B_FIRST)
    report = deny | {"outcome": "passed", "flags": {"report_only"}}
    yield Row("report-only passes under enforce", (Step(syn, report, events=NEW),), REPORT)
    far = Rules((*[Rule("10.9.0.0/16", ANY, ANY, True)] * 100, Rule(ANY, ANY, "tcp/80", True)))
    yield Row("rule 100, in the second word", (Step(syn, ALLOW | {"rule": 164}, events=NEW),), far)
    longest = Rules((Rule("10.0.0.1/32", ANY, ANY, True), Rule("10.0.0.0/8", ANY, "tcp/81", True)))
    yield Row("longest match decides the class", (Step(syn, ALLOW, events=NEW),), longest)
    wide = Rules((Rule("0.0.0.0/0", ANY, ANY, True),))
    yield Row("0.0.0.0/0 is all of IPv4", (Step(syn, ALLOW, events=NEW),), wide)
    yield Row(
        "0.0.0.0/0 is nothing of IPv6", (Step(Talk("tcp", A6, B6).there("S"), DENIED, action=DROP, events=NEW),), wide
    )
    wide6 = Rules((Rule("::/0", ANY, ANY, True),))
    yield Row("::/0 is nothing of IPv4", (Step(syn, DENIED, action=DROP, events=NEW),), wide6)
    for family, (src, dst), kind in (("IPv4", (A, B), "icmp/8"), ("IPv6", (A6, B6), "icmpv6/128")):
        only = Rules((Rule(ANY, ANY, kind, True),))
        request, reply = ping(src, dst), ping(dst, src, reply=True)
        yield Row(f"echo is judged by the opener's type, {family}", (
            Step(request, ALLOW, events=NEW),
            Step(reply, ALLOW | {"direction": "reply", "packets": (1, 1)})), only)  # fmt: skip
        own = ping(dst, src)  # the same id
        yield Row(
            f"the responder's own echo request is no reply, {family}",
            (
                Step(request, ALLOW, events=NEW),
                Step(own, DENIED | {"src": dst, "packets": (1, 0)}, action=DROP, events=NEW),
                Step(reply, ALLOW | {"src": src, "packets": (1, 1)}),
                Step(ping(src, dst, reply=True), DENIED | {"src": dst, "packets": (1, 1)}, action=DROP),
            ),
            Rules((Rule(src, ANY, kind, True),)),
        )
        yield Row(
            f"an echo reply alone is not a request, {family}", (Step(reply, DENIED, action=DROP, events=NEW),), only
        )
    gre = ether(ip(A, B, proto=47))
    yield Row("a protocol by number", (Step(gre, ALLOW, events=NEW),), Rules((Rule(ANY, ANY, "other/47", True),)))
    yield Row("sctp by port", (Step(SCTP.there(), ALLOW, events=NEW),), Rules((Rule(ANY, ANY, "sctp/80", True),)))
    yield Row(
        "sctp is not tcp",
        (Step(SCTP.there(), DENIED, action=DROP, events=NEW),),
        Rules((Rule(ANY, ANY, "tcp/80", True),)),
    )


def _builtins() -> Iterator[Row]:
    def icmp6(kind: int, hop_limit: int) -> bytes:
        return ether(ip(A6, B6, hlim=hop_limit) / ICMPv6ND_NS(type=kind, tgt=B6))

    def udp(src: str, dst: str, sport: int, dport: int) -> bytes:
        return ether(ip(src, dst) / UDP(sport=sport, dport=dport))

    on = {f"NDP {t}": (16, icmp6(t, 255)) for t in range(133, 138)}
    on |= {f"MLD {t}": (17, icmp6(t, 1)) for t in (130, 131, 132, 143)}
    on |= {"DHCP request": (18, udp("0.0.0.0", "255.255.255.255", 68, 67)), "DHCP answer": (18, udp(B, A, 67, 68)),
           "DHCPv6 request": (19, udp("fe80::1", "ff02::1:2", 546, 547)),
           "DHCPv6 answer": (19, udp(B6, A6, 547, 546))}  # fmt: skip
    for name, (rule, frame) in on.items():
        verdict = {"decision": "allow", "reason": "builtin", "rule": rule}
        yield Row(f"{name}", (Step(frame, verdict, events=NEW), Step(frame, verdict)), Rules())
        yield Row(f"{name} without policy", (Step(frame, verdict, events=NEW),), NO_POLICY)
        yield Row(f"{name} turned off", (Step(frame, DENIED, action=DROP, events=NEW),), ALL_OFF)
        others = Rules(builtins=15 & ~(1 << rule - 16))
        yield Row(f"{name} alone turned off", (Step(frame, DENIED, action=DROP, events=NEW),), others)
        alone = Rules(builtins=1 << rule - 16)
        yield Row(f"{name} alone left on", (Step(frame, verdict, events=NEW),), alone)
        beats = Rules((Rule(ANY, ANY, ANY, False),))
        yield Row(f"{name} beats a deny", (Step(frame, verdict, events=NEW),), beats)
    off = {
        "NDP from beyond a router": icmp6(135, 64), "NDP of hop limit 254": icmp6(135, 254),
        "ICMPv6 132, 255": icmp6(132, 255), "ICMPv6 138, 255": icmp6(138, 255), "MLD of hop limit 64": icmp6(143, 64),
        "DHCP ports on IPv6": udp(A6, B6, 68, 67), "DHCPv6 ports on IPv4": udp(A, B, 546, 547),
        "from 67 to 67": udp(A, B, 67, 67), "from 68 to 68": udp(A, B, 68, 68),
        "TCP 68 to 67": Talk("tcp", sport=68, dport=67).there("S"),
        "ICMP 135 on IPv4": ether(ip(A, B, ttl=255) / ICMP(type=135) / Raw(b"1234")),
    }  # fmt: skip
    for name, frame in off.items():
        yield Row(f"not built in: {name}", (Step(frame, DENIED, action=DROP, events=NEW),), Rules())
    both = (Step(icmp6(135, 64), DENIED, action=DROP, events=NEW), Step(icmp6(135, 255), {"rule": 16}, events=NEW))
    yield Row("a solicitation from afar opens no door for one from here", both, Rules())
    yield Row("nor the other way round", tuple(reversed(both)), Rules())


ROWS = [*_orientation(), *_midstream(), *_restarts(), *_timeouts(), *_decisions(), *_builtins()]


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_conversation(bench: Workbench, row: Row) -> None:
    bench.fresh(row.rules, row.mode, midstream=1000 * NS if "midstream_until" in row.config else 0)
    for i, step in enumerate(row.steps):
        seen = bench.send(step.packet, step.at)
        bench.check()
        assert (i, seen.action, tuple(seen.kinds)) == (i, step.action, step.events), seen.events
        assert (i, differences(seen.events[-1], step.expect)) == (i, {})
        assert (i, differences(seen.events[0], step.told)) == (i, {})
        assert seen.events[-1]["revision"] == bench.revision
    assert len(bench.flows()) == len({e for e in [s.packet for s in row.steps if s.events == NEW]})
