"""Fixtures of the end-to-end tests: real packets in namespaces that the test makes and takes away."""

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.kernel import quiet_veth
from tests.support.netns import Lab
from ztlens.demo.network import DemoNetwork

_serial = itertools.count()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Namespaces, links and sockets of this test."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def wired(lab: Lab) -> tuple[str, socket.socket]:
    """A quiet namespace with veth0, and a raw socket at its other end."""
    return quiet_veth(lab)


@pytest.fixture
def one(lab: Lab, wired: tuple[str, socket.socket], tmp_path: Path) -> Iterator[Installation]:
    """An installation in that namespace. No flow ends by idling, however long the test takes."""
    with Installation(lab, tmp_path / "one", netns=wired[0], timeouts={"udp": 3600}) as one:
        yield one


@pytest.fixture
def demo_network() -> Iterator[DemoNetwork]:
    """The demo's router and machines, not booted."""
    network = DemoNetwork(f"ztt{os.getpid()}x{next(_serial)}")
    network.create()
    try:
        yield network
    finally:
        network.delete()
