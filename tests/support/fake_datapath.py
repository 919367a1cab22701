"""A datapath without a kernel, for tests of what stands above it.

`FakeKernel` is what would live on in the kernel (ring, counters, flows, configuration): it survives its owner.
`FakeDatapath` is an open handle on one, so opening a second one on the same kernel is an adoption after a crash.
Tests drive it with `kernel.push(make_rows(n))`; it keeps the same books as the real one, so ledgers balance.

It passes the same suite as the real datapath (tests/support/datapath_suite.py).
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collector.errors import KernelError
from collector.kernel.interface import Connection, Events, Interface, Look, SweepReport, Unconfirmed
from collector.kernel.patterns import asked, is_pattern
from schemas.codes import Counter, Decision, EventKind, Mode, Outcome, Reason, RuleId, word
from schemas.messages import FlowSums
from schemas.structs import KNOBS, RULE_COUNTER, dtype
from schemas.verdict import DTYPE, STRIDE

if TYPE_CHECKING:
    from policy.compile import Compiled

RULE_COUNTER_DTYPE = dtype(RULE_COUNTER)
RULES_MAX = next(k.default for k in KNOBS if k.name == "RULES_MAX")


def make_rows(n: int, *, first_flow: int = 1, **columns: Any) -> np.ndarray:
    """`n` plausible `new` verdicts (dtype schemas.verdict.DTYPE), each of its own flow of one packet of 60 bytes.

    `columns` override whole columns with a scalar or an array of n values. Flow ids count up from `first_flow`.
    """
    rows = np.zeros(n, DTYPE)
    rows["time"] = time.monotonic_ns() + np.arange(n)
    rows["flow_id"] = first_flow + np.arange(n)
    numbers = (first_flow + np.arange(n)) & 0xFFFF
    addresses = np.zeros((2, n, 16), np.uint8)
    addresses[:, :, 12] = 10
    addresses[1, :, 14] = 2
    addresses[0, :, 14], addresses[0, :, 15] = numbers >> 8, numbers & 0xFF
    addresses[1, :, 15] = 20
    rows["src"], rows["dst"] = addresses.view("V16")[..., 0]
    rows["packets_original"], rows["bytes_original"] = 1, 60
    rows["sport"], rows["dport"] = 1024 + numbers % 60000, 5432
    rows["family"], rows["proto"], rows["direction"], rows["ifindex"] = 4, 6, 1, 2
    rows["event"], rows["decision"], rows["outcome"] = EventKind.NEW, Decision.ALLOW, Outcome.PASSED
    rows["reason"], rows["rule"] = Reason.NO_POLICY, RuleId.NO_POLICY
    for name, value in columns.items():
        rows[name] = value
    return rows


class FakeHost:
    """A namespace whose addresses and connections the test sets."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.established: list[Connection] = []
        self._addresses: tuple[str, ...] = ()

    def move(self, *addresses: str) -> None:
        """The node has these addresses from now on."""
        self._addresses = tuple(sorted(addresses))
        os.eventfd_write(self.fd, 1)

    def fileno(self) -> int:
        return self.fd

    def addresses(self) -> tuple[str, ...]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        return self._addresses

    def connections(self) -> list[Connection]:
        return self.established


