"""Fixtures of the end-to-end tests: real packets in namespaces that the test makes and takes away."""

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.support.netns import Lab
from ztlens.demo.network import DemoNetwork

_serial = itertools.count()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Namespaces, links and sockets of this test."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def demo_network() -> Iterator[DemoNetwork]:
    """The demo's router and machines, not booted."""
    network = DemoNetwork(f"ztt{os.getpid()}x{next(_serial)}")
    network.create()
    try:
        yield network
    finally:
        network.delete()
