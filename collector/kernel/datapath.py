"""The real datapath: `LoadedDatapath` is what works without interfaces, `BccDatapath` adds pins and interfaces."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import KernelError
from collector.kernel import attach, libbpf, pins, slots, sweep, watching
from collector.kernel.handle import Handle
from collector.kernel.host import Namespace
from collector.kernel.interface import DatapathSettings, Events, SweepReport, Unconfirmed
from collector.kernel.netns import NETNS_DIR, inside
from schemas.codes import Mode, RuleId

if TYPE_CHECKING:
    from policy.compile import Compiled


class LoadedDatapath:
    """Ring, policy, counters and sweeps of a loaded datapath; see collector.kernel.interface.Datapath.

    `sweep` may run in a thread beside `read` and `release`: they share no state.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.ring_id = handle.layout.ring_id
        self.loader = handle.layout.loader
        self.stride = handle.events.stride
        self._per_slot = handle.layout.knobs["RULES_MAX"] + RuleId.FIRST

    @property
    def ring_bytes(self) -> int:
        return self.handle.events.size

    @property
    def produced(self) -> int:
        return self.handle.events.produced

    @property
    def consumed(self) -> int:
        return self.handle.events.consumed

    def read(self, limit: int) -> Events | None:
        return self.handle.events.read(limit)

    def release(self, position: int) -> None:
        self.handle.events.release(position)
        # The datapath knows the ring's fill by this: samples stop above half.
        self.handle.totals.values["consumed"][0] = position // self.stride

    def fileno(self) -> int:
        return self.handle.events.fd

    def apply(self, compiled: "Compiled", revision: int, confirm_within: float = 0) -> None:
        slots.apply(self.handle, compiled, revision, confirm_within)

    def set_mode(self, mode: Mode, confirm_within: float = 0) -> None:
        self.handle.store_epoch(self.revision, mode, confirm_within)

    @property
    def unconfirmed(self) -> Unconfirmed | None:
        return self.handle.unconfirmed

    def confirm(self) -> None:
        self.handle.confirm()

    def fall_back(self) -> None:
        self.handle.fall_back()

    @property
    def next_revision(self) -> int:
        return self.handle.next_revision

    @property
    def revision(self) -> int:
        return self.handle.revision

    @property
    def mode(self) -> Mode:
        return self.handle.mode

    def counters(self) -> dict[str, int]:
        return dict(zip(self.handle.layout.counters, self.handle.counters.sums().tolist(), strict=True))

    def rule_counters(self, slot: int) -> np.ndarray:
        return slots.rule_counters(self.handle.rule_counters, slot, self._per_slot)

    def rule_baseline(self, slot: int) -> np.ndarray:
        return self.handle.rule_baseline.values[slot * self._per_slot : (slot + 1) * self._per_slot].copy()

    def sweep(self) -> SweepReport:
        return sweep.sweep(self.handle)

    def end_all_flows(self) -> None:
        sweep.end_all(self.handle)

    def close(self) -> None:
        self.handle.close()


class BccDatapath(LoadedDatapath):
    """A datapath with pins and, unless it is a predecessor, interfaces. Made by `collector.kernel.open_datapath`."""

    def __init__(self, handle: Handle, directory: Path, netns: str = "", lock: pins.Lock | None = None) -> None:
        super().__init__(handle)
        self.host = Namespace(netns)
        self.adopted = False
        self.interfaces: dict[str, str] = {}
        self.notices: list[str] = []
        self.predecessor: BccDatapath | None = None
        self.settings: DatapathSettings | None = None  # what is to be looked after; None: nothing
        self._directory, self._netns, self._lock = directory, netns, lock

    @property
    def programs(self) -> attach.Programs:
        """Ours, and as `old` those of every predecessor, as attach.py wants them."""
        old: dict[int, int] = {}
        one = self.predecessor
        while one is not None:
            theirs = one.handle.programs
            if one.handle.is_open:  # else it is drained and closed
                for fd in (theirs["xdp_ingress"], theirs["tc_egress"]):
                    old[libbpf.program_info(fd).id] = fd
            one = one.predecessor
        return attach.Programs(self.handle.programs["xdp_ingress"], self.handle.programs["tc_egress"], old)

    def attached(self) -> tuple[str, list[attach.Attached]]:
        """(namespace, what is noted as attached), by this owner or the last one."""
        note = self.handle.attachments()
        return note.get("netns", ""), [attach.Attached(**one) for one in note.get("attached", [])]

    def note(self, attached: Sequence[attach.Attached]) -> None:
        """Remember for the next owner what is attached."""
        fields = ("name", "ifindex", "xdp", "tc", "clsact")
        self.handle.note_attachments(
            {"netns": self._netns, "attached": [{f: getattr(one, f) for f in fields} for one in attached]}
        )

    def take_off(self, netns: str, attached: Sequence[attach.Attached]) -> None:
        """Take our programs off those hooks, where they still are, and wait until no packet is in them."""
        attached = [one for one in attached if one.xdp or one.tc]
        if not attached:
            return
        programs = self.programs
        try:
            inside(netns, lambda: attach.detach(attached, programs))
        except KernelError:
            if not netns or (NETNS_DIR / netns).exists():
                raise  # a namespace that is gone took its interfaces with it
        libbpf.membarrier()  # what is counted now is final

    def look_after(self) -> dict[str, str]:
        return watching.look_after(self, self.settings) if self.settings is not None else {}

    def detach(self) -> None:
        self.settings = None
        self.take_off(*self.attached())
        self.note([])
        self.interfaces = {}

    def unpin(self) -> None:
        if self.attached()[1]:
            raise KernelError("the programs are still attached", "detach them first")
        pins.remove_all(self._directory)

    def close(self) -> None:
        if self.predecessor is not None:
            self.predecessor.close()
            self.predecessor = None
        self.host.close()
        super().close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
