"""Live frames through a veth pair: packets a second with every one judged and counted, beside XDP_DROP alone.

The frames come from a test-run with live frames (tests/support/trafficgen.py), sent and received by the same CPU, so
a rate is one core's, with the source's work in it. The policy denies and the mode is enforce: all programs drop, and
the network stack has no part in it. ztlens has a veth pair of its own and the peers another, so that all take turns:
a figure is the best of four. What was sent is compared with what the datapath counted, to the packet.
"""

import os
from contextlib import ExitStack
from time import perf_counter
from typing import Self

from collector.kernel import libbpf, open_datapath
from collector.kernel.interface import Datapath, DatapathSettings, Interface
from collector.kernel.netns import inside, links
from schemas.codes import Mode
from tests.bench.figures import Figure, Options
from tests.bench.peers import Peers
from tests.bench.policies import policy
from tests.support.kernel import instance
from tests.support.netns import Lab, write_sysctls
from tests.support.trafficgen import TrafficGen

PPS = "packets/s"
ROUNDS = 4
FLOWS = {"1k flows": 1_000, "60k flows": 60_000}


class Bench:
    """See the module."""

    NAME = "wire"
    WHAT = "packets/s of one core with live frames over veth, source included"
    FIGURES = (
        Figure("source alone", "the source drops its own frames", PPS),
        Figure("XDP_DROP, 1k flows", "a program that drops", PPS),
        Figure("XDP_DROP, 60k flows", "the same, frames of 60,000 flows", PPS),
        Figure("count, 1k flows", "five-tuple counted by a minimal program", PPS, peer="XDP_DROP, 1k flows"),
        Figure("count, 60k flows", "the same over 60,000 flows", PPS, peer="XDP_DROP, 60k flows"),
        Figure("ztlens, 1k flows", "judged, counted, told", PPS, peer="XDP_DROP, 1k flows", ratio_at_least=0.45),
        Figure("ztlens, 60k flows", "the same over 60,000 flows", PPS, peer="XDP_DROP, 60k flows"),
    )

    def __init__(self, options: Options) -> None:
        self._loader, self._frames = options.loader, 500_000 if options.quick else 3_000_000
        self.notes = [f"best of {ROUNDS} × {self._frames:,} frames; policy of 1,000 rules; every frame counted"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        stack = self._stack
        lab = stack.enter_context(Lab())
        self._netns, there = lab.namespace("in"), lab.namespace("out")
        for netns in (self._netns, there):  # nobody else talks on the pairs
            write_sysctls(netns, {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"})
        lab.link(self._netns, "ours0", there, "ours1")
        lab.link(self._netns, "peer0", there, "peer1")
        self._peer_index = inside(self._netns, links)["peer0"].ifindex
        self._ours, self._theirs = TrafficGen(there, "ours1"), TrafficGen(there, "peer1")
        stack.callback(self._ours.close)
        stack.callback(self._theirs.close)
        self._peers = Peers()
        stack.callback(self._peers.close)
        self._datapath = self._attached(stack)
        affinity = os.sched_getaffinity(0)
        stack.callback(os.sched_setaffinity, 0, affinity)
        os.sched_setaffinity(0, {max(affinity)})
        return self

    def _attached(self, stack: ExitStack) -> Datapath:
        pins = stack.enter_context(instance())
        interfaces = (Interface("ours0", "ingress"),)
        datapath = open_datapath(DatapathSettings(pins, interfaces, netns=self._netns, loader=self._loader))
        stack.callback(datapath.close)
        stack.callback(datapath.unpin)
        stack.callback(datapath.detach)
        assert datapath.interfaces == {"ours0": "native"}, datapath.interfaces
        datapath.apply(policy(1000), 1)
        datapath.set_mode(Mode.ENFORCE)
        return datapath

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        best: dict[str, float] = {}
        for _ in range(ROUNDS):
            rates = {"source alone": self._rate(self._theirs, 1_000, drop=True)}
            for name, flows in FLOWS.items():
                rates[f"XDP_DROP, {name}"] = self._peer("drop", flows)
                rates[f"count, {name}"] = self._peer("count", flows)
                rates[f"ztlens, {name}"] = self._ztlens(flows)
            best = {name: max(rate, best.get(name, 0.0)) for name, rate in rates.items()}
        return best

    def _rate(self, source: TrafficGen, flows: int, *, drop: bool = False) -> float:
        """After one round over the flows: what comes first is not the steady state."""
        source.send(max(16_384, flows), flows=flows, drop=drop)
        self._drain()
        begun = perf_counter()
        source.send(self._frames, flows=flows, drop=drop)
        return self._frames / (perf_counter() - begun)

    def _peer(self, name: str, flows: int) -> float:
        self._peers.forget()
        fd, index = self._peers.fds[name], self._peer_index
        inside(self._netns, lambda: libbpf.xdp_attach(index, fd, libbpf.XDP_FLAGS_DRV_MODE))
        try:
            return self._rate(self._theirs, flows)
        finally:
            inside(self._netns, lambda: libbpf.xdp_attach(index, -1, libbpf.XDP_FLAGS_DRV_MODE, old_fd=fd))

    def _ztlens(self, flows: int) -> float:
        rate = self._rate(self._ours, flows)
        self._drain()
        sums, counters = self._datapath.sweep().sums, self._datapath.counters()
        sent, judged = self._ours.sent, int(self._datapath.rule_counters(1)["packets_dropped"].sum())
        in_flows = sums.packets + counters["ended_packets"]
        assert sent == counters["parsed"] == judged == in_flows, (
            f"sent {sent}, parsed {counters['parsed']}, judged {judged}, in flows {in_flows}"
        )
        return rate

    def _drain(self) -> None:
        """Off the clock: a full ring would be retried for every packet that owes an event."""
        while (events := self._datapath.read(65_536)) is not None:
            self._datapath.release(events.start + len(events.rows) * self._datapath.stride)
