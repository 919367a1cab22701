"""The collector's books: one look at every counter (`take`), the loss record made of it, and rates between two.

`take` runs in the kernel thread; nothing here waits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from collector.kernel.interface import Datapath
from schemas.codes import word
from schemas.messages import FlowSums, LossRecord

RATE_SECONDS = 10.0


@dataclass(frozen=True)
class Look:
    """Counters of a datapath at one moment; `at` is CLOCK_MONOTONIC seconds."""

    at: float
    time: int  # ns since 1970
    revision: int
    mode: str
    produced: int
    consumed: int
    counters: dict[str, int]
    judged_packets: int
    judged_bytes: int


class Accounts:
    """Looks at one datapath, again and again."""

    def __init__(
        self, datapath: Datapath, node: str, rules: Callable[[Sequence[np.ndarray]], None] = lambda _: None
    ) -> None:
        """`rules` is told the rule counters of both slots whenever they are read."""
        self._datapath, self._node, self._rules = datapath, node, rules
        self._looks: list[Look] = []
        self._judged = (0, 0)
        self._quiet = 0  # looks in a row without a new packet

    def take(self, *, exact: bool = False) -> Look:
        """Read everything. The rule counters, the dearest, are not read again after two looks without a packet."""
        datapath = self._datapath
        counters = datapath.counters()
        last = self._looks[-1] if self._looks else None
        # a packet is `parsed` before its rule counts it: one more look after the last change has them all
        self._quiet = self._quiet + 1 if last is not None and last.counters == counters else 0
        if exact or self._quiet < 2:
            tables = [datapath.rule_counters(slot) for slot in (0, 1)]
            self._judged = _judged(tables)
            self._rules(tables)
        look = Look(
            time.monotonic(), time.time_ns(), datapath.revision, word(datapath.mode), datapath.produced,
            datapath.consumed, counters, *self._judged,
        )  # fmt: skip
        self._looks.append(look)
        while len(self._looks) > 2 and look.at - self._looks[1].at >= RATE_SECONDS:
            self._looks.pop(0)
        return look

    @property
    def last(self) -> Look:
        return self._looks[-1]

    def rates(self) -> dict[str, float]:
        """Per second over the last RATE_SECONDS: packets, bytes judged, events, ring_bytes."""
        first, last = self._looks[0], self._looks[-1]
        seconds = max(last.at - first.at, 1e-9)
        if first is last:
            return {"packets": 0.0, "bytes": 0.0, "events": 0.0, "ring_bytes": 0.0}
        filled = last.produced - first.produced
        return {
            "packets": (last.counters["parsed"] - first.counters["parsed"]) / seconds,
            "bytes": (last.judged_bytes - first.judged_bytes) / seconds,
            "events": filled / self._datapath.stride / seconds,
            "ring_bytes": filled / seconds,
        }

    def outage_tolerance(self) -> float | None:
        """Seconds until the ring is full at the present rate if NATS went away now; None: nothing comes in."""
        rate = self.rates()["ring_bytes"]
        free = self._datapath.ring_bytes - (self.last.produced - self.last.consumed)
        return free / rate if rate > 0 else None

    def record(
        self, look: Look, *, collector: dict[str, int], flows: FlowSums | None = None, final: bool = False
    ) -> LossRecord:
        """`look` as it is published."""
        return LossRecord(
            v=1, node=self._node, ring=self._datapath.ring_id, time=look.time, revision=look.revision, mode=look.mode,
            stride=self._datapath.stride, produced=look.produced, consumed=look.consumed,
            ring_bytes=self._datapath.ring_bytes, counters=look.counters, judged_packets=look.judged_packets,
            judged_bytes=look.judged_bytes, flows=flows, interfaces=dict(self._datapath.interfaces),
            collector=collector, final=final,
        )  # fmt: skip


def _judged(tables: Sequence[np.ndarray]) -> tuple[int, int]:
    """Packets and bytes over all rules of both slots, since the datapath was made."""
    packets = size = 0
    for table in tables:
        packets += int(np.sum(table["packets_passed"])) + int(np.sum(table["packets_dropped"]))
        size += int(np.sum(table["bytes_passed"])) + int(np.sum(table["bytes_dropped"]))
    return packets, size
