"""What rules cost: a packet in the kernel from 10 to 10,000 of them, a change from text to the switch, `evaluate`.

Packets are measured as in datapath.py, in mode monitor. The keys of first packets come from a table of 131,072 tuples
dealt in turn: a rule's own, and any identity to any. A change is the whole of it: parse, compile, write the idle slot,
read it back, switch, and the grace period. `evaluate` is timed 16,384 tuples at a time, each time the least of some.
"""

import gc
import os
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from collector.kernel.private import PrivateDatapath, private_datapath
from policy.compile import Compiled, compile_policy
from policy.evaluate import CHUNK, evaluate
from policy.parse import parse
from tests.bench.figures import Figure, Options
from tests.bench.peers import Peers
from tests.bench.policies import ALLOWED_PORT, Crowd, crowd, labels_text, policy, policy_text
from tests.bench.processes import memory
from tests.bench.testrun import Subject, TestRuns, less
from tests.support.kernel import udp_frame
from tests.support.swaps import Swapped, swap, watched

PASS = 2
RULES = (10, 1_000, 10_000)
BUDGET = 4_000_000_000
KNOBS = {"RULES_MAX": 10_048, "CLASSES_MAX": 10_048}
NS, SECONDS, MIB, RATE = "ns/packet", "s", "MiB", "tuples/s"
TABLES = (
    "range_nodes", "ranges", "ports", "source_rules", "destination_rules", "port_rules", "rules", "rule_counters",
    "rule_baseline",
)  # fmt: skip


def _figures() -> tuple[Figure, ...]:
    base = f"hot, {RULES[0]:,} rules"
    return (
        *(Figure(f"hot, {n:,} rules", "allowed packet of a known flow", NS, peer=base if n > RULES[0] else "",
                 ratio_at_most=1.1 if n > RULES[0] else None) for n in RULES),
        Figure("first, random keys", "new flow, 100,000 prefixes, 10,000 rules, ends in no order", NS, at_most=2500.0),
        Figure("first, one source", "the same rules, ends of one identity each", NS),
        Figure("change, 1,000 rules", "parse to switch; a source, destination, port each", SECONDS, at_most=0.3),
        Figure("change, 10,000 rules", "the same", SECONDS, at_most=2.0),
        Figure("change, 100,000 addresses", "of 1,000 identities under 10 rules by label", SECONDS, at_most=3.0),
        Figure("change, peak", "what this process holds more, at most, in the largest of these", MIB),
        Figure("tables, 10,000 rules", "BPF maps of policy, both slots, 10,048 rules and classes", MIB),
        *(Figure(f"evaluate, {name}", "1,000 rules, 10,000 prefixes of each family, one core", RATE, at_least=5e6)
          for name in ("IPv4", "IPv6", "mixed")),
        Figure("swaps, frames", "live frames on two CPUs while policies change places", "frames/s", at_least=1e6),
        Figure("swaps", "changes of policy under these", "swaps/s"),
    )  # fmt: skip


