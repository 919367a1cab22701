"""What the rest of the collector may ask of the kernel side.

`PinnedDatapath` (collector/kernel/datapath.py) is the real one; the tests have a fake, and both pass one suite.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from schemas.codes import Mode

if TYPE_CHECKING:
    import numpy as np

    from policy.compile import Compiled
    from schemas.messages import FlowSums


@dataclass(frozen=True)
class Interface:
    """What to watch: a name, or a pattern of names (patterns.py); `hooks` is `ingress`, `egress` or `both`."""

    name: str
    hooks: str = "both"


@dataclass(frozen=True)
class DatapathSettings:
    """What a datapath is made from. `knobs` override schemas.structs.KNOBS by name."""

    pins: Path  # /sys/fs/bpf/ztlens/<instance>
    interfaces: tuple[Interface, ...]
    netns: str = ""  # name of the network namespace the interfaces are in; "": this one
    knobs: dict[str, int] = field(default_factory=dict)
    loader: str = "auto"  # or core, or bcc: collector.kernel.loader
    sample: int = 1000  # 1 in N packets of a flow; 0: none
    budget: int = 250_000  # events a second and CPU
    midstream_seconds: int = 600  # TCP without a SYN may be judged both ways so long after a first start
    timeouts: dict[str, int] = field(default_factory=dict)  # override schemas.structs.TIMEOUTS, seconds


@dataclass(frozen=True)
class Events:
    """Consecutive records copied out of the ring: `rows` (dtype schemas.verdict.DTYPE) begin at `start`."""

    start: int
    rows: "np.ndarray"


@dataclass(frozen=True)
class Unconfirmed:
    """A change that nobody has confirmed: what waits, and what the datapath itself goes back to when."""

    revision: int
    mode: Mode
    from_revision: int
    from_mode: Mode
    until: int  # ns, CLOCK_MONOTONIC

    @property
    def kind(self) -> str:
        """What changes: `revision` or `mode`."""
        return "mode" if self.revision == self.from_revision else "revision"

    @property
    def seconds_left(self) -> float:
        """Until it falls back; 0: it has fallen back."""
        return max(0.0, (self.until - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) / 1e9)


@dataclass(frozen=True)
class Connection:
    """An established TCP connection of this host: addresses as text, never IPv4-mapped."""

    local: str
    local_port: int
    remote: str
    remote_port: int


class Host(Protocol):
    """The network namespace that the interfaces are in, as far as it is the node's own."""

    def fileno(self) -> int:
        """Readable once an address came or went; `addresses` empties it."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """The node's own addresses, sorted. Raises KernelError."""
        ...

    def connections(self) -> list[Connection]:
        """Established TCP connections, loopback left out. Raises KernelError."""
        ...


@dataclass(frozen=True)
class SweepReport:
    """One sweep over the flow table. `sums` covers the flows that stay."""

    ended: int
    flushed: int  # due events emitted late
    sums: "FlowSums"


