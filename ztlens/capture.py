"""Captures (pcap and pcapng) as Ethernet frames the kernel program can judge.

dpkt knows the formats' headers; its readers do not give what is needed here: exact times, the length on the wire, and
the link type of each interface. Frames a snapshot cut are padded with zeros to the length they had.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ztlens.errors import BadInput

ETHERNET, NULL, LOOP, SLL, SLL2, IPV4, IPV6 = 1, 0, 108, 113, 276, 228, 229
RAW = (12, 14, 101)
SHORTEST = 14
LONGEST = 3_200
"""Bytes a test-run takes on every kernel (a page less headroom and tail); longer ones come from offloading NICs."""
_IP4, _IP6, _NOT_IP = b"\x08\x00", b"\x86\xdd", b"\0\0"
_MAX_PACKET = 1 << 20


@dataclass(frozen=True)
class Captured:
    """`time` in ns since 1970 UTC; `frame` begins with an Ethernet header."""

    index: int
    time: int
    frame: bytes


def read(path: Path) -> Iterator[Captured]:
    """The packets of a capture, in its order. Raises OSError; BadInput if it is none, or ends in the middle."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        packets = _pcapng(file, path) if magic == b"\n\r\r\n" else _pcap(file, path)
        for index, (time, link, data, length) in enumerate(packets):
            yield Captured(index, time, _fitted(_ethernet(data + bytes(length - len(data)), link, path)))


def _pcap(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes, int]]:
    """(ns, link type, bytes, length on the wire) of each packet."""
    from dpkt import pcap

    head = file.read(pcap.FileHdr.__hdr_len__)
    kind = pcap.MAGIC_TO_PKT_HDR.get(int.from_bytes(head[:4], "big")) if len(head) == pcap.FileHdr.__hdr_len__ else None
    if kind is None:
        raise BadInput(f"{path} is not a capture", "it must be a pcap or pcapng file, as tcpdump -w writes it")
    magic = int.from_bytes(head[:4], "big")
    little = magic in (pcap.PMUDPCT_MAGIC, pcap.PMUDPCT_MAGIC_NANO, pcap.PACPDOM_MAGIC)
    header = (pcap.LEFileHdr if little else pcap.FileHdr)(head)
    scale = 1 if magic in (pcap.TCPDUMP_MAGIC_NANO, pcap.PMUDPCT_MAGIC_NANO) else 1000
    link = header.linktype & 0x0FFFFFFF  # the highest bits say how long a frame check sequence is
    while raw := file.read(kind.__hdr_len__):
        packet = kind(_whole(raw, kind.__hdr_len__, path))
        data = _whole(file.read(_sane(packet.caplen, path)), packet.caplen, path)
        yield (
            packet.tv_sec * 1_000_000_000 + packet.tv_usec * scale,
            link,
            data,
            max(_sane(packet.len, path), len(data)),
        )


def _pcapng(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes, int]]:
    """As `_pcap`. Blocks that hold no packet are skipped."""
    from dpkt import pcapng

    order = "<"
    interfaces: list[tuple[int, int, int]] = []
    while head := file.read(8):
        _whole(head, 8, path)
        if head[:4] == b"\n\r\r\n":
            mark = _whole(file.read(4), 4, path)
            order = "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces, extra = [], mark
        else:
            extra = b""
        kind, length = struct.unpack(f"{order}2I", head)
        if length < 12 or length > 2 * _MAX_PACKET:
            raise BadInput(f"{path} is damaged: a block of {length} bytes", "capture it again")
        block = head + extra + _whole(file.read(length - 8 - len(extra)), length - 8 - len(extra), path)
        try:
            if kind == pcapng.PCAPNG_BT_IDB:
                cls = pcapng.InterfaceDescriptionBlockLE if order == "<" else pcapng.InterfaceDescriptionBlock
                interfaces.append(_interface(cls(block), order))
            elif kind == pcapng.PCAPNG_BT_EPB:
                cls = pcapng.EnhancedPacketBlockLE if order == "<" else pcapng.EnhancedPacketBlock
                packet = cls(block)
                link, per_second, offset = interfaces[packet.iface_id]
                ticks = packet.ts_high << 32 | packet.ts_low
                time = offset * 1_000_000_000 + ticks * 1_000_000_000 // per_second
                yield time, link, packet.pkt_data, max(_sane(packet.pkt_len, path), len(packet.pkt_data))
        except (ValueError, IndexError, struct.error) as error:
            raise BadInput(f"{path} is damaged: {error or type(error).__name__}", "capture it again") from error


def _interface(block: Any, order: str) -> tuple[int, int, int]:
    """(link type, ticks a second, seconds to add) of an interface description."""
    per_second, offset = 1_000_000, 0
    for option in block.opts:
        if option.code == 9:  # if_tsresol
            value = option.data[0]
            per_second = 2 ** (value & 0x7F) if value & 0x80 else 10**value
        elif option.code == 14:  # if_tsoffset
            offset = struct.unpack(f"{order}q", option.data[:8])[0]
    return block.linktype, per_second, offset


def _whole(data: bytes, length: int, path: Path) -> bytes:
    if len(data) < length:
        raise BadInput(f"{path} ends in the middle of a packet", "the capture is cut off; the lines above are complete")
    return data


def _sane(length: int, path: Path) -> int:
    if length > _MAX_PACKET:
        raise BadInput(f"{path} is damaged: a packet of {length} bytes", "capture it again")
    return length


def _ethernet(data: bytes, link: int, path: Path) -> bytes:
    """`data` with an Ethernet header in place of whatever link header it had, at least 14 bytes."""
    if link == ETHERNET:
        return data.ljust(SHORTEST, b"\0")
    macs = bytes(12)
    if link in RAW or link in (IPV4, IPV6):
        six = link == IPV6 or (link != IPV4 and data[:1] and data[0] >> 4 == 6)
        return macs + (_IP6 if six else _IP4) + data
    if link in (NULL, LOOP):
        family = int.from_bytes(data[:4], "big" if link == LOOP else "little")
        if link == NULL and family > 0xFFFF:  # written by a machine of the other byte order
            family = int.from_bytes(data[:4], "big")
        kind = _IP4 if family == 2 else _IP6 if family in (10, 24, 28, 30) else _NOT_IP
        return macs + kind + data[4:]
    if link == SLL:
        return macs + data[14:16].ljust(2, b"\0") + data[16:]
    if link == SLL2:
        return macs + data[0:2].ljust(2, b"\0") + data[20:]
    raise BadInput(f"{path}: link type {link} is neither Ethernet nor IP", "capture on an Ethernet or IP interface")


def _fitted(frame: bytes) -> bytes:
    """Frames longer than a test-run takes lose the end of their payload, with the IP length set to match."""
    if len(frame) <= LONGEST:
        return frame
    start = 12
    while frame[start : start + 2] in (b"\x81\x00", b"\x88\xa8") and start < 20:
        start += 4
    kind, at, cut = frame[start : start + 2], start + 2, bytearray(frame[:LONGEST])
    if kind == _IP4 and len(frame) - at <= int.from_bytes(frame[at + 2 : at + 4], "big") + 64:
        cut[at + 2 : at + 4] = (LONGEST - at).to_bytes(2, "big")
    elif kind == _IP6:
        cut[at + 4 : at + 6] = (LONGEST - at - 40).to_bytes(2, "big")
    return bytes(cut)
