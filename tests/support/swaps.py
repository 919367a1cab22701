"""Two policies swapped under live frames on two CPUs; no packet may be judged by a mixture of them.

Both allow the traffic, each by a rule of another number, and deny what the other's tables would make of it. The
counters see every packet, not only those with an event.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from collector.kernel import DatapathSettings, Interface, open_datapath
from collector.kernel.datapath import PinnedDatapath
from policy.compile import Compiled, compile_policy
from policy.parse import parse
from schemas.codes import Decision, Mode, Reason, RuleId
from schemas.verdict import DTYPE
from tests.support.datapath_suite import balanced, drain
from tests.support.kernel import instance, quiet_veth
from tests.support.netns import Lab
from tests.support.trafficgen import TrafficGen

FLOWS, CHUNK = 200, 262_144
ODD = """version: 1
rules:
  - {name: a-allow, from: 10.0.0.0/16, to: 10.1.0.2, ports: [53/udp], action: allow}
"""
EVEN = """version: 1
identities:
  nobody: {addresses: [192.0.2.0/24, 198.51.100.0/24]}
  lab: {addresses: [10.0.0.0/24]}
rules:
  - {name: no, from: nobody, to: any, action: deny}
  - {name: not-there, from: lab, to: nobody, action: deny}
  - {name: z-allow, from: lab, to: any, ports: [1-100/udp], action: allow}
"""


@dataclass(frozen=True)
class Swapped:
    """What was sent while the policies changed places, how long that took, and how many revisions events name."""

    frames: int
    seconds: float
    revisions: int

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


@contextlib.contextmanager
def watched(loader: str) -> Iterator[tuple[PinnedDatapath, list[TrafficGen]]]:
    """A datapath on the ends of two veth pairs, and what sends from the others: two CPUs overrun one veth's queue."""
    with contextlib.ExitStack() as stack:
        pins, lab = stack.enter_context(instance()), stack.enter_context(Lab())
        netns, _ = quiet_veth(lab)
        outer = f"{lab.prefix}-out"
        lab.link(netns, "veth2", outer, "veth3")
        interfaces = (Interface("veth0", "ingress"), Interface("veth2", "ingress"))
        settings = DatapathSettings(pins, interfaces, netns=netns, knobs={"FLOWS_MAX": 4096}, loader=loader)
        datapath = stack.enter_context(contextlib.closing(open_datapath(settings)))
        yield datapath, [stack.enter_context(contextlib.closing(TrafficGen(outer, end))) for end in ("veth1", "veth3")]


def number(compiled: Compiled, name: str) -> int:
    """The number that verdicts give to a rule."""
    return RuleId.FIRST + [rule.name for rule in compiled.order].index(name)


def swap(datapath: PinnedDatapath, sources: list[TrafficGen], swaps: int) -> Swapped:
    """Swap so often, detach, and assert that every frame was judged by one policy, whole."""
    odd, even = (compile_policy(parse(text)) for text in (ODD, EVEN))
    rule = {1: number(odd, "a-allow"), 0: number(even, "z-allow")}
    assert rule[0] != rule[1]
    datapath.apply(odd, 1)
    datapath.set_mode(Mode.ENFORCE)
    stop = threading.Event()

    def send(cpu: int, source: TrafficGen) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread
        while not stop.is_set():
            source.send(CHUNK, flows=FLOWS)

    seen: list[np.ndarray] = []
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        cpus = sorted(os.sched_getaffinity(0))
        sending = [threads.submit(send, cpus[i % len(cpus)], source) for i, source in enumerate(sources)]
        try:
            for revision in range(2, swaps + 2):
                datapath.apply(odd if revision & 1 else even, revision)
                seen.append(check_events(drain(datapath), rule))
        finally:
            stop.set()
        for sender in sending:
            sender.result()
    datapath.detach()
    seconds = time.monotonic() - begun
    seen.append(check_events(drain(datapath), rule))
    sent = sum(source.sent for source in sources)
    assert datapath.counters()["parsed"] == sent
    judged = 0
    for slot in (0, 1):
        table = datapath.rule_counters(slot)
        assert not table["packets_dropped"].any(), "a packet was dropped that both policies allow"
        assert np.flatnonzero(table["packets_passed"]).tolist() == [rule[slot]]
        judged += int(table["packets_passed"].sum())
    assert judged == sent
    assert balanced(datapath)
    return Swapped(sent, seconds, len(np.unique(np.concatenate(seen))))


def check_events(rows: np.ndarray, rule: dict[int, int]) -> np.ndarray:
    """Every event names the rule of its revision; the revisions seen."""
    assert rows.dtype == DTYPE
    if len(rows):
        wanted = np.where(rows["revision"] & 1, rule[1], rule[0])
        assert (rows["rule"] == wanted).all()
        assert set(rows["decision"]) == {Decision.ALLOW} and set(rows["reason"]) == {Reason.RULE}
    return np.unique(rows["revision"])
