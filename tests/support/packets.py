"""Frames, built by scapy, which shares nothing with our parser."""

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

__all__ = [
    "AH",
    "ARP",
    "ESP",
    "ICMP",
    "IP",
    "SCTP",
    "TCP",
    "UDP",
    "Dot1AD",
    "Dot1Q",
    "Ether",
    "ICMPv6DestUnreach",
    "ICMPv6EchoReply",
    "ICMPv6EchoRequest",
    "ICMPv6ND_NS",
    "ICMPv6PacketTooBig",
    "IPOption_NOP",
    "IPOption_Router_Alert",
    "IPv6",
    "IPv6ExtHdrDestOpt",
    "IPv6ExtHdrFragment",
    "IPv6ExtHdrHopByHop",
    "IPv6ExtHdrRouting",
    "Raw",
]  # fmt: skip

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
A6, B6, C6 = "fd00::1", "fd00::2", "fd00::3"
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}


def ether(payload: Packet | bytes, **fields: Any) -> bytes:
    """The frame as bytes; `type` overrides what scapy would take."""
    body = Raw(payload) if isinstance(payload, bytes) else payload
    return bytes(Ether(**MACS, **fields) / body)


def ip(src: str, dst: str, **fields: Any) -> Packet:
    """An IPv4 or IPv6 header, by the family of the addresses."""
    return IPv6(src=src, dst=dst, **fields) if ":" in src else IP(src=src, dst=dst, **fields)


class Talk:
    """Both ways of one TCP, UDP or SCTP conversation between A:sport and B:dport."""

    def __init__(self, proto: str, src: str = A, dst: str = B, sport: int = 40000, dport: int = 80) -> None:
        self.layer = {"tcp": TCP, "udp": UDP, "sctp": SCTP}[proto]
        self.src, self.dst, self.sport, self.dport = src, dst, sport, dport

    def _packet(self, reply: bool, flags: str, load: bytes) -> Packet:
        ends = (self.dst, self.src) if reply else (self.src, self.dst)
        ports = {"sport": self.dport, "dport": self.sport} if reply else {"sport": self.sport, "dport": self.dport}
        layer = self.layer(**ports, flags=flags) if self.layer is TCP else self.layer(**ports)
        return ip(*ends) / layer / Raw(load)

    def there(self, flags: str = "A", load: bytes = b"") -> bytes:
        """From the opener; `flags` for TCP."""
        return ether(self._packet(False, flags, load))

    def back(self, flags: str = "A", load: bytes = b"") -> bytes:
        """To the opener."""
        return ether(self._packet(True, flags, load))

    def error(
        self, quote_reply: bool = False, sender: str | None = None, to: str | None = None, cut: int = 28
    ) -> bytes:
        """Destination unreachable about a packet of this conversation: quotes its first `cut` bytes (+20 for IPv6)."""
        quoted = self._packet(quote_reply, "S", b"quoted load")
        back_to = to or quoted.src
        router = sender or (C6 if ":" in self.src else C)
        if ":" in self.src:
            return ether(ip(router, back_to) / ICMPv6DestUnreach(code=4) / Raw(bytes(quoted)[: cut + 20]))
        return ether(ip(router, back_to) / ICMP(type=3, code=3) / Raw(bytes(quoted)[:cut]))


def ping(src: str = A, dst: str = B, ident: int = 77, reply: bool = False, load: bytes = b"ping") -> bytes:
    """An echo request, or the reply as it travels from `src` to `dst`."""
    if ":" in src:
        layer = (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=ident, data=load)
        return ether(ip(src, dst) / layer)
    return ether(ip(src, dst) / ICMP(type=0 if reply else 8, id=ident) / Raw(load))


def patched(frame: bytes, *patches: tuple[int, bytes]) -> bytes:
    """`frame` with bytes overwritten: (offset, bytes). Offset 14 is the first byte behind Ethernet."""
    out = bytearray(frame)
    for at, data in patches:
        out[at : at + len(data)] = data
    return bytes(out)


def pieces(frame: bytes, size: int, ident: int = 4711) -> list[bytes]:
    """The IP packet in `frame` (no VLAN tag) as fragments of `size` payload bytes, a multiple of 8."""
    packet = Ether(frame)[1]
    out = []
    if isinstance(packet, IPv6):
        body = bytes(packet.payload)
        for at in range(0, len(body), size):
            more = at + size < len(body)
            header = IPv6ExtHdrFragment(nh=packet.nh, offset=at // 8, m=int(more), id=ident)
            out.append(ether(IPv6(src=packet.src, dst=packet.dst) / header / Raw(body[at : at + size])))
        return out
    body = bytes(packet.payload)
    for at in range(0, len(body), size):
        flags = "MF" if at + size < len(body) else 0
        head = IP(src=packet.src, dst=packet.dst, proto=packet.proto, id=ident, flags=flags, frag=at // 8)
        out.append(ether(head / Raw(body[at : at + size])))
    return out
