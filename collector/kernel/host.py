"""The node's own addresses and TCP connections: those of the network namespace that the interfaces are in.

A socket stays in the namespace it was opened in, so the one that hears of changes needs no thread of its own there.
"""

import ipaddress
import struct
from pathlib import Path

from collector.kernel import netlink
from collector.kernel.interface import Connection
from collector.kernel.netns import inside

_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ESTABLISHED = "01"
_TABLES = (Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6"))


class Namespace:
    """collector.kernel.interface.Host of the namespace named `netns` ("": this one)."""

    def __init__(self, netns: str = "") -> None:
        self._netns = netns
        self._changes: netlink.Changes | None = None

    def fileno(self) -> int:
        if self._changes is None:
            self._changes = inside(self._netns, lambda: netlink.Changes(netlink.ADDRESSES))
        return self._changes.fileno()

    def addresses(self) -> tuple[str, ...]:
        self.fileno()  # a change from here on is heard of
        assert self._changes is not None
        self._changes.empty()
        return inside(self._netns, _addresses)

    def connections(self) -> list[Connection]:
        return inside(self._netns, _connections)

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None


def _addresses() -> tuple[str, ...]:
    found = set()
    for message in netlink.dump(netlink.GET_ADDRESSES, _IFADDR.pack(0, 0, 0, 0, 0)):
        of = netlink.attributes(message, _IFADDR.size)
        address = of.get(_IFA_LOCAL) or of.get(_IFA_ADDRESS)  # on a point-to-point link the second is the peer's
        if address:
            found.add(str(ipaddress.ip_address(address)))
    return tuple(sorted(found))


def _connections() -> list[Connection]:
    out = []
    for table in _TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        for line in lines:
            _, local, remote, state, *_ = line.split()
            if state == _ESTABLISHED:
                (here, here_port), (there, there_port) = _endpoint(local), _endpoint(remote)
                if not here.is_loopback:
                    out.append(Connection(str(here), here_port, str(there), there_port))
    return out


def _endpoint(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """`0100007F:0016` → 127.0.0.1, 22: 32-bit words of the address in the host's byte order."""
    address, port = text.split(":")
    raw = b"".join(struct.pack("=I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8))
    found = ipaddress.ip_address(raw)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found, int(port, 16)
