"""Live frames through a veth pair: packets a second with every one judged and counted, beside XDP_DROP alone.

The frames come from a test-run with live frames (tests/support/trafficgen.py), sent and received by the same CPU, so
a rate is one core's, with the source's work in it. The policy denies and the mode is enforce: both programs drop, and
the network stack has no part in it. What was sent is compared with what the datapath counted, to the packet.
"""

import os
from contextlib import ExitStack
from time import perf_counter
from typing import Self

from collector.kernel import libbpf, open_datapath
from collector.kernel.interface import DatapathSettings, Interface
from collector.kernel.netns import inside, links
from schemas.codes import Mode
from tests.bench.figures import Figure, Options
from tests.bench.peers import Peers
from tests.bench.policies import policy
from tests.support.kernel import instance
from tests.support.netns import Lab, write_sysctls
from tests.support.trafficgen import TrafficGen

PPS = "packets/s"


class Bench:
    """See the module."""

    NAME = "wire"
    WHAT = "packets/s of one core with live frames over veth, source included"
    FIGURES = (
        Figure("source alone", "the source drops its own frames", PPS),
        Figure("XDP_DROP", "a program that drops", PPS),
        Figure("XDP_DROP, 60k flows", "the same, frames of 60,000 flows", PPS),
        Figure("count, 1k flows", "five-tuple counted by a minimal program", PPS, peer="XDP_DROP"),
        Figure("count, 60k flows", "the same over 60,000 flows", PPS, peer="XDP_DROP, 60k flows"),
        Figure("ztlens, 1k flows", "judged, counted, told", PPS, peer="XDP_DROP", ratio_at_least=0.45),
        Figure("ztlens, 60k flows", "the same over 60,000 flows", PPS, peer="XDP_DROP, 60k flows"),
    )

    def __init__(self, options: Options) -> None:
        self.notes: list[str] = []
        self._frames = 500_000 if options.quick else 3_000_000
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        stack = self._stack
        lab = stack.enter_context(Lab())
        self._netns, there = lab.namespace("in"), lab.namespace("out")
        for netns in (self._netns, there):  # nobody else talks on the pair
            write_sysctls(netns, {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"})
        lab.link(self._netns, "veth0", there, "veth1")
        self._ifindex = inside(self._netns, links)["veth0"].ifindex
        self._peers = Peers()
        stack.callback(self._peers.close)
        self._source = TrafficGen(there, "veth1")
        stack.callback(self._source.close)
        self._policy = policy(1000)
        affinity = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, affinity)
        os.sched_setaffinity(0, {max(affinity)})
        self.notes.append(
            f"best of 3 × {self._frames:,} frames; ztlens: policy of 1,000 rules; every frame counted in every run"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        out = {
            "XDP_DROP": self._peer("drop", 1_000), "XDP_DROP, 60k flows": self._peer("drop", 60_000),
            "count, 1k flows": self._peer("count", 1_000), "count, 60k flows": self._peer("count", 60_000),
            "ztlens, 1k flows": self._ztlens(1_000), "ztlens, 60k flows": self._ztlens(60_000),
        }  # fmt: skip
        out["source alone"] = self._rate(1_000, drop=True)
        return out

    def _rate(self, flows: int, *, drop: bool = False) -> float:
        """The best of three, after one round over the flows: what comes first is not the steady state."""
        self._source.send(max(16_384, flows), flows=flows, drop=drop)
        least = float("inf")
        for _ in range(3):
            begun = perf_counter()
            self._source.send(self._frames, flows=flows, drop=drop)
            least = min(least, perf_counter() - begun)
        return self._frames / least

    def _peer(self, name: str, flows: int) -> float:
        self._peers.forget()
        fd = self._peers.fds[name]
        inside(self._netns, lambda: libbpf.xdp_attach(self._ifindex, fd, libbpf.XDP_FLAGS_DRV_MODE))
        try:
            return self._rate(flows)
        finally:
            inside(self._netns, lambda: libbpf.xdp_attach(self._ifindex, -1, libbpf.XDP_FLAGS_DRV_MODE, old_fd=fd))

    def _ztlens(self, flows: int) -> float:
        before = self._source.sent
        with instance() as pins:
            settings = DatapathSettings(pins=pins, interfaces=(Interface("veth0", "ingress"),), netns=self._netns)
            datapath = open_datapath(settings)
            try:
                assert datapath.interfaces == {"veth0": "native"}, datapath.interfaces
                datapath.apply(self._policy, 1)
                datapath.set_mode(Mode.ENFORCE)
                rate = self._rate(flows)
                counters, sums = datapath.counters(), datapath.sweep().sums
                rules = datapath.rule_counters(1)
            finally:
                datapath.detach()
                datapath.unpin()
                datapath.close()
        sent = self._source.sent - before
        judged = int(rules["packets_dropped"].sum())
        assert sent == counters["parsed"] == judged == sums.packets and sums.live == flows, (
            f"sent {sent}, parsed {counters['parsed']}, judged {judged}, in {sums.live} flows {sums.packets}"
        )
        return rate
