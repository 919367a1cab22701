"""Test-runs of programs that take turns: ns a packet, the least of many short runs.

One of 20,000 packets takes 2 ms, less than a scheduler tick, so among a hundred some are undisturbed even on a busy
machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from collector.kernel import libbpf
from collector.kernel.private import PrivateDatapath


@dataclass
class Subject:
    """One program on one frame; fd -1: what `TestRuns.rewriter` says. `before`: done before each short run, off the
    clock. `ours`: its packets are the datapath's."""

    key: str
    fd: int
    frame: bytes
    action: int
    before: Sequence[Callable[[], object]] = ()
    ours: bool = False


class TestRuns:
    """Of a datapath and others. `rewriter`: the program that makes each run another tuple, then calls its target."""

    def __init__(self, datapath: PrivateDatapath, rewriter: int) -> None:
        self.datapath, self.rewriter = datapath, rewriter
        self.sent = 0

    def least(self, subjects: Sequence[Subject], rounds: int, repeat: int) -> dict[str, float]:
        """Subject → the least of `rounds` runs of `repeat` packets."""
        least = {subject.key: float("inf") for subject in subjects}
        for _ in range(rounds):
            for subject in subjects:
                for step in subject.before:
                    step()
                fd = self.rewriter if subject.fd < 0 else subject.fd
                action, ns = libbpf.test_run(fd, np.frombuffer(subject.frame, np.uint8), repeat=repeat)
                assert action == subject.action, f"{subject.key}: returned {action}, not {subject.action}"
                least[subject.key] = min(least[subject.key], ns)
                self.sent += repeat if subject.ours else 0
        return least

    def drain(self) -> None:
        """Read and release: the datapath never meets a full ring."""
        datapath = self.datapath
        while (events := datapath.read(65_536)) is not None:
            datapath.release(events.start + len(events.rows) * datapath.stride)

    def empty(self) -> None:
        """No flows, no events. Straight out of the map: nobody else counts into it."""
        handle = self.datapath.handle
        keys = handle.flows.read()[0]
        if len(keys):
            handle.flows.remove(keys)
        handle.totals.values["flows"][0] = handle.totals.values["tentative"][0] = 0
        self.drain()


def less(values: dict[str, float], base: str) -> dict[str, float]:
    """Every other value minus that of `base`."""
    return {key: value - values[base] for key, value in values.items() if key != base}
