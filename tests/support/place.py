"""A veth pair with its quiet end to be watched, and what the kernel says is attached there."""

import subprocess
from dataclasses import replace
from pathlib import Path

from collector.kernel import DatapathSettings, Interface, libbpf, open_datapath
from collector.kernel.attach import TC_HANDLE, TC_PRIORITY
from collector.kernel.interface import Datapath
from collector.kernel.netns import inside, links
from tests.support.kernel import KNOBS, quiet_veth, udp_frame
from tests.support.netns import Lab


class Place:
    """A veth pair with its quiet end to be watched, pins of its own, and what a test opens."""

    def __init__(self, lab: Lab, pins: Path, mtu: int = 1500) -> None:
        self.lab, self.pins = lab, pins
        self.netns, self.wire = quiet_veth(lab, mtu=mtu)
        self.settings = DatapathSettings(pins, (Interface("veth0"),), netns=self.netns, knobs=KNOBS)
        self.sent = 0
        self._open: list[Datapath] = []

    def open(self, **changes: object) -> Datapath:
        datapath = open_datapath(replace(self.settings, **changes))  # type: ignore[arg-type]
        self._open.append(datapath)
        return datapath

    def packets(self, n: int, first: int = 0) -> None:
        for i in range(1 + first, 1 + first + n):
            self.wire.send(udp_frame("10.0.0.1", i, "10.0.0.2", 53, bytes(18)))

    def xdp(self, name: str = "veth0") -> libbpf.XdpQuery:
        return inside(self.netns, lambda: libbpf.xdp_query(links()[name].ifindex))

    def filter(self, name: str = "veth0") -> int:
        """Id of our filter's program, 0: none."""
        return inside(self.netns, lambda: libbpf.tc_query(links()[name].ifindex, TC_HANDLE, TC_PRIORITY))

    def tcx(self, name: str = "veth0") -> list[int]:
        return inside(self.netns, lambda: libbpf.tcx_query(links()[name].ifindex))

    def tc(self, name: str = "veth0") -> int:
        """Id of the egress program, whatever holds it; 0: none."""
        return next(iter(self.tcx(name)), 0) or self.filter(name)

    def qdiscs(self, name: str = "veth0") -> str:
        done = subprocess.run(
            ["tc", "-n", self.netns, "qdisc", "show", "dev", name], capture_output=True, text=True, check=True
        )
        return done.stdout

    def close(self) -> None:
        for datapath in self._open:
            datapath.close()
