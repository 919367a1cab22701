"""docs/guide.md, step by step, with real traffic between a host and its neighbours."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docs import DOCS, marked
from tests.support.documented import Host, alike
from tests.support.netns import Lab, call_in, wait_for, write_sysctls

DOCUMENT = DOCS / "guide.md"
STEPS = marked(DOCUMENT, "step")
OUT = marked(DOCUMENT, "out")
POLICY = marked(DOCUMENT, "policy")
WRITTEN = marked(DOCUMENT, "written")
HOST, GATEWAY, STRANGER = "192.0.2.10", "192.0.2.2", "192.0.2.99"
OFFICE = ("192.0.2.33", "192.0.2.34", "192.0.2.40")


class Network:
    """Servers on both sides, and whoever uses them."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.lab, self.host = lab, host
        for namespace in (host.namespace, host.neighbour):  # where nobody but this test speaks
            write_sysctls(namespace, {"ipv6/conf/all/disable_ipv6": "1"})
        lab.address(host.neighbour, "eth0", *(f"{address}/24" for address in (*OFFICE, STRANGER)))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._serve, args=(port,)) for port in (22, 443)]
        self._threads.append(threading.Thread(target=self._answer))
        for thread in self._threads:
            thread.start()

    def _serve(self, port: int) -> None:
        """What is sent, sent back, a connection at a time."""
        server = self.lab.listen(self.host.namespace, HOST, port)
        server.settimeout(0.1)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                accepted, _ = server.accept()
                with accepted:
                    accepted.settimeout(10)
                    accepted.sendall(accepted.recv(1000))

    def _answer(self) -> None:
        server = self.lab.udp(self.host.neighbour, GATEWAY, 53)
        server.settimeout(0.1)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                question, who = server.recvfrom(1000)
                server.sendto(question, who)

    def visits(self, source: str, port: int, seconds: float = 10) -> bool:
        """Whether a neighbour gets an answer of the host."""
        opened = call_in(self.host.neighbour, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        with contextlib.closing(opened):
            opened.settimeout(seconds)
            opened.bind((source, 0))
            try:
                opened.connect((HOST, port))
            except TimeoutError:
                return False
            opened.sendall(b"hello")
            return opened.recv(1000) == b"hello"

    def asks(self) -> bool:
        """Whether the host gets an answer to a question of DNS."""
        opened = self.lab.udp(self.host.namespace)
        opened.sendto(b"question", (GATEWAY, 53))
        return opened.recv(1000) == b"question"

    def day(self) -> None:
        """Everything that should work, once."""
        for address in OFFICE:
            assert self.visits(address, 443)
        assert self.visits(GATEWAY, 22)
        assert self.asks()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def network(lab: Lab, tmp_path: Path) -> Iterator[Network]:
    host = Host(lab, tmp_path, STEPS)
    network = Network(lab, host)
    try:
        yield network
    finally:
        network.end()
        host.end()


def same(text: str, host: Host | None = None) -> str:
    """`alike`, and without how many packets and bytes a connection took, and seconds left."""
    text = re.sub(r"[\d,]+ packets?", "N packets", alike(text, host))
    text = re.sub(r"[\d.,]+ (?:[KM]i)?B\b", "N B", text)
    text = re.sub(rf"{re.escape(STRANGER)}:\d+", f"{STRANGER}:PORT", text)
    return re.sub(r" in \d+s;", " in Ns;", text)


def test_guide(network: Network) -> None:
    host = network.host
    (host.directory / "names.yaml").write_text(POLICY["names.yaml"].text)
    host.start("up")
    wait_for(lambda: "Ctrl-C ends it" in host.said() or (host.up and host.up.poll() is not None), "`up`")

    def shown(step: str) -> None:
        assert wait_for(lambda: same(host.run(step), host) == same(OUT[step].text), step)

    network.day()
    shown("flows")
    shown("suggest")
    assert same((host.directory / "new.yaml").read_text()) == same(WRITTEN["new.yaml"].text)
    for step in ("diff", "audit", "apply"):
        assert same(host.run(step), host) == same(OUT[step].text)
    network.day()
    assert network.visits(STRANGER, 443)
    shown("denied")
    assert same(host.run("try"), host) == same(OUT["try"].text)
    shown("back")
    host.run("enforce")
    network.day()
    assert same(host.run("confirm"), host) == same(OUT["confirm"].text)
    assert not network.visits(STRANGER, 443, seconds=1)
    shown("dropped")
    host.run("down")
    assert host.up is not None
    assert host.up.wait(timeout=60) == 0
    assert not host.pins.exists()


def test_every_step_is_taken() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for name in (*STEPS, *OUT):
        assert f'"{name}"' in source
