"""`ztlens judge`: captures through the kernel program, by the command line, one JSON line a packet."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter

from tests.support.packets import (
    AH,
    ARP,
    Dot1AD,
    Dot1Q,
    Ether,
    ICMPv6ND_NS,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    pieces,
)

POLICY = """
version: 1
default: deny
identities:
  frontend: {labels: {app: frontend}, addresses: [10.0.1.10]}
  database: {labels: {app: db}, addresses: [10.0.2.0/24, "fd00:2::/64"]}
rules:
  - {name: web-to-db, from: frontend, to: database, ports: [5432/tcp], action: allow}
  - {name: no-ssh, from: any, to: database, ports: [22/tcp], action: deny}
  - {name: watch-dns, from: any, to: database, ports: [53/udp], action: deny, report_only: true}
"""
FIELDS = ["index", "src", "dst", "sport", "dport", "proto", "decision", "reason", "rule", "src_identity",
          "dst_identity", "outcome", "direction", "event"]  # fmt: skip
WEB = dict(src="10.0.1.10", dst="10.0.2.5")
BACK = dict(src="10.0.2.5", dst="10.0.1.10")
LONG = ["decision", "reason", "rule", "src_identity", "dst_identity", "outcome", "direction", "event"]


def malformed() -> Packet:
    return Ether() / IP(src="10.0.1.10", dst="10.0.2.5", ihl=3) / UDP()


PACKETS: list[tuple[Packet, str, str]] = [
    # packet · (src, dst, sport, dport, proto) · decision reason rule from to outcome direction event
    (Ether() / IP(**WEB) / TCP(sport=4000, dport=5432, flags="S"), "10.0.1.10 10.0.2.5 4000 5432 tcp",
     "allow rule web-to-db frontend database passed original new"),
    (Ether() / IP(**BACK) / TCP(sport=5432, dport=4000, flags="SA"), "10.0.1.10 10.0.2.5 4000 5432 tcp",
     "allow rule web-to-db frontend database passed reply sample"),
    (Ether() / IP(**WEB) / TCP(sport=4000, dport=5432, flags="A") / Raw(b"x" * 9000),
     "10.0.1.10 10.0.2.5 4000 5432 tcp",
     "allow rule web-to-db frontend database passed original sample"),
    (Ether() / IP(src="10.0.1.11", dst="10.0.2.5") / TCP(sport=4000, dport=22, flags="S"),
     "10.0.1.11 10.0.2.5 4000 22 tcp", "deny rule no-ssh world database {drop} original new"),
    (Ether() / IP(src="10.0.1.11", dst="10.0.2.5") / UDP(sport=4000, dport=53),
     "10.0.1.11 10.0.2.5 4000 53 udp", "deny rule watch-dns world database passed original new"),
    (Ether() / ARP(pdst="10.0.1.1"), "- - - - -", "allow non_ip - - - passed - -"),
    (Ether() / Dot1Q(vlan=7) / ARP(), "- - - - -", "allow non_ip - - - passed - -"),
    (Ether() / Dot1Q(vlan=7) / IPv6(src="fd00::1", dst="fd00:2::1") / UDP(sport=1, dport=2),
     "fd00::1 fd00:2::1 1 2 udp", "deny default default world database {drop} original new"),
    (malformed(), "- - - - -", "deny malformed malformed - - {drop} original sample"),
    (Ether() / IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NS(), "fe80::1 ff02::1 * 135 icmpv6",
     "allow builtin builtin:ndp world world passed original new"),
    (Ether() / IP(src="10.9.9.9", dst="10.0.1.11") / ICMP(type=3, code=1) / IPerror(src="10.0.1.11", dst="10.0.2.77")
     / UDPerror(sport=1, dport=2), "10.9.9.9 10.0.1.11 * * icmp",
     "deny icmp_unrelated icmp_unrelated world world {drop} original sample"),
]  # fmt: skip


WEB6 = dict(src="fd00::1", dst="fd00:2::1")
ALLOWED = "10.0.1.10 10.0.2.5 {0} 5432 tcp"
NEW = "allow rule web-to-db frontend database passed original new"
OPTIONS = [IPOption_NOP(), IPOption_Router_Alert(), IPOption_NOP()]
MANY6 = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt()


def in_pieces(packet: Packet, size: int = 16) -> list[Packet]:
    return [Ether(piece) for piece in pieces(bytes(Ether() / packet), size)]


V4 = in_pieces(IP(**WEB) / UDP(sport=4000, dport=53) / Raw(bytes(24)))
V6 = in_pieces(IPv6(**WEB6) / UDP(sport=4000, dport=53) / Raw(bytes(24)))
WATCHED = "10.0.1.10 10.0.2.5 4000 53 udp", "deny rule watch-dns frontend database passed original"
WATCHED6 = "fd00::1 fd00:2::1 4000 53 udp", "deny rule watch-dns world database passed original"
NO_PORTS = "deny headless_fragment headless_fragment"
HEADERS: list[tuple[Packet, str, str]] = [
    (Ether() / Dot1Q(vlan=7) / IP(**WEB) / TCP(sport=4001, dport=5432, flags="S"), ALLOWED.format(4001), NEW),
    (Ether() / Dot1AD(vlan=9) / Dot1Q(vlan=7) / IP(**WEB) / TCP(sport=4002, dport=5432, flags="S"),
     ALLOWED.format(4002), NEW),
    (Ether() / Dot1Q(vlan=9) / Dot1Q(vlan=7) / IPv6(**WEB6) / UDP(sport=4003, dport=53),
     "fd00::1 fd00:2::1 4003 53 udp", f"{WATCHED6[1]} new"),
    (Ether() / IP(**WEB, options=OPTIONS) / TCP(sport=4004, dport=5432, flags="S"), ALLOWED.format(4004), NEW),
    (Ether() / Dot1Q(vlan=7) / IP(**BACK, options=OPTIONS) / TCP(sport=5432, dport=4004, flags="SA"),
     ALLOWED.format(4004), "allow rule web-to-db frontend database passed reply sample"),
    (Ether() / IPv6(**WEB6) / MANY6 / TCP(sport=4005, dport=22, flags="S"), "fd00::1 fd00:2::1 4005 22 tcp",
     "deny rule no-ssh world database {drop} original new"),
    (Ether() / IPv6(**WEB6) / AH(nh=17, payloadlen=4, icv=bytes(12)) / UDP(sport=4006, dport=53),
     "fd00::1 fd00:2::1 4006 53 udp", f"{WATCHED6[1]} new"),
    (V4[1], "10.0.1.10 10.0.2.5 0 0 udp", f"{NO_PORTS} world world {{drop}} original sample"),
    (V4[0], WATCHED[0], f"{WATCHED[1]} new"),
    (V4[1], WATCHED[0], f"{WATCHED[1]} sample"),
    (V6[0], WATCHED6[0], f"{WATCHED6[1]} new"),
    (V6[1], WATCHED6[0], f"{WATCHED6[1]} sample"),
    (Ether() / IP(**WEB, proto=6, frag=1) / Raw(bytes(20)), "- - - - -",
     "deny malformed malformed - - {drop} original sample"),
    (Ether() / IP(**WEB, flags="MF") / TCP(sport=4007, dport=22, flags="S"), "10.0.1.10 10.0.2.5 4007 22 tcp",
     "deny rule no-ssh frontend database {drop} original new"),
    (Ether() / IP(**WEB, proto=6, frag=3) / Raw(bytes(20)), "10.0.1.10 10.0.2.5 4007 22 tcp",
     "deny rule no-ssh frontend database {drop} original sample"),
]  # fmt: skip


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def judge(*arguments: str | Path) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    command = [sys.executable, "-m", "ztlens.main", "judge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()], done


def expected(index: int, ends: str, rest: str, drop: str) -> dict[str, Any]:
    src, dst, sport, dport, proto = (None if word == "-" else word for word in ends.split())
    words = [None if word == "-" else word for word in rest.format(drop=drop).split()]
    ports = [port if port in (None, "*") else int(port) for port in (sport, dport)]
    return {"index": index, "src": src, "dst": dst, "sport": ports[0], "dport": ports[1], "proto": proto,
            **dict(zip(LONG, words, strict=True))}  # fmt: skip


@pytest.mark.parametrize(("mode", "drop"), [("monitor", "passed"), ("enforce", "dropped")])
@pytest.mark.parametrize("packets", [PACKETS, HEADERS], ids=["conversations", "headers"])
def test_one_line_a_packet(
    tmp_path: Path, policy: Path, packets: list[tuple[Packet, str, str]], mode: str, drop: str
) -> None:
    capture = tmp_path / "a.pcap"
    with PcapWriter(str(capture)) as writer:
        for i, (packet, _, _) in enumerate(packets):
            packet.time = 1_700_000_000 + i / 1000
            writer.write(packet)
    lines, done = judge(capture, "--policy", policy, "--mode", mode)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = [expected(i, ends, rest, drop) for i, (_, ends, rest) in enumerate(packets)]
    for got, want in zip(lines, wanted, strict=True):
        assert list(got) == FIELDS
        assert {k: v for k, v in got.items() if want[k] != "*"} == {k: v for k, v in want.items() if v != "*"}


def test_snapped_raw_ip_with_a_clock_that_steps_back(tmp_path: Path, policy: Path) -> None:
    """A flow of five packets in pcapng, raw IP, cut to 40 bytes; the third is an hour early: the flow goes on."""
    capture = tmp_path / "a.pcapng"
    packets = [
        IP(**WEB) / TCP(sport=4000, dport=5432, flags="S"),
        IP(**BACK) / TCP(sport=5432, dport=4000, flags="SA"),
        *[IP(**WEB) / TCP(sport=4000, dport=5432, flags="A") / Raw(b"x" * 1000) for _ in range(3)],
    ]
    with PcapNgWriter(str(capture)) as writer:
        for i, packet in enumerate(packets):
            packet.time = 1_700_000_000 + i - 3600 * (i == 2)
            whole = bytes(packet)
            cut = IP(whole[:40])
            cut.time, cut.wirelen = packet.time, len(whole)
            writer.write(cut)
    lines, done = judge(capture, "--policy", policy)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line["event"] for line in lines] == ["new", "sample", "sample", "sample", "sample"]
    assert [line["direction"] for line in lines] == ["original", "reply", "original", "original", "original"]
    assert {line["decision"] for line in lines} == {"allow"}


def test_a_cut_off_capture_gives_its_whole_packets_then_the_error(tmp_path: Path, policy: Path) -> None:
    capture = tmp_path / "a.pcap"
    with PcapWriter(str(capture)) as writer:
        for packet, _, _ in PACKETS[:2]:
            packet.time = 1_700_000_000
            writer.write(packet)
    capture.write_bytes(capture.read_bytes()[:-3])
    lines, done = judge(capture, "--policy", policy)
    assert done.returncode == 2
    assert [line["index"] for line in lines] == [0]
    error, hint = done.stderr.splitlines()
    assert error == f"error: {capture} ends in the middle of a packet" and hint.startswith("hint: ")


def test_no_packets_no_lines(tmp_path: Path, policy: Path) -> None:
    capture = tmp_path / "a.pcap"
    with PcapWriter(str(capture), linktype=1) as writer:
        writer.write_header(None)
    assert judge(capture, "--policy", policy)[0] == []