class Bench:
    """See the module."""

    NAME = "policy"
    WHAT = "what rules cost: packets, changes, evaluate"
    FIGURES = _figures()

    def __init__(self, options: Options) -> None:
        self._quick, self._loader = options.quick, options.loader
        self._swaps = 100 if options.quick else 1000
        self.notes = [
            f"{self._swaps:,} swaps; every frame counted, judged by one policy and let pass",
            "first packets: less what the rewriting of the frame costs, measured beside",
        ]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._datapath: PrivateDatapath = self._stack.enter_context(
            private_datapath(KNOBS, loader=self._loader, budget=BUDGET)
        )
        self._peers = Peers()
        self._stack.callback(self._peers.close)
        self._runs = TestRuns(self._datapath, self._peers.fds["deal"])
        self._texts = {f"{n:,} rules": policy_text(n) for n in (1_000, 10_000)} | {"100,000 addresses": labels_text()}
        self._policies = {n: policy(n) for n in RULES}
        self._crowd = crowd(10_000, 1_000, 100)
        self._crowded = compile_policy(parse(self._crowd.text))
        assert len(self._crowded.prefixes) == 100_000, len(self._crowded.prefixes)
        self._audit = crowd(1_000, 1_000, 10, families=(4, 6))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        out = self._hot() | self._first() | self._changes() | self._evaluate()
        swapped = self._swapped()
        return out | {"swaps, frames": swapped.rate, "swaps": self._swaps / swapped.seconds}

    def _apply(self, compiled: Compiled) -> None:
        self._datapath.apply(compiled, self._datapath.next_revision)

    def _hot(self) -> dict[str, float]:
        """The policies take turns, too: what the machine does meanwhile meets all of them."""
        frame = udp_frame("10.1.200.7", 40_000, "10.2.0.1", ALLOWED_PORT, bytes(18))
        xdp = self._datapath.handle.programs["xdp_ingress"]
        out: dict[str, float] = {}
        for _ in range(3):
            for n, compiled in self._policies.items():
                self._apply(compiled)
                self._runs.empty()
                subject = Subject(f"hot, {n:,} rules", xdp, frame, PASS, [self._runs.drain], ours=True)
                least = self._runs.least([subject], 10 if self._quick else 50, 20_000)[subject.key]
                out[subject.key] = min(least, out.get(subject.key, least))
        return out

    def _first(self) -> dict[str, float]:
        self._apply(self._crowded)
        frame = udp_frame("10.0.0.1", 40_000, "10.0.0.2", 10_000, bytes(18))
        xdp, deal = self._datapath.handle.programs["xdp_ingress"], self._peers.deal
        out: dict[str, float] = {}
        for key, scattered in (("first, random keys", True), ("first, one source", False)):
            self._put(self._crowd, scattered)
            subjects = [
                Subject("deal", -1, frame, PASS, [lambda: deal(self._peers.fds["pass"])]),
                Subject(key, -1, frame, PASS, [self._runs.empty, lambda: deal(xdp)], ours=True),
            ]
            out |= less(self._runs.least(subjects, 10 if self._quick else 60, 5_000), "deal")
        return out

    def _put(self, crowd: Crowd, scattered: bool) -> None:
        """Tuples into the table of `deal`; not `scattered`: the same, but all of one pair of ends. Ports count up."""
        dealt = self._peers.dealt.values
        src, dst, _, _, port = crowd.tuples(len(dealt))
        for name, ends in (("saddr", src), ("daddr", dst)):
            words = ends.view(">u4").reshape(-1, 4)[:, 3]
            dealt[name] = words if scattered else words[1]
        dealt["sport"], dealt["dport"] = np.arange(len(dealt)) % 65_536, port if scattered else port[1]

    def _changes(self) -> dict[str, float]:
        out: dict[str, float] = {}
        peak = 0.0
        for name, text in self._texts.items():
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
            before = memory(os.getpid()).resident
            begun = time.perf_counter()
            self._apply(compile_policy(parse(text)))
            out[f"change, {name}"] = time.perf_counter() - begun
            peak = max(peak, memory(os.getpid()).peak - before)
        handle = self._datapath.handle
        return out | {
            "change, peak": peak,
            "tables, 10,000 rules": sum(_map_bytes(handle.objects()[name]) for name in TABLES) / 2**20,
        }

    def _evaluate(self) -> dict[str, float]:
        n = (4 if self._quick else 16) * CHUNK
        compiled = compile_policy(parse(self._audit.text))
        four, six = self._audit.tuples(n, 4), self._audit.tuples(n, 6)
        mixed = [np.where(np.arange(n) % 2, *columns) for columns in zip(four, six, strict=True)]
        named = {"IPv4": four, "IPv6": six, "mixed": mixed}
        return {f"evaluate, {name}": _rate(compiled, columns) for name, columns in named.items()}

    def _swapped(self) -> Swapped:
        with watched(self._loader) as (datapath, sources):
            swapped = swap(datapath, sources, self._swaps)
        assert swapped.revisions > self._swaps // 2, "traffic met most of the revisions"
        return swapped


def _rate(compiled: Compiled, columns: list[np.ndarray]) -> float:
    """Tuples a second of one core: of each part of CHUNK the least of eight times, for somebody else may be busy."""
    n = len(columns[0])
    least = [float("inf")] * (n // CHUNK)
    for _ in range(8):
        for i in range(len(least)):
            part = [column[i * CHUNK : (i + 1) * CHUNK] for column in columns]
            begun = time.perf_counter()
            evaluate(compiled, *part)
            least[i] = min(least[i], time.perf_counter() - begun)
    return n / sum(least)


def _map_bytes(fd: int) -> int:
    """What the kernel says a map takes."""
    told = re.search(r"^memlock:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    return int(told[1]) if told else 0
