"""The real datapath: `LoadedDatapath` is what works without interfaces, `PinnedDatapath` adds pins and interfaces."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import KernelError
from collector.kernel import attach, bpflink, libbpf, libc, pins, sweep
from collector.kernel.handle import Handle
from collector.kernel.host import Namespace
from collector.kernel.interface import Events, Look, SweepReport, Unconfirmed
from collector.kernel.netns import NETNS_DIR, inside, links
from collector.kernel.watching import Watch
from schemas.codes import Mode

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
        from collector.kernel import slots  # noqa: PLC0415 - with the policy compiler, which a start without one spares

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
        return self.handle.rule_counts(slot)

    def rule_baseline(self, slot: int) -> np.ndarray:
        per_slot = self.handle.rules_per_slot
        return self.handle.rule_baseline.values[slot * per_slot : (slot + 1) * per_slot].copy()

    def sweep(self) -> SweepReport:
        return sweep.sweep(self.handle)

    def end_all_flows(self) -> None:
        sweep.end_all(self.handle)

    def close(self) -> None:
        self.handle.close()


class PinnedDatapath(LoadedDatapath):
    """A datapath with pins and, unless it is a predecessor, interfaces. Made by `collector.kernel.open_datapath`."""

    def __init__(self, handle: Handle, directory: Path, netns: str = "", lock: pins.Lock | None = None) -> None:
        super().__init__(handle)
        self.directory = directory
        self.host = Namespace(netns)
        self.adopted = False
        self.interfaces: dict[str, str] = {}
        self.held_by: dict[str, str] = {}
        self.notices: list[str] = []
        self.predecessor: PinnedDatapath | None = None
        self.watch: Watch | None = None
        self._detached = False  # then there is nothing to look after
        self._lock = lock

    @property
    def programs(self) -> attach.Programs:
        """Ours, and as `old` those of every predecessor, as attach.py wants them."""
        old: dict[int, int] = {}
        directories = [self.directory]
        one = self.predecessor
        while one is not None:
            theirs = one.handle.programs
            if one.handle.is_open:  # else it is drained and closed
                directories.append(one.directory)
                for fd in (theirs["xdp_ingress"], theirs["tc_egress"]):
                    old[libbpf.program_info(fd).id] = fd
            one = one.predecessor
        ours = self.handle.programs
        return attach.Programs(ours["xdp_ingress"], ours["tc_egress"], tuple(directories), old)

    def attached(self) -> tuple[str | None, list[attach.Attached]]:
        """(namespace, what is noted as attached), by this owner or the last one; None: nothing ever was noted."""
        note = self.handle.attachments()
        return note.get("netns"), [attach.Attached(**one) for one in note.get("attached", [])]

    def note(self, netns: str, attached: Sequence[attach.Attached]) -> None:
        """Remember for the next owner what is attached."""
        fields = ("name", "ifindex", "xdp", "tc", "clsact", "xdp_by", "tc_by")
        self.handle.note_attachments(
            {"netns": netns, "attached": [{f: getattr(one, f) for f in fields} for one in attached]}
        )

    def take_off(self, netns: str, attached: Sequence[attach.Attached]) -> None:
        """Take our programs off those hooks, where they still are."""
        programs = self.programs
        attach.detach_links(attached, programs)
        by_netlink = [
            one
            for one in attached
            if (one.xdp and one.xdp_by == attach.NETLINK) or (one.tc and one.tc_by == attach.NETLINK)
        ]
        if not by_netlink:
            return

        def detach() -> None:
            attach.detach_netlink(by_netlink, programs, [link.ifindex for link in links().values()])

        try:
            inside(netns, detach)
        except KernelError:
            if not netns or (NETNS_DIR / netns).exists():
                raise  # a namespace that is gone took its interfaces with it

    def interface_changes(self) -> int:
        assert self.watch is not None
        return self.watch.changes.fileno()

    def look_after(self) -> Look:
        return self.watch.look_after(self) if self.watch is not None and not self._detached else Look()

    def detach(self) -> None:
        self._detached = True
        if self.watch is not None:
            self.watch.stop()
        netns, attached = self.attached()
        if attached:
            self.take_off(netns or "", attached)
        for link in bpflink.read([self.directory]):  # noted or not
            bpflink.drop(link)
        if attached:
            libc.membarrier()  # what is counted now is final
        self.note(netns or "", [])
        self.interfaces, self.held_by = {}, {}

    def unpin(self) -> None:
        if self.attached()[1]:
            raise KernelError("the programs are still attached", "detach them first")
        pins.remove_all(self.directory)

    def close(self) -> None:
        if self.predecessor is not None:
            self.predecessor.close()
            self.predecessor = None
        if self.watch is not None:
            self.watch.close()
            self.watch = None
        self.host.close()
        super().close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
