"""The node's own addresses and TCP connections: those of the network namespace that the interfaces are in.

A socket stays in the namespace it was opened in, so the one that hears of changes needs no thread of its own there.
"""

import errno
import ipaddress
import socket
import struct
from pathlib import Path

from collector.errors import KernelError
from collector.kernel.interface import Connection
from collector.kernel.netns import inside

_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_HINT = "the addresses of `host` cannot be followed"
_ESTABLISHED = "01"
_TABLES = (Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6"))


class Namespace:
    """collector.kernel.interface.Host of the namespace named `netns` ("": this one)."""

    def __init__(self, netns: str = "") -> None:
        self._netns = netns
        self._changes: socket.socket | None = None

    def fileno(self) -> int:
        if self._changes is None:
            self._changes = inside(self._netns, _listen)
        return self._changes.fileno()

    def addresses(self) -> tuple[str, ...]:
        self.fileno()  # a change from here on is heard of
        assert self._changes is not None
        while True:
            try:
                self._changes.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were dropped; all addresses are read anew anyway
                    raise KernelError(f"netlink: {error.strerror}", _HINT) from error
        return inside(self._netns, _addresses)

    def connections(self) -> list[Connection]:
        return inside(self._netns, _connections)

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None


def _listen() -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)  # NETLINK_ROUTE
        opened.bind((0, _GROUPS))
    except OSError as error:
        raise KernelError(f"netlink: {error.strerror}", _HINT) from error
    return opened


def _addresses() -> tuple[str, ...]:
    from pyroute2 import IPRoute  # noqa: PLC0415 – attach.py has loaded it already

    with IPRoute() as route:
        found = {a.get_attr("IFA_LOCAL") or a.get_attr("IFA_ADDRESS") for a in route.get_addr()}
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
