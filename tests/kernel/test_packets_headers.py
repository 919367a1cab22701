"""Every combination of headers, a row each: what the kernel takes a frame for, whole and cut at every byte."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.packets import (
    A6,
    AH,
    ARP,
    B6,
    ESP,
    ICMP,
    IP,
    MACS,
    SCTP,
    TCP,
    UDP,
    A,
    B,
    Dot1AD,
    Dot1Q,
    Ether,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Raw,
    Talk,
    ether,
    ip,
    patched,
    ping,
)  # fmt: skip
from tests.support.reference_parser import parse
from tests.support.workbench import DROP, PASS, Workbench, differences


@dataclass(frozen=True)
class Row:
    """One frame, met without a flow or policy in mode enforce. `reason` None: it is not IP."""

    name: str
    frame: bytes
    reason: str | None = "no_policy"
    expect: dict[str, Any] = field(default_factory=dict)


def _l4(proto: str) -> Any:
    return {"tcp": TCP(sport=40000, dport=80, flags="S"), "udp": UDP(sport=40000, dport=80), "sctp":
            SCTP(sport=40000, dport=80)}[proto]  # fmt: skip


PORTS = {"sport": 40000, "dport": 80, "src": A, "dst": B, "family": 4}
PORTS6 = PORTS | {"src": A6, "dst": B6, "family": 6}
NUMBER = {"tcp": 6, "udp": 17, "sctp": 132}
LOAD = Raw(b"load")


def _plain() -> Iterator[Row]:
    for proto, number in NUMBER.items():
        for family, (src, dst, ports) in {"IPv4": (A, B, PORTS), "IPv6": (A6, B6, PORTS6)}.items():
            inner = ip(src, dst) / _l4(proto) / LOAD
            yield Row(f"{family} {proto}", ether(inner), expect=ports | {"proto": number})
            tagged = Ether(**MACS) / Dot1Q(vlan=5) / inner
            yield Row(f"{family} {proto} in a VLAN", bytes(tagged), expect=ports | {"proto": number})
            double = Ether(**MACS, type=0x88A8) / Dot1AD(vlan=7) / Dot1Q(vlan=5) / inner
            yield Row(f"{family} {proto} in QinQ", bytes(double), expect=ports | {"proto": number})
    inner = ip(A, B) / _l4("udp")
    yield Row("two 802.1Q tags", bytes(Ether(**MACS) / Dot1Q(vlan=1) / Dot1Q(vlan=2) / inner), expect=PORTS)
    yield Row("three tags", bytes(Ether(**MACS) / Dot1Q() / Dot1Q() / Dot1Q() / inner), None)
    yield Row("ARP", ether(ARP(psrc=A, pdst=B)), None)
    yield Row("ARP in a VLAN", bytes(Ether(**MACS) / Dot1Q(vlan=5) / ARP(psrc=A, pdst=B)), None)
    yield Row("LLDP", ether(b"\x02\x07\x04", type=0x88CC), None)
    yield Row("Ethernet II length field (802.3)", ether(b"\x42\x42\x03" + bytes(40), type=43), None)
    yield Row("a tag cut in two", ether(b"\x00\x05\x08", type=0x8100), None)
    yield Row("padding behind the packet", ether(inner) + bytes(20), expect=PORTS | {"bytes": (62, 0)})
    yield Row("an Ethernet trailer with junk", ether(inner) + bytes(range(100)), expect=PORTS | {"bytes": (142, 0)})
    yield Row("GRE", ether(ip(A, B, proto=47) / LOAD), expect={"proto": 47, "sport": 0, "dport": 0})
    yield Row("GRE over IPv6", ether(ip(A6, B6, nh=47) / LOAD), expect={"proto": 47, "sport": 0, "dport": 0})
    yield Row("ESP", ether(ip(A, B) / ESP(spi=1, seq=1, data=b"x" * 16)), expect={"proto": 50, "sport": 0})
    yield Row(
        "AH over IPv4", ether(ip(A, B) / AH(nh=17, payloadlen=4, icv=b"0" * 12) / _l4("udp")), expect={"proto": 51}
    )
    yield Row("IPv4 protocol 0", ether(ip(A, B, proto=0) / LOAD), expect={"proto": 0})
    yield Row("ICMPv6's number on IPv4", ether(ip(A, B, proto=58) / LOAD), expect={"proto": 58, "sport": 0, "dport": 0})
    yield Row("ICMP's number on IPv6", ether(ip(A6, B6, nh=1) / LOAD), expect={"proto": 1, "sport": 0, "dport": 0})
    yield Row("a header and no payload", ether(ip(A, B, proto=47)), expect={"proto": 47})
    yield Row("itself to itself", ether(ip(A, A) / UDP(sport=9, dport=9)), expect={"src": A, "dst": A, "sport": 9})


def _ipv4_header() -> Iterator[Row]:
    udp = _l4("udp") / LOAD
    whole = ether(ip(A, B) / udp)
    options = IP(src=A, dst=B, options=[IPOption_NOP()] * 40)
    yield Row("40 bytes of options", ether(options / udp), expect=PORTS)
    for proto in NUMBER:
        yield Row(
            f"options and {proto}",
            ether(IP(src=A, dst=B, options=[IPOption_Router_Alert()]) / _l4(proto)),
            expect=PORTS,
        )
    yield Row("header length 4 words", patched(whole, (14, b"\x44")), "malformed")
    yield Row("header length 0", patched(whole, (14, b"\x40")), "malformed")
    yield Row("header longer than the packet", patched(whole, (14, b"\x4f")), "malformed")
    yield Row("version 6 behind ethertype IPv4", patched(whole, (14, b"\x65")), "malformed")
    yield Row("version 0", patched(whole, (14, b"\x05")), "malformed")
    yield Row("total length 0", patched(whole, (16, b"\0\0")), "malformed")
    yield Row("total length below the header", patched(whole, (16, b"\0\x13")), "malformed")
    yield Row("total length leaves 7 bytes of UDP", patched(whole, (16, b"\0\x1b")), "malformed")
    yield Row("total length ends with the UDP header", patched(whole, (16, b"\0\x1c")), expect=PORTS)
    yield Row("total length one too large", patched(whole, (16, struct.pack("!H", len(whole) - 13))), "malformed")
    yield Row("total length 65535", patched(whole, (16, b"\xff\xff")), "malformed")
    yield Row("do not fragment", patched(whole, (20, b"\x40\0")), expect=PORTS)
    yield Row("the reserved bit", patched(whole, (20, b"\x80\0")), expect=PORTS)
    tcp = ether(ip(A, B) / _l4("tcp"))
    yield Row("total length leaves 19 bytes of TCP", patched(tcp + LOAD.load, (16, b"\0\x27")), "malformed")
    yield Row("TCP data offset 4", patched(tcp, (46, b"\x40")), "malformed")
    yield Row("TCP data offset beyond the packet", patched(tcp, (46, b"\x60")), "malformed")
    yield Row("TCP options that fit", ether(ip(A, B) / TCP(dport=80, options=[("MSS", 1460)])), expect={"dport": 80})
    yield Row("TCP data offset into the trailer", patched(tcp, (46, b"\x60")) + bytes(8), "malformed")
    yield Row("UDP length 7", patched(whole, (38, b"\0\x07")), "malformed")
    yield Row("UDP length 0", patched(whole, (38, b"\0\0")), "malformed")
    yield Row("UDP length 8", patched(whole, (38, b"\0\x08")), expect=PORTS)
    yield Row("TCP fragment at offset 1", patched(tcp, (20, b"\0\x01")), "malformed")
    yield Row("TCP fragment at offset 1 with more", patched(tcp, (20, b"\x20\x01")), "malformed")
    yield Row(
        "UDP fragment at offset 1", patched(whole, (20, b"\0\x01")), "headless_fragment", {"proto": 17, "sport": 0}
    )
    yield Row("TCP fragment at offset 2", patched(tcp, (20, b"\0\x02")), "headless_fragment", {"proto": 6, "sport": 0})
    yield Row("first fragment", patched(whole, (20, b"\x20\0")), expect=PORTS)
    cut = IP(src=A, dst=B, proto=6, flags="MF") / Raw(bytes(_l4("tcp"))[:16])
    yield Row("first fragment without its TCP header", ether(cut), "malformed")
    cut = IP(src=A, dst=B, proto=17, flags="MF") / Raw(b"1234567")
    yield Row("first fragment without its UDP header", ether(cut), "malformed")
    yield Row("first fragment of GRE, empty", ether(IP(src=A, dst=B, proto=47, flags="MF")), expect={"proto": 47})


def _chain(*headers: Any, last: Any = None) -> bytes:
    packet = IPv6(src=A6, dst=B6)
    for header in (*headers, last if last is not None else _l4("udp") / LOAD):
        packet = packet / header
    return ether(packet)


def _dest(n: int) -> list[Any]:
    return [IPv6ExtHdrDestOpt() for _ in range(n)]


def _ipv6_header() -> Iterator[Row]:
    hop, routing = IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(addresses=["fd00::9"])
    ah = AH(nh=44, payloadlen=4, icv=b"0" * 12)
    for proto, number in NUMBER.items():
        for name, chain in {"hop-by-hop": [hop], "routing": [routing], "destination": _dest(1),
                            "AH": [AH(nh=number, payloadlen=4, icv=b"0" * 12)],
                            "hop-by-hop, routing, destination": [hop, routing, *_dest(1)],
                            "atomic fragment": [IPv6ExtHdrFragment(id=5)],
                            "first fragment": [IPv6ExtHdrFragment(id=5, m=1)],
                            "hop-by-hop, AH, first fragment, destination":
                                [hop, ah, IPv6ExtHdrFragment(m=1), *_dest(1)],
                            "eight headers": _dest(8)}.items():  # fmt: skip
            yield Row(f"{name}, {proto}", _chain(*chain, last=_l4(proto)), expect=PORTS6 | {"proto": number})
        yield Row(f"nine headers, {proto}", _chain(*_dest(9), last=_l4(proto)), "malformed")
    yield Row(
        "eight headers, no next header", _chain(*_dest(7), IPv6ExtHdrDestOpt(nh=59), last=b""), expect={"proto": 59}
    )
    long = ether(IPv6(src=A6, dst=B6, nh=60) / Raw(b"\x11\xff" + bytes(2046)) / _l4("udp"))
    yield Row("an extension of 2,048 bytes", long, expect=PORTS6)
    hip, mobility = (bytes([17, 1]) + bytes(14) for _ in range(2))
    for name, number, body in (("HIP", 139, hip), ("mobility", 135, mobility), ("shim6", 140, hip)):
        frame = ether(IPv6(src=A6, dst=B6, nh=number) / Raw(body) / _l4("udp"))
        yield Row(f"{name} header, then UDP", frame, expect=PORTS6)
    alone = ether(IPv6(src=A6, dst=B6, nh=135) / Raw(bytes([59, 0]) + bytes(6)))
    yield Row("mobility alone", alone, expect={"proto": 59})
    yield Row("ESP over IPv6", _chain(last=ESP(spi=1, seq=1, data=b"x" * 16)), expect={"proto": 50, "sport": 0})
    yield Row("no next header", ether(IPv6(src=A6, dst=B6, nh=59) / LOAD), expect={"proto": 59, "sport": 0})
    whole = _chain()
    yield Row("IPv4-mapped source", ether(IPv6(src="::ffff:10.0.0.1", dst=B6) / _l4("udp")), "malformed")
    yield Row("IPv4-mapped destination", ether(IPv6(src=A6, dst="::ffff:10.0.0.1") / _l4("udp")), "malformed")
    yield Row("IPv4-compatible source", ether(IPv6(src="::10.0.0.1", dst=B6) / _l4("udp")), expect={"src": "::a00:1"})
    yield Row("nearly mapped", ether(IPv6(src="::fffe:10.0.0.1", dst=B6) / _l4("udp")), expect={"src": "::fffe:a00:1"})
    yield Row("version 4 behind ethertype IPv6", patched(whole, (14, b"\x45")), "malformed")
    yield Row("payload length 0", patched(whole, (18, b"\0\0")), "malformed")
    yield Row("payload length 7", patched(whole, (18, b"\0\x07")), "malformed")
    yield Row("payload length 8", patched(whole, (18, b"\0\x08")), expect=PORTS6)
    yield Row("payload length one too large", patched(whole, (18, b"\0\x0d")), "malformed")
    yield Row("payload length 65535", patched(whole, (18, b"\xff\xff")), "malformed")
    yield Row("padding behind the packet, IPv6", whole + bytes(9), expect=PORTS6)
    yield Row("an extension longer than the packet", _chain(IPv6ExtHdrDestOpt(nh=17, len=9)), "malformed")
    yield Row("an extension that takes all", _chain(IPv6ExtHdrDestOpt(nh=17, len=1), last=b"12345678"), "malformed")
    yield Row("an extension into the trailer", _chain(IPv6ExtHdrDestOpt(nh=17, len=9)) + bytes(200), "malformed")
    yield Row("AH of 8 bytes", _chain(AH(payloadlen=0, icv=b"")), "malformed")
    for offset, more, reason in ((1, 0, "malformed"), (1, 1, "malformed"), (2, 0, "headless_fragment")):
        frame = _chain(IPv6ExtHdrFragment(offset=offset, m=more), last=_l4("tcp"))
        yield Row(f"TCP fragment at offset {offset}, M={more}, IPv6", frame, reason)
    yield Row(
        "UDP fragment at offset 1, IPv6", _chain(IPv6ExtHdrFragment(offset=1)), "headless_fragment", {"proto": 17}
    )
    later = _chain(IPv6ExtHdrFragment(nh=60, offset=9), last=b"junk")
    yield Row("later fragment of extension headers", later, "headless_fragment", {"proto": 60, "sport": 0})
    cut = _chain(IPv6ExtHdrFragment(nh=6, m=1), last=bytes(_l4("tcp"))[:16])
    yield Row("first fragment without its TCP header, IPv6", cut, "malformed")
    cut = _chain(IPv6ExtHdrFragment(nh=60, m=1), last=b"\x06\x01" + bytes(6))
    yield Row("first fragment that ends in an extension", cut, "malformed")


def _icmp() -> Iterator[Row]:
    yield Row("echo request", ether(ip(A, B) / ICMP(id=7)), expect={"sport": 7, "dport": 8, "proto": 1, "src": A})
    yield Row("echo reply alone", ping(B, A, 7, reply=True), expect={"sport": 7, "dport": 0, "src": B})
    yield Row("echo request, IPv6", ping(A6, B6, 7), expect={"sport": 7, "dport": 128, "proto": 58, "src": A6})
    yield Row("echo reply alone, IPv6", ping(B6, A6, 7, reply=True), expect={"sport": 7, "dport": 129})
    for request, reply in ((13, 14), (15, 16), (17, 18)):
        yield Row(
            f"ICMP type {request}", ether(ip(A, B) / ICMP(type=request, id=3)), expect={"sport": 3, "dport": request}
        )
        yield Row(f"ICMP type {reply}", ether(ip(A, B) / ICMP(type=reply, id=3)), expect={"sport": 3, "dport": reply})
    other = ether(ip(A, B, ttl=9, proto=1) / Raw(b"\x0a\0\0\0\0\x05\0\0"))
    yield Row("router solicitation (IPv4) has no id", other, expect={"sport": 0, "dport": 10})
    yield Row("ICMP of 7 bytes", ether(ip(A, B, proto=1) / Raw(b"\x08\0\0\0\0\x01\0")), "malformed")
    yield Row("ICMPv6 of 7 bytes", ether(ip(A6, B6, nh=58) / Raw(b"\x80\0\0\0\0\x01\0")), "malformed")
    solicitation = ip(A6, B6, hlim=255) / ICMPv6ND_NS(tgt=B6)
    yield Row("neighbour solicitation", ether(solicitation), "builtin", {"rule": 16, "sport": 0, "dport": 135})
    for name, talk in (("IPv4", Talk("udp")), ("IPv6", Talk("udp", A6, B6))):
        unrelated = {"sport": 0, "proto": 1 if name == "IPv4" else 58, "dport": 3 if name == "IPv4" else 1}
        yield Row(f"error about no flow, {name}", talk.error(), "icmp_unrelated", unrelated)
        yield Row(
            f"error without a quote, {name}", talk.error(cut=-20 if ":" in talk.src else 0), "icmp_unrelated", unrelated
        )
    big = ip(B6, A6) / ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(ip(A6, B6) / _l4("tcp")))
    yield Row("packet too big about no flow", ether(big), "icmp_unrelated", {"dport": 2, "src": B6, "dst": A6})
    for kind in (4, 11, 12):
        error = ip(B, A) / ICMP(type=kind) / Raw(bytes(ip(A, B) / _l4("tcp")))
        yield Row(f"ICMP error {kind} about no flow", ether(error), "icmp_unrelated", {"dport": kind})
    yield Row(
        "ICMP redirect is no error", ether(ip(B, A, ttl=5) / ICMP(type=5) / LOAD), expect={"dport": 5, "sport": 0}
    )


ROWS = [*_plain(), *_ipv4_header(), *_ipv6_header(), *_icmp()]


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_headers(bench: Workbench, row: Row) -> None:
    bench.fresh()
    seen = bench.send(row.frame)
    bench.check()
    if row.reason is None:
        assert (seen.action, seen.events, bench.counters()["non_ip"]) == (PASS, [], 1)
        return
    [event] = seen.events
    denied = row.reason in ("malformed", "headless_fragment", "icmp_unrelated")
    expect = {
        "reason": row.reason, "decision": "deny" if denied else "allow", "outcome": "dropped" if denied else "passed",
        "event": "sample" if denied else "new", "direction": "original", "packets": (1, 0),
        "bytes": (len(row.frame), 0), "at": 0, "ifindex": 1, "flags": {"untracked"} if denied else set(),
        "revision": bench.revision,
    }  # fmt: skip
    assert differences(event, expect | row.expect) == {}
    assert seen.action == (DROP if denied else PASS)
    assert bench.rules() == {event["rule"]: (0, 1) if denied else (1, 0)}
    assert bench.counters()["untracked_unattributable"] == len(bench.flows()) ^ 1 == int(denied)


REASONS = {"malformed": "malformed", "later_fragment": "headless_fragment", "icmp_error": "icmp_unrelated",
           "icmp_unrelated": "icmp_unrelated"}  # fmt: skip


def judged_as_parsed(bench: Workbench, frame: bytes) -> None:
    """On an empty table, the kernel's answer is that of the reference parser."""
    parsed = parse(frame)
    seen = bench.send(frame)
    if parsed.kind == "non_ip":
        assert (seen.action, seen.events, bench.counters()["non_ip"]) == (PASS, [], 1)
        return
    [event] = seen.events
    if parsed.kind == "malformed":
        assert (event["reason"], seen.action) == ("malformed", DROP)
        return
    names = ("family", "src", "dst", "sport", "dport", "proto")
    assert differences(event, {name: getattr(parsed, name) for name in names}) == {}
    if parsed.kind in REASONS:
        assert (event["reason"], seen.action) == (REASONS[parsed.kind], DROP)
    else:
        assert (event["event"], seen.action) == ("new", PASS)
        assert event["reason"] in ("no_policy", "builtin")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_cut_at_every_byte(bench: Workbench, row: Row) -> None:
    for length in range(14, min(len(row.frame), 300)):
        bench.fresh()
        judged_as_parsed(bench, row.frame[:length])
        bench.check()