class FakeKernel:
    """The part that outlives its owner. `ring_records` is how many events the ring holds."""

    def __init__(self, ring_records: int = 4096, ring_id: str = "", stride: int = STRIDE) -> None:
        self.ring_id = ring_id or secrets.token_hex(8)
        self.stride = stride
        self.ring = np.zeros(ring_records, DTYPE)
        self.produced = self.consumed = 0  # positions, bytes
        self.busy_from: int | None = None  # position of a record a CPU still writes: readers stop there
        self.counters = {word(c): 0 for c in Counter}
        self.rule_counters = np.zeros((2, RULES_MAX + RuleId.FIRST), RULE_COUNTER_DTYPE)
        self.rule_baseline = self.rule_counters.copy()
        self.flows: dict[int, np.void] = {}  # id → its latest row
        self.due: list[np.void] = []  # events that found the ring full
        self.epoch = self.previous = (0, Mode.MONITOR)
        self.confirm_until = self.last_revision = 0
        self.host = FakeHost()
        self.links = {"veth0"}
        self.links_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.applied: list[tuple[Compiled, int]] = []
        self.attached, self.pinned = True, True
        self.lock = threading.RLock()  # the collector sweeps in one thread while tests push in another
        self.failures: dict[str, Exception] = {}  # method → raised by its next call
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def in_force(self) -> tuple[int, Mode]:
        """(revision, mode) by the clock, as bpf/datapath.h has it."""
        return self.previous if self.confirm_until and time.monotonic_ns() > self.confirm_until else self.epoch

    @property
    def revision(self) -> int:
        return self.in_force[0]

    @property
    def mode(self) -> Mode:
        return self.in_force[1]

    def free(self) -> None:
        """Raises KernelError while a change waits."""
        if self.confirm_until:
            raise KernelError("a change is unconfirmed", "confirm it, or wait until it falls back")

    def switch(self, epoch: tuple[int, Mode], confirm_within: float) -> None:
        self.free()
        self.previous, self.epoch = self.epoch, epoch
        self.confirm_until = time.monotonic_ns() + int(confirm_within * 1e9) if confirm_within else 0

    def push(self, rows: np.ndarray) -> int:
        """Packets happened: count them and emit `rows`. Returns how many the ring took; others are due (samples: lost).

        `packets_*` and `bytes_*` are cumulative by flow, as on the real ring; flow_id 0 is an untracked packet.
        """
        taken = 0
        with self.lock:
            for row in rows:
                self._count(row)
                taken += self._emit(row)
        return taken

    def _count(self, row: np.void) -> None:
        flow, event = int(row["flow_id"]), int(row["event"])
        before = self.flows.get(flow) if flow else None
        packets = _packets(row) - (_packets(before) if before is not None else 0)
        size = _bytes(row) - (_bytes(before) if before is not None else 0)
        self.counters["parsed"] += packets
        self.counters["events_due"] += 1
        by_rule = self.rule_counters[int(row["revision"]) & 1, int(row["rule"])]
        outcome = "passed" if row["outcome"] == Outcome.PASSED else "dropped"
        by_rule["packets_" + outcome] += packets
        by_rule["bytes_" + outcome] += size
        if not flow:
            self.counters["untracked_unattributable"] += packets
            return
        self.counters["flows_created"] += before is None
        self.flows[flow] = row.copy()
        if event == EventKind.END:
            self._forget(flow)

    def _forget(self, flow: int) -> None:
        row = self.flows.pop(flow)
        self.counters["flows_ended"] += 1
        self.counters["ended_packets"] += _packets(row)
        self.counters["ended_bytes"] += _bytes(row)

    def _emit(self, row: np.void) -> bool:
        if self.produced - self.consumed >= len(self.ring) * self.stride:
            if row["event"] == EventKind.SAMPLE:
                self.counters["samples_lost"] += 1
            else:
                self.counters["reserve_failed"] += 1
                self.due.append(row.copy())
            return False
        self.ring[self.produced // self.stride % len(self.ring)] = row
        self.produced += self.stride
        os.eventfd_write(self.event_fd, 1)
        return True

    def set_links(self, *names: str) -> None:
        """The interfaces there are from now on."""
        self.links = set(names)
        os.eventfd_write(self.links_fd, 1)

    def close(self) -> None:
        """Let the descriptors go; the test's end."""
        os.close(self.links_fd)
        os.close(self.event_fd)
        os.close(self.host.fd)


def _packets(row: np.void) -> int:
    return int(row["packets_original"]) + int(row["packets_reply"])


def _bytes(row: np.void) -> int:
    return int(row["bytes_original"]) + int(row["bytes_reply"])


class FakeDatapath:
    """An open handle on a FakeKernel; see collector.kernel.interface.Datapath for what each method promises."""

    def __init__(
        self,
        kernel: FakeKernel | None = None,
        *,
        adopted: bool = False,
        predecessor: "FakeDatapath | None" = None,
        interfaces: Sequence[Interface] = (Interface("veth0"),),
    ) -> None:
        self.kernel = kernel or FakeKernel()
        self.ring_id = self.kernel.ring_id
        self.stride = self.kernel.stride
        self.adopted = adopted
        self.loader = "core"
        self.asked_for = interfaces
        self.interfaces: dict[str, str] = {}
        self.held_by: dict[str, str] = {}
        self.notices: Sequence[str] = ()
        self._watch()
        self.predecessor = predecessor
        self.closed = False
        self._next = self.kernel.consumed

    def _may_fail(self, name: str) -> None:
        if name in self.kernel.failures:
            raise self.kernel.failures.pop(name)

    @property
    def ring_bytes(self) -> int:
        return len(self.kernel.ring) * self.stride

    @property
    def produced(self) -> int:
        return self.kernel.produced

    @property
    def consumed(self) -> int:
        return self.kernel.consumed

    def read(self, limit: int) -> Events | None:
        self._may_fail("read")
        end = self.kernel.produced if self.kernel.busy_from is None else self.kernel.busy_from
        n = min((end - self._next) // self.stride, limit)
        if n <= 0:
            return None
        start, self._next = self._next, self._next + n * self.stride
        return Events(start, self.kernel.ring[(start // self.stride + np.arange(n)) % len(self.kernel.ring)])

    def release(self, position: int) -> None:
        self._may_fail("release")
        if not self.kernel.consumed <= position <= self._next or (position % self.stride):
            raise ValueError(f"release({position}) outside of [{self.kernel.consumed}, {self._next}]")
        self.kernel.consumed = position

    def fileno(self) -> int:
        return self.kernel.event_fd

    @property
    def host(self) -> FakeHost:
        return self.kernel.host

    def apply(self, compiled: "Compiled", revision: int, confirm_within: float = 0) -> None:
        self._may_fail("apply")
        if revision != self.next_revision:
            raise KernelError(f"revision {revision} does not follow {self.kernel.revision}")
        if len(compiled.rules) > RULES_MAX:
            raise KernelError(f"{len(compiled.rules)} rules, room for {RULES_MAX}", "raise the knob RULES_MAX")
        self.kernel.free()
        slot = revision & 1
        self.kernel.rule_baseline[slot] = self.kernel.rule_counters[slot]
        self.kernel.applied.append((compiled, revision))
        self.kernel.switch((revision, self.mode), confirm_within)
        self.kernel.last_revision = revision

    def set_mode(self, mode: Mode, confirm_within: float = 0) -> None:
        self._may_fail("set_mode")
        self.kernel.switch((self.revision, mode), confirm_within)

    @property
    def unconfirmed(self) -> Unconfirmed | None:
        kernel = self.kernel
        return Unconfirmed(*kernel.epoch, *kernel.previous, kernel.confirm_until) if kernel.confirm_until else None

    def confirm(self) -> None:
        change = self.unconfirmed
        if change is None or not change.seconds_left:
            raise KernelError("too late: it has fallen back" if change else "nothing waits for a confirmation")
        self.kernel.confirm_until = 0

    def fall_back(self) -> None:
        if self.unconfirmed is not None:
            self.kernel.epoch, self.kernel.confirm_until = self.kernel.previous, 0

    @property
    def next_revision(self) -> int:
        number = max(self.revision, self.kernel.last_revision) + 1
        return number if (number ^ self.revision) & 1 else number + 1

    @property
    def revision(self) -> int:
        return self.kernel.revision

    @property
    def mode(self) -> Mode:
        return self.kernel.mode

    def counters(self) -> dict[str, int]:
        return dict(self.kernel.counters)

    def rule_counters(self, slot: int) -> np.ndarray:
        return self.kernel.rule_counters[slot].copy()

    def rule_baseline(self, slot: int) -> np.ndarray:
        return self.kernel.rule_baseline[slot].copy()

    def sweep(self) -> SweepReport:
        self._may_fail("sweep")
        with self.kernel.lock:
            owed, self.kernel.due = self.kernel.due, []
            flushed = sum(self.kernel._emit(row) for row in owed)
            return SweepReport(0, flushed, self._sums())

    def _sums(self) -> FlowSums:
        rows = list(self.kernel.flows.values())
        return FlowSums(
            len(rows), sum(_packets(r) for r in rows), sum(_bytes(r) for r in rows), due=len(self.kernel.due)
        )

    def interface_changes(self) -> int:
        return self.kernel.links_fd

    def look_after(self) -> Look:
        look, before = Look(), self.interfaces
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.kernel.links_fd)
        if self.kernel.attached:
            self._watch()
            on = [{name for name, how in of.items() if how != "not watched"} for of in (before, self.interfaces)]
            look.unwatched = {name: "gone" for name, how in self.interfaces.items() if how == "not watched"}
            named = {i.name for i in self.asked_for}
            look.notices = [f"{n} was made anew, and is watched again" for n in sorted((on[1] - on[0]) & named)]
            look.came, look.went = sorted(on[1] - on[0]), sorted(on[0] - on[1] - set(look.unwatched))
        return look

    def _watch(self) -> None:
        hows = {"ingress": "native", "egress": "egress", "both": "native+egress"}
        found = asked(self.asked_for, self.kernel.links)
        named = [i.name for i in self.asked_for if not is_pattern(i.name)]
        self.interfaces = dict.fromkeys(named, "not watched") | {n: hows[i.hooks] for n, i in found.items()}
        self.held_by = dict.fromkeys(found, "link")

    def detach(self) -> None:
        self.kernel.attached = False
        self.interfaces, self.held_by = {}, {}

    def end_all_flows(self) -> None:
        self._may_fail("end_all_flows")
        self.sweep()
        for flow, row in list(self.kernel.flows.items()):
            if self.kernel.due or self.kernel.produced - self.kernel.consumed >= self.ring_bytes:
                return
            end = row.copy()
            end["event"] = EventKind.END
            self.kernel.counters["events_due"] += 1
            self.kernel._emit(end)
            self.kernel._forget(flow)

    def unpin(self) -> None:
        if self.kernel.attached:
            raise KernelError("still attached", "detach first")
        self.kernel.pinned = False

    def close(self) -> None:
        self.closed = True
