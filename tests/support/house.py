"""A host with every kind of link ztlens may watch, and the neighbours that talk over them.

                 ┌───────────── host (watched) ─────────────┐
peer  eth0 ──────┤ veth0        10.77.0.1/24  fd77::1/64    │
left  eth0 ──────┤ veth1        10.77.1.1/24                │
right eth0 ──────┤ veth2        10.77.2.1/24  (routed)      │
bleft eth0 ──────┤ veth3 ┐ br0  10.77.3.1/24                │
bright eth0 ─────┤ veth4 ┘            (bridged)             │
quiet eth0 ──────┤ veth6        10.77.6.1/24  (nothing but what a test sends)
middle eth0 ─────┤ veth7:egress 10.77.7.1/24                │
 └ eth1 ── eth0 far 10.77.8.2/24                            │
tagged eth0 ─────┤ veth8 ┐ br1  (not watched)               │
untold eth0 ─────┤ veth9:egress (bridged, no address)       │
                 └──────────────────────────────────────────┘
"""

import contextlib
import json
import socket
import threading

from tests.support import programs
from tests.support.netns import Lab, ip, wait_for, write_sysctls

INTERFACES = ("veth0", "veth1", "veth2", "veth3", "veth4", "veth6", "veth7:egress", "veth9:egress")
WINDOW = 1 << 16
"""Receive buffers of TCP: what is under way fits a veth's queue of 256 frames, so that none is ever dropped."""


class House:
    """The namespaces by name, and traffic of which every datagram has arrived when the call returns."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.namespace("host", router=True)
        self.middle = lab.namespace("middle", router=True)
        self.peer, self.left, self.right = map(lab.namespace, ("peer", "left", "right"))
        self.bleft, self.bright, self.quiet = map(lab.namespace, ("bleft", "bright", "quiet"))
        self.far, self.tagged, self.untold = map(lab.namespace, ("far", "tagged", "untold"))
        self._link("veth0", self.peer, 0, "fd77::")
        self._link("veth1", self.left, 1)
        self._link("veth2", self.right, 2)
        for name, neighbour in (("veth3", self.bleft), ("veth4", self.bright)):
            lab.link(self.host, name, neighbour, "eth0")
        ip("link", "add", "br0", "type", "bridge", netns=self.host)
        for name in ("veth3", "veth4"):
            ip("link", "set", name, "master", "br0", netns=self.host)
        ip("link", "set", "br0", "up", netns=self.host)
        lab.address(self.host, "br0", "10.77.3.1/24")
        lab.address(self.bleft, "eth0", "10.77.3.2/24", gateways=("10.77.3.1",))
        lab.address(self.bright, "eth0", "10.77.3.3/24", gateways=("10.77.3.1",))
        self._link("veth6", self.quiet, 6)
        self._hush((self.host, "veth6", "10.77.6.1"), (self.quiet, "eth0", "10.77.6.2"))
        programs.attach_xdp(self.quiet, "eth0")  # whose peer then sends frames, nothing merged
        self._link("veth7", self.middle, 7)
        ip("route", "add", "10.77.8.0/24", "via", "10.77.7.2", netns=self.host)
        lab.link(self.middle, "eth1", self.far, "eth0")
        lab.address(self.middle, "eth1", "10.77.8.1/24")
        lab.address(self.far, "eth0", "10.77.8.2/24", gateways=("10.77.8.1",))
        self._hush((self.middle, "eth1", "10.77.8.1"), (self.far, "eth0", "10.77.8.2"))
        programs.attach_xdp(self.far, "eth0")
        for name, neighbour in (("veth8", self.tagged), ("veth9", self.untold)):
            lab.link(self.host, name, neighbour, "eth0")
        ip("link", "add", "br1", "type", "bridge", netns=self.host)
        for name in ("veth8", "veth9"):
            ip("link", "set", name, "master", "br1", netns=self.host)
        ip("link", "set", "br1", "up", netns=self.host)

    def _link(self, name: str, neighbour: str, number: int, family6: str = "") -> None:
        self.lab.link(self.host, name, neighbour, "eth0")
        for netns, interface, last in ((self.host, name, 1), (neighbour, "eth0", 2)):
            addresses = [f"10.77.{number}.{last}/24"] + ([f"{family6}{last}/64"] if family6 else [])
            gateways = (f"10.77.{number}.1",) if netns is not self.host else ()
            self.lab.address(netns, interface, *addresses, gateways=gateways)

    def _hush(self, *ends: tuple[str, str, str]) -> None:
        """On the link between two (namespace, interface, address) nobody asks for neighbours or speaks IPv6."""
        for (netns, name, _), (other, far, address) in (ends, ends[::-1]):
            write_sysctls(netns, {f"ipv6/conf/{name}/disable_ipv6": "1"})
            hardware = json.loads(ip("-j", "link", "show", far, netns=other))[0]["address"]
            ip("neigh", "replace", address, "lladdr", hardware, "dev", name, "nud", "permanent", netns=netns)

    # ── traffic ─────────────────────────────────────────────────────────────────────────────────────────────────

    def tell(self, source: str, destination: str, address: str, *, port: int, sizes: list[int]) -> None:
        """Datagrams with payloads of `sizes` bytes, each received before the next goes out."""
        receiver = self.lab.udp(destination, address, port)
        sender = self._sender(source, address)
        for size in sizes:
            sender.sendto(bytes(size), (address, port))
            assert len(receiver.recv(65536)) == size
        receiver.close()
        sender.close()

    def talk(self, source: str, destination: str, address: str, *, port: int, count: int, size: int = 58) -> None:
        """`count` datagrams, each answered by one half as long."""
        receiver, sender = self.lab.udp(destination, address, port), self._sender(source, address)
        for _ in range(count):
            sender.sendto(bytes(size), (address, port))
            _, back = receiver.recvfrom(65536)
            receiver.sendto(bytes(size // 2), back)
            assert len(sender.recv(65536)) == size // 2
        receiver.close()
        sender.close()

    def _sender(self, source: str, address: str) -> socket.socket:
        wildcard = "::" if ":" in address else "0.0.0.0"
        return self.lab.udp(source, wildcard)

    def inject(self, source: str, interface: str, frames: list[bytes], arrives: str) -> None:
        """Whole frames out of eth0 of `source`; returns once `interface` of the host has counted them on their way
        `arrives`: `rx` or `tx`."""
        wire = self.lab.open(source, socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind(("eth0", 0))
        counter = f"{arrives}_packets"
        before = programs.statistics(self.host, interface)[counter]
        for frame in frames:
            wire.send(frame)
        wait_for(
            lambda: programs.statistics(self.host, interface)[counter] >= before + len(frames), "the frames to arrive"
        )
        wire.close()

    def stream(self, source: str, destination: str, address: str, *, port: int, there: int, back: int) -> None:
        """One TCP connection: `there` bytes, then `back` bytes the other way, closed by both."""
        server = self.lab.listen(destination, address, port)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)

        def serve() -> None:
            accepted, _ = server.accept()
            with contextlib.closing(accepted):
                accepted.settimeout(60)
                _drain(accepted, there)
                accepted.sendall(bytes(back))

        thread = threading.Thread(target=serve)
        thread.start()
        client = self.lab.open(source, socket.AF_INET, socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        client.settimeout(60)
        client.connect((address, port))
        client.sendall(bytes(there))
        _drain(client, back)
        assert client.recv(1) == b""
        client.close()
        thread.join()
        server.close()


def _drain(connection: socket.socket, count: int) -> None:
    while count:
        received = len(connection.recv(1 << 16))
        assert received, f"closed with {count} bytes to come"
        count -= received
