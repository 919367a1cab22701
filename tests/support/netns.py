"""Namespaces, links and sockets for tests that need real packets. Built on what the demo uses.

    with Lab() as lab:
        router, host = lab.namespace("router", router=True), lab.namespace("host")
        lab.link(router, "veth0", host, "eth0")
        lab.address(router, "veth0", "10.1.0.1/24", "fd01::1/64")
        lab.address(host, "eth0", "10.1.0.2/24", "fd01::2/64")
        sender = lab.udp(host)          # a socket that lives in `host`

Names carry the process id and a counter, so that runs side by side never meet.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from tests.support.until import PATIENCE, pause
from ztlens.demo import netns
from ztlens.demo.netns import call_in, ip, write_sysctls

__all__ = ["Lab", "call_in", "ip", "wait_for", "write_sysctls"]

T = TypeVar("T")
_serial = itertools.count()


def wait_for(condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """The first truthy value of `condition()`; AssertionError naming `what` after `seconds`."""
    begin = time.monotonic()
    deadline = begin + seconds
    while not (value := condition()):
        assert begin < deadline, f"not within {seconds} s: {what}"  # after a look that began when time was up
        time.sleep(pause(time.monotonic() - begin))
        begin = time.monotonic()
    return value


class Lab:
    """Namespaces and sockets of one test; leaving the context takes all away."""

    def __init__(self) -> None:
        self.prefix = f"zt{os.getpid()}x{next(_serial)}"
        self._namespaces: list[str] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._sockets:
            opened.close()
        for name in reversed(self._namespaces):
            netns.delete_namespace(name)

    def namespace(self, name: str, *, router: bool = False) -> str:
        """A new namespace with `lo` up; its full name. `router`: with IPv4 and IPv6 forwarding."""
        full = f"{self.prefix}-{name}"
        self._namespaces.append(full)
        netns.add_namespace(full, router=router)
        return full

    def link(self, netns_a: str, name_a: str, netns_b: str, name_b: str, *, mtu: int = 1500) -> None:
        """A veth pair, both ends up."""
        netns.batch(
            [f"link add {name_a} netns {netns_a} mtu {mtu} type veth peer name {name_b} netns {netns_b} mtu {mtu}"]
        )
        for where, name in ((netns_a, name_a), (netns_b, name_b)):
            netns.batch([f"link set {name} up"], netns=where)

    def address(self, where: str, interface: str, *addresses: str, gateways: tuple[str, ...] = ()) -> None:
        """Give `interface` `addresses` (with prefix length), usable at once; default routes via `gateways`."""
        netns.batch(
            [f"address add {address} dev {interface}" for address in addresses]
            + [f"route add default via {gateway} dev {interface}" for gateway in gateways],
            netns=where,
        )

    def open(self, where: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket inside `where`, closed with the lab; its time-out is 10 s."""
        opened = call_in(where, lambda: socket.socket(family, kind, protocol))
        opened.settimeout(10)
        self._sockets.append(opened)
        return opened

    def udp(self, where: str, address: str = "", port: int = 0, *, family: int = socket.AF_INET) -> socket.socket:
        """A UDP socket in `where`, bound when `address` or `port` is given (IPv6 when `address` holds a colon)."""
        opened = self.open(where, socket.AF_INET6 if ":" in address else family, socket.SOCK_DGRAM)
        if address or port:
            opened.bind((address, port))
        return opened

    def listen(self, where: str, address: str, port: int) -> socket.socket:
        """A TCP socket listening in `where`; who connects is up to the kernel's backlog until accepted."""
        opened = self.open(where, socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        opened.listen(128)
        return opened

    def connect(self, where: str, address: str, port: int) -> socket.socket:
        """A TCP connection from `where`. Raises OSError."""
        opened = self.open(where, socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        opened.connect((address, port))
        return opened
