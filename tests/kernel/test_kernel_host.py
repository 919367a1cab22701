"""The node's own addresses and connections, of a namespace that the caller is not in."""

import select
import socket
from collections.abc import Iterator

import pytest

from collector.errors import KernelError
from collector.kernel.host import Namespace
from collector.kernel.interface import Connection
from tests.support.netns import Lab, ip


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        near, far = lab.namespace("near"), lab.namespace("far")
        lab.link(near, "veth0", far, "eth0")
        lab.address(near, "veth0", "10.77.0.1/24", "fd77::1/64")
        lab.address(far, "eth0", "10.77.0.2/24", "fd77::2/64")
        yield lab


def own(host: Namespace) -> set[str]:
    """Without what every interface has."""
    return {a for a in host.addresses() if not a.startswith("fe80:")}


def moved(host: Namespace, seconds: float) -> bool:
    return bool(select.select([host], [], [], seconds)[0])


def test_addresses_and_their_changes(lab: Lab) -> None:
    near = f"{lab.prefix}-near"
    host = Namespace(near)
    assert own(host) == {"127.0.0.1", "::1", "10.77.0.1", "fd77::1"}
    for family, added in (("-4", "10.77.9.1"), ("-6", "fd77::99")):
        while moved(host, 0):
            host.addresses()
        ip(family, "address", "add", f"{added}/32" if family == "-4" else f"{added}/128", "dev", "veth0", netns=near)
        assert moved(host, 10)
        assert added in own(host)
    ip("address", "del", "10.77.9.1/32", "dev", "veth0", netns=near)
    assert moved(host, 10)
    assert own(host) == {"127.0.0.1", "::1", "10.77.0.1", "fd77::1", "fd77::99"}
    host.close()
    host.close()


def test_connections(lab: Lab) -> None:
    near, far = f"{lab.prefix}-near", f"{lab.prefix}-far"
    host = Namespace(near)
    assert host.connections() == []
    both = lab.open(near, socket.AF_INET6, socket.SOCK_STREAM)
    both.bind(("::", 22))
    both.listen()
    expected = set()
    for address, peer in (("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2")):
        client = lab.connect(far, address, 22)
        accepted = both.accept()[0]
        lab._sockets.append(accepted)
        expected.add(Connection(address, 22, peer, client.getsockname()[1]))
    lab.connect(near, "127.0.0.1", 22)
    assert set(host.connections()) == expected
    assert {(c.remote, c.remote_port) for c in Namespace(far).connections()} == {("10.77.0.1", 22), ("fd77::1", 22)}
    host.close()


def test_a_namespace_that_is_gone() -> None:
    with pytest.raises(KernelError, match="no network namespace"):
        Namespace("ztlens-was-never-here").addresses()
