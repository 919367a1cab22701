"""The real datapath keeps the promises that the fake keeps, with frames that cross a veth pair."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from collector.kernel import DatapathSettings, Interface, open_datapath
from collector.kernel.interface import Datapath
from schemas.verdict import STRIDE
from tests.support.datapath_suite import DatapathSuite
from tests.support.kernel import KNOBS, instance, quiet_veth, udp_frame
from tests.support.netns import Lab, ip, wait_for


class VethWorld:
    """Watches `veth0` in a namespace; frames come in from its peer in another one."""

    ring_records = (KNOBS["RING_BYTES"] - 1) // STRIDE

    def __init__(self, lab: Lab, settings: DatapathSettings, wire: socket.socket) -> None:
        self._settings, self._wire, self._sent = settings, wire, 0
        self.datapath: Datapath = open_datapath(settings)

    def packets(self, n: int, first: int = 0) -> None:
        for i in range(1 + first, 1 + first + n):
            self._wire.send(udp_frame("10.0.0.1", i, "10.0.0.2", 53, bytes(18)))
        self._sent += n
        wait_for(lambda: self.datapath.counters()["parsed"] == self._sent, f"{self._sent} frames")

    def reopen(self, *interfaces: Interface) -> Datapath:
        self.datapath.close()
        if interfaces:
            self._settings = replace(self._settings, interfaces=interfaces)
        self.datapath = open_datapath(self._settings)
        return self.datapath

    def add(self, name: str) -> None:
        outer = self._settings.netns.removesuffix("-in") + "-out"
        ip("link", "add", name, "netns", self._settings.netns, "type", "veth", "peer", f"p-{name}", "netns", outer)

    def remove(self, name: str) -> None:
        ip("link", "delete", name, netns=self._settings.netns)

    def rename(self, name: str, to: str) -> None:
        ip("link", "set", name, "name", to, netns=self._settings.netns)


class TestRealDatapath(DatapathSuite):
    @pytest.fixture
    def world(self, loader: str) -> Iterator[VethWorld]:
        with instance() as pins, Lab() as lab:
            netns, wire = quiet_veth(lab)
            settings = DatapathSettings(pins, (Interface("veth0"),), netns=netns, loader=loader, knobs=KNOBS)
            world = VethWorld(lab, settings, wire)
            try:
                yield world
            finally:
                world.datapath.close()
