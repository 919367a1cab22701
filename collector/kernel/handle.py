"""Everything open on one loaded datapath: its maps as numpy, its programs, its description.

Made either from descriptors that a loader gave, or from a directory of pins.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from collector.errors import KernelError
from collector.kernel import libbpf, libc
from collector.kernel.interface import Unconfirmed
from collector.kernel.layout import LAYOUT_BYTES, Layout
from collector.kernel.loaded import Loaded
from collector.kernel.maps import HashMap, MappedArray, PerCpuArray, PlainArray
from collector.kernel.ring import Ring
from collector.kernel.sources import LAYOUT_MAP, MAPS, PROGRAMS
from schemas.codes import Decision, FlowClass, Mode, RuleId

AnyMap = HashMap | MappedArray | PerCpuArray | Ring
NS = 1_000_000_000
BUILTINS_ALL = 15
DEFAULT_BUDGET, DEFAULT_SAMPLE = 250_000, 1000


def _now() -> int:
    """The datapath's clock, ns."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@contextmanager
def _owned(fds: Mapping[str, int]) -> Iterator[None]:
    """They are closed if what is done with them fails."""
    try:
        yield
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise


class Handle:
    """An open datapath. Owns the descriptors it is given. One of another version may lack maps (attributes)."""

    flows: HashMap
    fragments: HashMap
    watched: HashMap
    range_nodes: MappedArray
    ranges: MappedArray
    ports: MappedArray
    source_rules: MappedArray
    destination_rules: MappedArray
    port_rules: MappedArray
    rules: MappedArray
    rule_baseline: MappedArray
    config: MappedArray
    totals: MappedArray
    rule_counters: PerCpuArray
    counters: PerCpuArray
    cpu_state: PerCpuArray
    events: Ring

    def __init__(self, fds: Mapping[str, int], layout: Layout) -> None:
        self.layout = layout
        self.programs = {name: fds[name] for name in PROGRAMS}
        self.description = PlainArray(fds[LAYOUT_MAP])
        struct = layout.dtypes
        u32, u64 = np.dtype("<u4"), np.dtype("<u8")
        # Its size is asked, not reckoned: vectors of older versions had no summary.
        vector = np.dtype(("<u8", (libbpf.map_info(fds["source_rules"]).value_size // 8,)))
        makers: dict[str, Callable[[int], AnyMap]] = {
            "flows": lambda fd: HashMap(fd, struct["flow_key"], struct["flow"]),
            "range_nodes": lambda fd: MappedArray(fd, np.dtype(("<u8", (8,)))),
            "ranges": lambda fd: MappedArray(fd, struct["address_range"]),
            "fragments": lambda fd: HashMap(fd, struct["fragment_key"], struct["fragment"]),
            "watched": lambda fd: HashMap(fd, u32, u32),
            "ports": lambda fd: MappedArray(fd, u32),
            "source_rules": lambda fd: MappedArray(fd, vector),
            "destination_rules": lambda fd: MappedArray(fd, vector),
            "port_rules": lambda fd: MappedArray(fd, vector),
            "rules": lambda fd: MappedArray(fd, struct["rule"]),
            "rule_baseline": lambda fd: MappedArray(fd, struct["rule_counter"]),
            "config": lambda fd: MappedArray(fd, struct["config"]),
            "totals": lambda fd: MappedArray(fd, struct["totals"]),
            "rule_counters": lambda fd: PerCpuArray(fd, struct["rule_counter"]),
            "counters": lambda fd: PerCpuArray(fd, u64),
            "cpu_state": lambda fd: PerCpuArray(fd, struct["cpu_state"]),
            "events": lambda fd: Ring(fd, layout.events),
        }
        self._maps = {name: make(fds[name]) for name, make in makers.items() if name in fds}
        for name, opened in self._maps.items():
            setattr(self, name, opened)
        words, fields = self.config.words(), layout.dtypes["config"].fields
        assert fields is not None
        self._epoch, self._previous, self._until = (
            words[fields[name][1] // 8 :] for name in ("epoch", "previous", "confirm_until")
        )
        self.is_open = True

    @staticmethod
    def create(loaded: Loaded, layout: Layout) -> "Handle":
        """A handle on freshly loaded maps, with the description written into a map of its own."""
        fds = {**loaded.maps, **loaded.programs}
        with _owned(fds):
            fds[LAYOUT_MAP] = libbpf.map_create(LAYOUT_MAP, libbpf.MAP_TYPE_ARRAY, 4, LAYOUT_BYTES, entries=2)
            handle = Handle(fds, layout)
            handle.description.write(0, layout.encode())
            return handle

    @staticmethod
    def open(directory: Path) -> "Handle":
        """The datapath pinned at `directory`. Raises KernelError."""
        fds: dict[str, int] = {}
        with _owned(fds):
            for name in (LAYOUT_MAP, *MAPS, *PROGRAMS):
                if name not in MAPS or (directory / name).exists():
                    fds[name] = libbpf.obj_get(str(directory / name))
            layout = Layout.decode(PlainArray(fds[LAYOUT_MAP]).read(0))
            return Handle(fds, layout)

    def objects(self) -> dict[str, int]:
        """Descriptors by the name they are pinned under."""
        return {LAYOUT_MAP: self.description.fd, **{name: m.fd for name, m in self._maps.items()}, **self.programs}

    def map(self, name: str) -> AnyMap:
        """A map by its name in schemas/maps.py."""
        return self._maps[name]

    @property
    def rules_per_slot(self) -> int:
        """Rule numbers a slot has room for, reserved ones included."""
        return self.layout.knobs["RULES_MAX"] + RuleId.FIRST

    def rule_counts(self, slot: int) -> np.ndarray:
        """Sums over CPUs of a slot's rule_counters, by rule number."""
        return self.rule_counters.sums(slot * self.rules_per_slot, (slot + 1) * self.rules_per_slot)

    @property
    def revision(self) -> int:
        return self._effective() >> 32

    @property
    def mode(self) -> Mode:
        return Mode(self._effective() & 1)

    @property
    def next_revision(self) -> int:
        revision = self.revision
        number = max(revision, int(self.config.values["last_revision"][0])) + 1
        return number if (number ^ revision) & 1 else number + 1

    def _effective(self) -> int:
        """What the datapath takes for the epoch: effective_epoch of bpf/datapath.h."""
        epoch, until = int(self._epoch[0]), int(self._until[0])
        return int(self._previous[0]) if until and _now() > until else epoch

    @property
    def unconfirmed(self) -> Unconfirmed | None:
        epoch, previous, until = int(self._epoch[0]), int(self._previous[0]), int(self._until[0])
        # Equal: whoever switched died before the switch itself, or in `fall_back` just after it.
        if not until or epoch == previous:
            return None
        return Unconfirmed(epoch >> 32, Mode(epoch & 1), previous >> 32, Mode(previous & 1), until)

    def store_epoch(self, revision: int, mode: Mode, confirm_within: float = 0) -> None:
        """One 8-byte store, then wait until no packet is judged by what was in force before.

        With `confirm_within` what to go back to and when are stored first: there is no moment at which the new epoch
        would hold for ever. Raises KernelError while an earlier change is unconfirmed.
        """
        if self.unconfirmed is not None:
            raise KernelError("a change is unconfirmed", "confirm it, or wait until it falls back")
        self._until[0] = 0
        if confirm_within:
            self._previous[0] = self._epoch[0]
            self._until[0] = _now() + int(confirm_within * NS)
        self._epoch[0] = revision << 32 | mode
        libc.membarrier()

    def confirm(self) -> None:
        """See collector.kernel.interface.Datapath."""
        change = self.unconfirmed
        if change is None or not change.seconds_left:
            raise KernelError("too late: it has fallen back" if change else "nothing waits for a confirmation")
        self._until[0] = 0

    def fall_back(self) -> None:
        """See collector.kernel.interface.Datapath. Between the two stores either epoch gives the same answer."""
        if self.unconfirmed is not None:
            self._epoch[0] = self._previous[0]
            libc.membarrier()  # a packet that has read the old epoch must not find it confirmed
            self._until[0] = 0

    def initialise(self, mode: Mode, midstream_seconds: int) -> None:
        """Bring a new datapath into its first state: revision 0, no policy, the clock of mid-stream TCP running."""
        now = _now()
        slot = np.zeros(1, self.layout.dtypes["slot"])
        slot["default_decision"], slot["builtins"] = Decision.ALLOW, BUILTINS_ALL
        config = self.config.values
        config["slots"][0, :] = slot.view(np.uint64)[0]
        config["midstream_until"][0] = now + midstream_seconds * NS
        config["capacity"][0] = self.layout.knobs["FLOWS_MAX"]
        self._epoch[0] = int(mode)

    def configure(self, *, sample: int, budget: int, timeouts: Mapping[str, int]) -> None:
        """Settings that may change with every start. Seconds in `timeouts`, by the names of FlowClass.

        Raises KernelError for a name that does not exist.
        """
        config = self.config.values
        for name, seconds in timeouts.items():
            if name not in FlowClass.__members__:
                raise KernelError(f"there is no time-out {name}", "time-outs are: " + ", ".join(FlowClass.__members__))
            config["timeouts"][0, FlowClass[name]] = seconds * NS
        config["sample"][0], config["budget"][0] = sample, budget

    def note_attachments(self, note: dict) -> None:
        """Remember what was attached where, for the next owner."""
        self.description.write(1, msgspec.json.encode(note))

    def attachments(self) -> dict:
        """What `note_attachments` wrote; {} if nothing."""
        data = self.description.read(1)
        return msgspec.json.decode(data) if data else {}

    def close(self) -> None:
        """Idempotent. What is pinned or attached goes on in the kernel."""
        if self.is_open:
            self.is_open = False
            del self._epoch, self._previous, self._until
            self.description.close()
            for opened in self._maps.values():
                opened.close()
            for fd in self.programs.values():
                os.close(fd)
