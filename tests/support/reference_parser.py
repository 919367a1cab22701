"""What a frame is, written a second time from docs/architecture.md, slowly and in Python: the kernel parser must agree.

Bytes are cut into slices as the headers claim, and anything that does not fit raises. Nothing is shared with bpf/.
"""

import ipaddress
import struct
from dataclasses import dataclass

TAGS = {b"\x81\x00", b"\x88\xa8"}
EXTENSIONS = {0, 43, 44, 51, 60, 135, 139, 140}
ICMP_ERRORS = {4: {3, 4, 11, 12}, 6: {1, 2, 3, 4}}
ICMP_PROTO = {4: 1, 6: 58}
QUERIES = {(4, 0): 8, (4, 8): 8, (4, 13): 13, (4, 14): 13, (4, 15): 15, (4, 16): 15, (4, 17): 17, (4, 18): 17,
           (6, 128): 128, (6, 129): 128}  # fmt: skip
PORTED = {6: 20, 17: 8, 132: 12}  # protocol → bytes of its header


class _Bad(Exception):
    """Malformed."""


@dataclass(frozen=True)
class Parsed:
    """`kind`: non_ip, malformed, whole, first_fragment, later_fragment, icmp_error or icmp_unrelated.

    `src` … `proto` are what an event about this packet says; `key` names the flow it belongs to, both ways the same
    (None: none). ICMP: `sport` is a query's id, else 0; `dport` this packet's type.
    """

    kind: str
    family: int = 0
    src: str = ""
    dst: str = ""
    sport: int = 0
    dport: int = 0
    proto: int = 0
    key: tuple | None = None
    tcp_flags: int = 0


@dataclass
class _Ip:
    family: int
    src: str
    dst: str
    hop_limit: int
    proto: int
    payload: bytes
    left: int  # bytes the payload has by the header's claim: in a quote, more than are there
    offset: int = 0  # of a fragment, in bytes
    more: bool = False
    tcp_flags: int = 0


def _take(data: bytes, n: int) -> bytes:
    if len(data) < n:
        raise _Bad
    return data[:n]


def _ipv4(data: bytes, quoted: bool) -> _Ip:
    head = _take(data, 20)
    length, total, fragment = (head[0] & 15) * 4, *struct.unpack_from("!H2xH", head, 2)
    offset = (fragment & 0x1FFF) * 8
    if head[0] >> 4 != 4 or length < 20 or total < length or (total > len(data) and not quoted):
        raise _Bad
    if offset == 8 and head[9] == 6:
        raise _Bad
    _take(data, length)
    src, dst = (str(ipaddress.IPv4Address(head[i : i + 4])) for i in (12, 16))
    return _Ip(4, src, dst, head[8], head[9], data[length:total], total - length, offset, bool(fragment & 0x2000))


def _ipv6(data: bytes, quoted: bool) -> _Ip:
    head = _take(data, 40)
    size = struct.unpack_from("!H", head, 4)[0]
    if head[0] >> 4 != 6 or (size > len(data) - 40 and not quoted):
        raise _Bad
    ends = [ipaddress.IPv6Address(head[i : i + 16]) for i in (8, 24)]
    if any(a.ipv4_mapped is not None for a in ends):
        raise _Bad
    ip = _Ip(6, str(ends[0]), str(ends[1]), head[7], head[6], data[40 : 40 + size], size)
    for _ in range(8):
        if ip.proto not in EXTENSIONS or ip.offset:
            break
        _extension(ip)
    if ip.proto in EXTENSIONS and not ip.offset:
        raise _Bad  # a ninth
    return ip


def _extension(ip: _Ip) -> None:
    head = _take(ip.payload, 8)
    size = {44: 8, 51: (head[1] + 2) * 4}.get(ip.proto, (head[1] + 1) * 8)
    if ip.proto == 44:
        where = struct.unpack_from("!H", head, 2)[0]
        ip.offset, ip.more = where & 0xFFF8, bool(where & 1)
        if ip.offset == 8 and head[0] == 6:
            raise _Bad
    _take(ip.payload, size)
    ip.proto, ip.payload, ip.left = head[0], ip.payload[size:], ip.left - size


def _layer4(ip: _Ip, quoted: bool) -> tuple[int, int]:
    """(sport, dport); of ICMP (id or 0, type)."""
    if ip.proto == ICMP_PROTO[ip.family]:
        head = _take(ip.payload, 8)
        return (struct.unpack_from("!H", head, 4)[0] if (ip.family, head[0]) in QUERIES else 0), head[0]
    if ip.proto not in PORTED:
        return 0, 0
    head = _take(ip.payload, 8 if quoted else PORTED[ip.proto])
    sport, dport = struct.unpack_from("!HH", head)
    if quoted:
        return sport, dport
    if ip.proto == 17 and struct.unpack_from("!H", head, 4)[0] < 8:
        raise _Bad
    if ip.proto == 6:
        if not 20 <= (head[12] >> 4) * 4 <= len(ip.payload):
            raise _Bad
        ip.tcp_flags = head[13]
    return sport, dport


def _key(ip: _Ip, sport: int, dport: int) -> tuple:
    if ip.proto == ICMP_PROTO[ip.family]:
        request = QUERIES.get((ip.family, dport), dport)
        ends = (ip.src, ip.dst) if dport == request else (ip.dst, ip.src)
        return ip.family, ip.proto, ends, sport, request
    return ip.family, ip.proto, frozenset(((ip.src, sport), (ip.dst, dport)))


def parse(frame: bytes) -> Parsed:
    """What `frame` (14 bytes or more) is."""
    kind, data = frame[12:14], frame[14:]
    for _ in range(2):
        if kind in TAGS:
            if len(data) < 4:
                return Parsed("non_ip")
            kind, data = data[2:4], data[4:]
    read = {b"\x08\x00": _ipv4, b"\x86\xdd": _ipv6}.get(kind)
    if read is None:
        return Parsed("non_ip")
    try:
        ip = read(data, False)
        if ip.offset:
            return Parsed("later_fragment", ip.family, ip.src, ip.dst, 0, 0, ip.proto)
        sport, dport = _layer4(ip, False)
    except _Bad:
        return Parsed("malformed")
    if ip.proto == ICMP_PROTO[ip.family] and dport in ICMP_ERRORS[ip.family]:
        about = _quoted(ip, read)
        return Parsed("icmp_error" if about else "icmp_unrelated", ip.family, ip.src, ip.dst, 0, dport, ip.proto, about)
    kind_ = "first_fragment" if ip.more else "whole"
    key = _key(ip, sport, dport)
    return Parsed(kind_, ip.family, ip.src, ip.dst, sport, dport, ip.proto, key, ip.tcp_flags)


def _quoted(error: _Ip, read) -> tuple | None:
    """The flow an ICMP error is about; None if it cannot be about one."""
    try:
        ip = read(error.payload[8:], True)
        if ip.offset or ip.src != error.dst:
            return None
        return _key(ip, *_layer4(ip, True))
    except _Bad:
        return None