@dataclass
class Look:
    """One look at the interfaces. `came` are watched since; `went` are not, and are none to worry about.

    `unwatched`: interface → why it is not watched though it is asked for; `notices` as Datapath.notices, new ones.
    """

    unwatched: dict[str, str] = field(default_factory=dict)
    came: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class Datapath(Protocol):
    """A loaded and attached kernel side. Not thread-safe, but for `wait`."""

    ring_id: str
    """Random, made with the ring and pinned beside it: events are numbered within it."""
    adopted: bool
    """True if it was found running and taken over."""
    loader: str
    """What loaded it: `core` or `bcc`; "" for one older than the choice."""
    interfaces: dict[str, str]
    """Interface → how it is watched: `native`, `generic` (counts are aggregated), `egress`, joined by `+`; or
    `not watched`."""
    held_by: dict[str, str]
    """Interface → what holds the programs there: `link` (bpf_link), `netlink`, or `link+netlink`."""
    stride: int
    """Bytes from one record of the ring to the next: today's schemas.verdict.STRIDE, but for a predecessor."""

    @property
    def notices(self) -> Sequence[str]:
        """What an operator should know about the start (generic XDP, adoption, …), a line each."""
        ...

    @property
    def predecessor(self) -> "Datapath | None":
        """A datapath of another layout that ran here until now, already detached: end its flows, drain its ring with
        `end_all_flows`, `read`, `release`, then `unpin` and `close` it. Its rows come converted to today's dtype."""
        ...

    @property
    def ring_bytes(self) -> int: ...
    @property
    def produced(self) -> int:
        """Ring position behind the last record."""
        ...

    @property
    def consumed(self) -> int:
        """Ring position up to which records are released."""
        ...

    def read(self, limit: int) -> Events | None:
        """Up to `limit` complete records behind the last one read (not: released); None if there is none."""
        ...

    def release(self, position: int) -> None:
        """Give the ring's space before `position` back to the kernel: JetStream has acknowledged it."""
        ...

    def fileno(self) -> int:
        """Descriptor for epoll; use EPOLLET (level-triggered spins while unreleased records stay)."""
        ...

    @property
    def host(self) -> Host: ...

    def apply(self, compiled: "Compiled", revision: int, confirm_within: float = 0) -> None:
        """Write the idle slot, read it back, switch with one store, wait a grace period.

        `revision` is `next_revision`. With `confirm_within` (seconds) the datapath goes back by its own clock unless
        `confirm` comes in time. Raises KernelError (nothing switched) when a table is too small or a change is
        unconfirmed: the idle slot then holds what it may go back to.
        """
        ...

    def set_mode(self, mode: Mode, confirm_within: float = 0) -> None:
        """Switch the mode; `confirm_within` as for `apply`. Raises KernelError when a change is unconfirmed."""
        ...

    @property
    def unconfirmed(self) -> Unconfirmed | None:
        """The change that waits for `confirm`, or has fallen back and waits for `fall_back` to clear it away."""
        ...

    def confirm(self) -> None:
        """What is unconfirmed stays. Raises KernelError if nothing is, or it is too late."""
        ...

    def fall_back(self) -> None:
        """Go back now, or make lasting that the datapath went back by itself."""
        ...

    @property
    def revision(self) -> int:
        """What packets are judged by now, after a fall-back the earlier one; so is `mode`."""
        ...

    @property
    def mode(self) -> Mode: ...
    @property
    def next_revision(self) -> int:
        """The number of the next policy: above every one that ever was in force, of the idle slot's parity."""
        ...

    def counters(self) -> dict[str, int]:
        """schemas.codes.Counter by word, summed over CPUs."""
        ...

    def rule_counters(self, slot: int) -> "np.ndarray":
        """Sums over CPUs, dtype RULE_COUNTER, by rule number, since the datapath was made."""
        ...

    def rule_baseline(self, slot: int) -> "np.ndarray":
        """`rule_counters` as they were when the revision in `slot` began."""
        ...

    def sweep(self) -> SweepReport:
        """Emit what is due, end what is over (mark, membarrier, reap). Exact under load."""
        ...

    def interface_changes(self) -> int:
        """Descriptor, readable once an interface came, went or got another name; `look_after` empties it."""
        ...

    def look_after(self) -> Look:
        """Watch what is asked for and has come, be it named or matched by a pattern; let go of what is not called so
        any more. Counters go on: they are the node's. Raises nothing: what cannot be watched is `unwatched`.
        """
        ...

    def detach(self) -> None:
        """Take the programs off the interfaces; maps and ring stay. Idempotent."""
        ...

    def end_all_flows(self) -> None:
        """After `detach`: emit `end` for every flow, as far as the ring has room (call again after a drain)."""
        ...

    def unpin(self) -> None:
        """Remove the pins: with this process the ring goes. After `detach`."""
        ...

    def close(self) -> None:
        """Let go of descriptors; what is attached and pinned goes on."""
        ...
