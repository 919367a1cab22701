"""Putting the programs on interfaces and taking them off: never on top of somebody else's, never more than was ours.

XDP goes native first, then generic. TC egress goes on a clsact qdisc that is removed only if we made it and nobody
else uses it. All functions speak about the calling thread's network namespace (see `netns.inside`).
"""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from collector.errors import ForeignProgram, KernelError
from collector.kernel import libbpf
from collector.kernel.interface import Interface
from collector.kernel.netns import Link, has_filters, links

TC_HANDLE, TC_PRIORITY = 0x7A746C, 1  # "ztl"; first, so that no other filter's answer ends the chain before us
GONE, ANEW, TAKEN_OFF = "gone", "made anew", "without its program: somebody took it off"
_NATIVE_REFUSES = (errno.EOPNOTSUPP, errno.ERANGE, errno.EINVAL, errno.EBUSY, errno.ENOMEM, errno.ENODEV)


@dataclass(frozen=True)
class Programs:
    """Ours, and those a predecessor of ours has attached: `old` maps program id → descriptor."""

    xdp_fd: int
    tc_fd: int
    old: dict[int, int] = field(default_factory=dict)

    @property
    def xdp_id(self) -> int:
        return libbpf.program_info(self.xdp_fd).id

    @property
    def tc_id(self) -> int:
        return libbpf.program_info(self.tc_fd).id


@dataclass(frozen=True)
class Attached:
    """One interface: `xdp` is `native`, `generic` or ""; `clsact`: the qdisc is ours. `fresh`: not found attached."""

    name: str
    ifindex: int
    xdp: str
    tc: bool
    clsact: bool
    fresh: bool = field(default=True, compare=False)

    @property
    def how(self) -> str:
        return "+".join(filter(None, [self.xdp, "egress" if self.tc else ""]))


def wanted_links(interfaces: Sequence[Interface], absent: Callable[[str], None] | None = None) -> dict[Interface, Link]:
    """Each interface's link. Raises KernelError for one that cannot be watched or, unless `absent` is there to be told
    its name, does not exist.
    """
    there, out = links(), {}
    if not interfaces:
        raise KernelError("no interface to watch", "name one, as in `ztlens up -i eth0`")
    for interface in interfaces:
        link = there.get(interface.name)
        if link is None and absent is not None:
            absent(interface.name)
            continue
        if link is None:
            names = ", ".join(sorted(name for name, link in there.items() if not link.loopback))
            raise KernelError(f"there is no interface {interface.name}", f"those here: {names or 'none but lo'}")
        if link.loopback:
            raise KernelError(
                f"{interface.name} is loopback, which is not watched",
                "traffic of a host with itself never leaves it; name an interface to the outside",
            )
        if interface.hooks not in ("ingress", "egress", "both"):
            raise KernelError(f"{interface.name}: no hooks {interface.hooks!r}", "hooks are ingress, egress or both")
        out[interface] = link
    return out


def check_foreign(wanted: dict[Interface, Link], ours: Iterable[int]) -> None:
    """Raises ForeignProgram if an interface's place is taken by a program whose id is not in `ours`."""
    ids = set(ours)
    for interface, link in wanted.items():
        if interface.hooks != "egress":
            found = libbpf.xdp_query(link.ifindex).any
            if found and found not in ids:
                raise _foreign(link.name, "an XDP", found, f"ip link set dev {link.name} xdp off")
        if interface.hooks != "ingress":
            found = libbpf.tc_query(link.ifindex, TC_HANDLE, TC_PRIORITY)
            if found and found not in ids:
                command = f"tc filter del dev {link.name} egress prio {TC_PRIORITY} handle {TC_HANDLE:#x} bpf"
                raise _foreign(link.name, "a TC egress", found, command)


def _foreign(name: str, what: str, number: int, command: str) -> ForeignProgram:
    info = libbpf.program_by_id(number)
    ours = info is not None and info.name in ("xdp_ingress", "tc_egress")
    hint = "it is left alone" + (" (another ztlens instance, or one whose pins are gone)" if ours else "")
    return ForeignProgram(
        f"{name} already has {what} program (id {number}, name {info.name if info else '?'})",
        f"{hint}; if nobody needs it: {command}",
    )


def attach(
    wanted: dict[Interface, Link], programs: Programs, clsact_ours: set[int], notice: Callable[[str], None]
) -> list[Attached]:
    """Attach what is not attached yet; all or nothing: what was attached by this call is taken off if one fails.

    `clsact_ours` holds the ifindexes whose clsact an earlier start of ours made. Raises KernelError, ForeignProgram.
    """
    done: list[Attached] = []
    try:
        for interface, link in wanted.items():
            xdp, xdp_fresh = _attach_xdp(link, programs, notice) if interface.hooks != "egress" else ("", False)
            done.append(Attached(link.name, link.ifindex, xdp, False, link.ifindex in clsact_ours, xdp_fresh))
            if interface.hooks != "ingress":
                clsact, tc_fresh = _attach_tc(link, programs)
                clsact = clsact or link.ifindex in clsact_ours
                done[-1] = Attached(link.name, link.ifindex, xdp, True, clsact, xdp_fresh or tc_fresh)
    except KernelError:
        if not programs.old:  # else the predecessor's filters were replaced: taking ours off would fail open
            detach([a for a in done if a.fresh], programs)
        raise
    return done


