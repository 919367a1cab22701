"""Captures → frames: formats, byte orders, link types, clocks, snapped and damaged ones."""

import struct
from pathlib import Path

import pytest

from ztlens import capture
from ztlens.errors import BadInput

IP4 = bytes.fromhex("4500001c00000000401100000a00010a0a000205") + bytes.fromhex("0035003500080000")
IP6 = bytes([0x60, 0, 0, 0, 0, 8, 17, 64]) + bytes(15) + b"\1" + bytes(15) + b"\2" + bytes.fromhex("0035003500080000")
MACS = bytes(range(12))


def pcap(packets: list[tuple[int, int, bytes, int]], *, link: int = 1, order: str = "<", nano: bool = False) -> bytes:
    """Packets of (seconds, fraction, bytes, length on the wire)."""
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    out = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for seconds, fraction, data, length in packets:
        out += struct.pack(f"{order}4I", seconds, fraction, len(data), length) + data
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return struct.pack(f"{order}2I", kind, length) + body + struct.pack(f"{order}I", length)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int, resolution: int | None = None) -> bytes:
    options = b"" if resolution is None else struct.pack(f"{order}HHBxxxHH", 9, 1, resolution, 0, 0)
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, 65535) + options)


def enhanced(order: str, iface: int, ticks: int, data: bytes, length: int) -> bytes:
    head = struct.pack(f"{order}5I", iface, ticks >> 32, ticks & 0xFFFFFFFF, len(data), length)
    return block(order, 6, head + data)


def read(tmp_path: Path, content: bytes) -> list[capture.Captured]:
    path = tmp_path / "x.pcap"
    path.write_bytes(content)
    return list(capture.read(path))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("nano", "fraction", "ns"), [(False, 123_456, 123_456_000), (True, 123_456_789, 123_456_789)])
def test_pcap_in_both_orders_and_clocks(tmp_path: Path, order: str, nano: bool, fraction: int, ns: int) -> None:
    frame = MACS + b"\x08\x00" + IP4
    packets = [(1_700_000_000, fraction, frame, len(frame)), (1_700_000_001, 0, frame, len(frame))]
    found = read(tmp_path, pcap(packets, order=order, nano=nano))
    assert found == [
        capture.Captured(0, 1_700_000_000_000_000_000 + ns, frame),
        capture.Captured(1, 1_700_000_001_000_000_000, frame),
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_with_two_interfaces_and_their_own_clocks(tmp_path: Path, order: str) -> None:
    frame = MACS + b"\x08\x00" + IP4
    content = (
        section(order) + interface(order, 1) + block(order, 5, bytes(12)) + interface(order, 101, 9)
        + enhanced(order, 0, 1_700_000_000_123_456, frame, len(frame))
        + enhanced(order, 1, 1_700_000_000_123_456_789, IP6, len(IP6))
        + section(order) + interface(order, 229, 0x80 | 10) + enhanced(order, 0, 1024 * 7 + 512, IP6, len(IP6))
    )  # fmt: skip
    assert [(p.time, p.frame) for p in read(tmp_path, content)] == [
        (1_700_000_000_123_456_000, frame),
        (1_700_000_000_123_456_789, bytes(12) + b"\x86\xdd" + IP6),
        (7_500_000_000, bytes(12) + b"\x86\xdd" + IP6),
    ]


@pytest.mark.parametrize(
    ("link", "data", "expected"),
    [
        (101, IP4, bytes(12) + b"\x08\x00" + IP4),
        (101, IP6, bytes(12) + b"\x86\xdd" + IP6),
        (12, IP4, bytes(12) + b"\x08\x00" + IP4),
        (101, b"\x20\x01", bytes(12) + b"\x08\x00\x20\x01"),  # neither version: IP all the same, so malformed
        (101, b"", bytes(12) + b"\x08\x00"),
        (228, IP6, bytes(12) + b"\x08\x00" + IP6),
        (229, IP4, bytes(12) + b"\x86\xdd" + IP4),
        (113, bytes(14) + b"\x08\x00" + IP4, bytes(12) + b"\x08\x00" + IP4),
        (113, bytes(14) + b"\x08\x06" + b"arp", bytes(12) + b"\x08\x06" + b"arp"),
        (276, b"\x86\xdd" + bytes(18) + IP6, bytes(12) + b"\x86\xdd" + IP6),
        (0, b"\2\0\0\0" + IP4, bytes(12) + b"\x08\x00" + IP4),
        (0, b"\0\0\0\x1e" + IP6, bytes(12) + b"\x86\xdd" + IP6),
        (108, b"\0\0\0\2" + IP4, bytes(12) + b"\x08\x00" + IP4),
        (1, b"\1\2\3", b"\1\2\3" + bytes(11)),
    ],
)
def test_link_types(tmp_path: Path, link: int, data: bytes, expected: bytes) -> None:
    assert [p.frame for p in read(tmp_path, pcap([(1, 0, data, len(data))], link=link))] == [expected]


def test_a_snapped_frame_gets_its_length_back(tmp_path: Path) -> None:
    frame = MACS + b"\x08\x00" + IP4
    (packet,) = read(tmp_path, pcap([(1, 0, frame[:30], 1500)]))
    assert packet.frame == frame[:30] + bytes(1470)


@pytest.mark.parametrize("version", [4, 6])
def test_a_frame_no_test_run_takes_is_cut_with_its_ip_length(tmp_path: Path, version: int) -> None:
    size = 20_000
    if version == 4:
        head = b"\x45\0" + (size).to_bytes(2, "big") + IP4[4:20]
        kind, where, expected = b"\x08\x00", slice(16, 18), capture.LONGEST - 14
    else:
        head = IP6[:4] + (size - 40).to_bytes(2, "big") + IP6[6:40]
        kind, where, expected = b"\x86\xdd", slice(18, 20), capture.LONGEST - 54
    frame = MACS + kind + head + bytes(size - len(head))
    (packet,) = read(tmp_path, pcap([(1, 0, frame, len(frame))]))
    assert len(packet.frame) == capture.LONGEST
    assert int.from_bytes(packet.frame[where], "big") == expected


FRAME = MACS + b"\x08\x00" + IP4
GOOD = pcap([(1, 0, FRAME, len(FRAME))])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"not a capture at all, but long enough for a header", GOOD[:20], GOOD[:30], GOOD[:-1],
        pcap([(1, 0, b"", 0)]) + struct.pack("<4I", 1, 0, 1 << 30, 1 << 30), pcap([(1, 0, FRAME, 40)], link=105),
        section("<")[:10], section("<") + enhanced("<", 0, 1, FRAME, 42), section("<") + struct.pack("<2I", 6, 4),
        section("<") + interface("<", 1) + enhanced("<", 0, 1, FRAME, 42)[:40],
    ],
)  # fmt: skip
def test_what_is_no_capture_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInput):
        read(tmp_path, content)


def test_a_capture_without_packets_is_one(tmp_path: Path) -> None:
    assert read(tmp_path, pcap([])) == []
    assert read(tmp_path, section("<") + interface("<", 1)) == []
