"""What a packet costs in the kernel: ns by BPF_PROG_TEST_RUN, beside programs that do less."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from collector.kernel.private import PrivateDatapath, private_datapath
from schemas.codes import Mode
from tests.bench.figures import Figure, Options
from tests.bench.peers import Peers, XdpFilter
from tests.bench.policies import ALLOWED_PORT, DENIED_PORT, policy
from tests.bench.testrun import Subject, TestRuns, less
from tests.support.kernel import udp_frame

DROP, PASS = 1, 2
RULES = (10, 1000)
BUDGET = 4_000_000_000  # events a second: what an event costs is to be seen, not its absence
NS = "ns/packet"


def _figures() -> list[Figure]:
    out = [
        Figure("pass", "an empty program, XDP_PASS", NS),
        Figure("lookup", "one hash lookup with a 40-byte key: the floor", NS),
        Figure("count", "five-tuple counted by a minimal program", NS),
        Figure("xdp-filter", "xdp-filter with 100 ports and an address", NS),
    ]
    for rules in RULES:
        out += [
            Figure(f"hot, {rules} rules", "allowed packet of a known flow", NS, at_most=90.0, peer="count"),
            Figure(f"denied, {rules} rules", "denied packet of a known flow, dropped", NS, peer="xdp-filter"),
        ]
    out.append(Figure("count, first packets", "the minimal program, each packet a new tuple", NS))
    for rules in RULES:
        out += [
            Figure(f"first, {rules} rules", "each packet a new flow: judged, stored, told", NS,
                   peer="count, first packets"),
            Figure(f"first denied, {rules} rules", "the same, denied", NS),
        ]  # fmt: skip
    out.append(Figure("count, 60k flows", "the minimal program over 60,000 flows in no order", NS))
    out.append(Figure("hot, 60k flows", "known flows in no order, 1,000 rules", NS, peer="count, 60k flows"))
    return out


class Bench:
    """See the module."""

    NAME = "datapath"
    WHAT = "ns a packet by test-run, least of many short runs"
    FIGURES = _figures()

    def __init__(self, options: Options) -> None:
        self.notes: list[str] = []
        self._loader = options.loader
        self._rounds, self._repeat = (20, 20_000) if options.quick else (100, 20_000)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._datapath: PrivateDatapath = self._stack.enter_context(
            private_datapath(loader=self._loader, budget=BUDGET)
        )
        self._policies = {rules: policy(rules) for rules in RULES}
        self._peers = Peers()
        self._stack.callback(self._peers.close)
        self._filter = self._stack.enter_context(XdpFilter())
        if self._filter.missing:
            self.notes.append(self._filter.missing)
        self._xdp = self._datapath.handle.programs["xdp_ingress"]
        self._allowed = udp_frame("10.1.200.7", 40_000, "10.2.0.1", ALLOWED_PORT, bytes(18))
        self._denied = udp_frame("10.1.200.7", 40_000, "10.2.0.1", DENIED_PORT, bytes(18))
        self._peers.known(self._allowed)
        self._runs = TestRuns(self._datapath, self._peers.fds["stir"])
        self.notes.append("first packets and 60k flows: less what the rewriting of the frame costs, measured beside")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        self._runs.sent, parsed = 0, self._datapath.counters()["parsed"]
        out: dict[str, float] = {}
        for rules in RULES:
            self._datapath.apply(self._policies[rules], self._datapath.revision + 1)
            self._datapath.set_mode(Mode.ENFORCE)
            out |= self._hot(rules, peers=rules == RULES[0])
            out |= self._first(rules, peers=rules == RULES[0])
        out |= self._many(60_000)
        counted = self._datapath.counters()["parsed"] - parsed
        assert counted == self._runs.sent, f"{self._runs.sent} packets were run, {counted} counted"
        return out

    def _ours(self, key: str, frame: bytes, action: int, before: Callable[[], object], flows: int = -1) -> Subject:
        """Of the datapath. `flows`: as for `Peers.stir`; -1: the frame as it is."""
        if flows < 0:
            return Subject(key, self._xdp, frame, action, [before], ours=True)
        return Subject(key, -1, frame, action, [before, lambda: self._peers.stir(self._xdp, flows)], ours=True)

    def _hot(self, rules: int, *, peers: bool) -> dict[str, float]:
        self._runs.empty()
        subjects = [
            self._ours(f"hot, {rules} rules", self._allowed, PASS, self._runs.drain),
            self._ours(f"denied, {rules} rules", self._denied, DROP, self._runs.drain),
        ]
        if peers:
            subjects += [
                Subject("pass", self._peers.fds["pass"], self._allowed, PASS),
                Subject("lookup", self._peers.fds["lookup"], self._allowed, PASS),
                Subject("count", self._peers.fds["count"], self._allowed, DROP),
            ]
            if self._filter.fd >= 0:
                subjects.append(Subject("xdp-filter", self._filter.fd, self._allowed, PASS))
        return self._runs.least(subjects, self._rounds, self._repeat)

    def _first(self, rules: int, *, peers: bool) -> dict[str, float]:
        stir = self._peers.stir
        subjects = [
            Subject("stir", -1, self._allowed, PASS, [lambda: stir(self._peers.fds["pass"])]),
            self._ours(f"first, {rules} rules", self._allowed, PASS, self._runs.empty, flows=0),
            self._ours(f"first denied, {rules} rules", self._denied, DROP, self._runs.empty, flows=0),
        ]
        if peers:
            count = self._peers.fds["count"]
            subjects.append(
                Subject("count, first packets", -1, self._allowed, DROP, [self._peers.forget, lambda: stir(count)])
            )
        return less(self._runs.least(subjects, self._rounds // 3, self._repeat // 4), "stir")

    def _many(self, flows: int) -> dict[str, float]:
        """Whole rounds over the flows; the first, which makes them, is not the least."""
        self._runs.empty()
        self._peers.forget()
        stir = self._peers.stir
        subjects = [
            Subject("stir", -1, self._allowed, PASS, [lambda: stir(self._peers.fds["pass"], flows)]),
            self._ours("hot, 60k flows", self._allowed, PASS, self._runs.drain, flows=flows),
            Subject("count, 60k flows", -1, self._allowed, DROP, [lambda: stir(self._peers.fds["count"], flows)]),
        ]
        return less(self._runs.least(subjects, self._rounds // 4, flows), "stir")