def _attach_xdp(link: Link, programs: Programs, notice: Callable[[str], None]) -> tuple[str, bool]:
    """(mode, whether it had to be attached)."""
    found = libbpf.xdp_query(link.ifindex)
    if found.any == programs.xdp_id:
        return ("generic" if found.generic else "native"), False
    if found.any:
        old_fd = programs.old.get(found.any)
        if old_fd is None:
            raise _foreign(link.name, "an XDP", found.any, f"ip link set dev {link.name} xdp off")
        mode = libbpf.XDP_FLAGS_SKB_MODE if found.generic else libbpf.XDP_FLAGS_DRV_MODE
        libbpf.xdp_attach(link.ifindex, programs.xdp_fd, mode, old_fd=old_fd)
        return ("generic" if found.generic else "native"), True
    try:
        libbpf.xdp_attach(link.ifindex, programs.xdp_fd, libbpf.XDP_FLAGS_DRV_MODE)
    except KernelError as error:
        if error.errno not in _NATIVE_REFUSES:
            raise _named(error, link) from error
        reason = str(error).rpartition(": ")[2]
    else:
        return "native", True
    try:
        libbpf.xdp_attach(link.ifindex, programs.xdp_fd, libbpf.XDP_FLAGS_SKB_MODE)
    except KernelError as error:
        raise _named(error, link) from error
    notice(
        f"{link.name}: generic XDP, the driver refused native ({reason}); "
        "counts are of merged packets (flag aggregated) and slower; a smaller MTU often helps"
    )
    return "generic", True


def _attach_tc(link: Link, programs: Programs) -> tuple[bool, bool]:
    """(whether clsact was made, whether the program had to be attached)."""
    found = libbpf.tc_query(link.ifindex, TC_HANDLE, TC_PRIORITY)
    if found == programs.tc_id:
        return False, False
    if found and found not in programs.old:
        raise _foreign(link.name, "a TC egress", found, f"tc filter del dev {link.name} egress prio {TC_PRIORITY}")
    try:
        made = libbpf.clsact_create(link.ifindex)
        libbpf.tc_attach(link.ifindex, programs.tc_fd, TC_HANDLE, TC_PRIORITY, replace=bool(found))
    except KernelError as error:
        raise _named(error, link) from error
    return made, True


def _named(error: KernelError, link: Link) -> KernelError:
    out = KernelError(f"{link.name}: {error}", error.hint)
    out.errno = error.errno
    return out


def detach(attached: Iterable[Attached], programs: Programs) -> None:
    """Take our programs off the hooks that `attached` states, where they still are; a vanished interface is fine."""
    there = {link.ifindex for link in links().values()}
    for one in attached:
        if one.ifindex not in there:
            continue
        found = libbpf.xdp_query(one.ifindex)
        if one.xdp and found.any == programs.xdp_id:
            mode = libbpf.XDP_FLAGS_SKB_MODE if found.generic else libbpf.XDP_FLAGS_DRV_MODE
            libbpf.xdp_attach(one.ifindex, -1, mode, old_fd=programs.xdp_fd)
        if one.tc and libbpf.tc_query(one.ifindex, TC_HANDLE, TC_PRIORITY) == programs.tc_id:
            libbpf.tc_detach(one.ifindex, TC_HANDLE, TC_PRIORITY)
        if one.clsact and not has_filters(one.ifindex):
            libbpf.clsact_destroy(one.ifindex)


def faults(names: Iterable[str], noted: Iterable[Attached], programs: Programs) -> dict[str, str]:
    """Interface → GONE, ANEW or TAKEN_OFF, for those of `names` that are not attached as `noted` says."""
    by_name = {one.name: one for one in noted}
    out = {}
    for name in names:
        one = by_name.get(name)
        if one is None or not _there(one.ifindex):
            out[name] = ANEW if _exists(name) else GONE
        elif (one.xdp and libbpf.xdp_query(one.ifindex).any != programs.xdp_id) or (
            one.tc and libbpf.tc_query(one.ifindex, TC_HANDLE, TC_PRIORITY) != programs.tc_id
        ):
            out[name] = TAKEN_OFF
    return out


def _there(ifindex: int) -> bool:
    """By number: an interface that got another name is the same."""
    with contextlib.suppress(OSError):
        return bool(socket.if_indextoname(ifindex))
    return False


def _exists(name: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.if_nametoindex(name))
    return False


def watched_ifindexes(wanted: dict[Interface, Link], notice: Callable[[str], None]) -> list[int]:
    """Interfaces whose packets egress leaves to ingress: those watched there, and bridges all of whose ports are.

    What a bridge routes (rather than switches) carries the bridge's ifindex, not the port's.
    """
    ingress = {link.ifindex for interface, link in wanted.items() if interface.hooks != "egress"}
    there = links()
    out = set(ingress)
    for bridge in (link for link in there.values() if link.kind == "bridge"):
        ports = {link.ifindex for link in there.values() if link.master == bridge.ifindex}
        if ports and ports <= ingress:
            out.add(bridge.ifindex)
        elif ports & ingress:
            rest = ", ".join(sorted(link.name for link in there.values() if link.ifindex in ports - ingress))
            notice(f"{bridge.name}: its port {rest} is not watched, so what {bridge.name} routes may be judged twice")
    return sorted(out)
