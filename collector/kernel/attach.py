"""Putting the programs on interfaces and taking them off: never on top of somebody else's, never more than was ours.

XDP goes native first, then generic. Both hooks are held by bpf_links where the kernel has them, else by netlink: XDP
replaced only where the expected program is, TC egress a filter on a clsact qdisc that is removed only if we made it and
nobody else uses it. What netlink holds already stays so: the kernel makes no link of it without a moment
between. All functions speak about the calling thread's network namespace (see `netns.inside`).
"""

import errno
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from collector.errors import ForeignProgram, KernelError
from collector.kernel import bpflink, libbpf, probes
from collector.kernel.bpflink import BpfLink
from collector.kernel.interface import Interface
from collector.kernel.netns import Link, has_filters
from collector.kernel.patterns import asked, is_pattern

TC_HANDLE, TC_PRIORITY = 0x7A746C, 1  # "ztl"; first, so that no other filter's answer ends the chain before us
LINK, NETLINK = "link", "netlink"
_OURS = ("xdp_ingress", "tc_egress")
_NATIVE_REFUSES = (errno.EOPNOTSUPP, errno.ERANGE, errno.EINVAL, errno.EBUSY, errno.ENOMEM, errno.ENODEV)


@dataclass(frozen=True)
class Programs:
    """Ours, and those a predecessor of ours has attached: `old` maps program id → descriptor.

    `pins` are the directories in which links may be pinned, ours first.
    """

    xdp_fd: int
    tc_fd: int
    pins: tuple[Path, ...]
    old: dict[int, int] = field(default_factory=dict)

    @cached_property
    def xdp_id(self) -> int:
        return libbpf.program_info(self.xdp_fd).id

    @cached_property
    def tc_id(self) -> int:
        return libbpf.program_info(self.tc_fd).id

    def links(self) -> dict[tuple[str, int], BpfLink]:
        """Pinned links that are attached, by hook and ifindex."""
        return {(link.hook, link.ifindex): link for link in bpflink.read(self.pins) if link.ifindex}


@dataclass(frozen=True)
class Attached:
    """One interface: `xdp` is `native`, `generic` or ""; `clsact`: the qdisc is ours. `*_by`: LINK or NETLINK.

    `fresh`: not found attached.
    """

    name: str
    ifindex: int
    xdp: str = ""
    tc: bool = False
    clsact: bool = False
    xdp_by: str = NETLINK
    tc_by: str = NETLINK
    fresh: bool = field(default=True, compare=False)

    @property
    def how(self) -> str:
        return "+".join(filter(None, [self.xdp, "egress" if self.tc else ""]))

    @property
    def by(self) -> str:
        """LINK, NETLINK, or `link+netlink` when ingress and egress differ."""
        return "+".join(dict.fromkeys([self.xdp_by] * bool(self.xdp) + [self.tc_by] * self.tc))


def wanted_links(interfaces: Sequence[Interface], there: Mapping[str, Link]) -> tuple[dict[Interface, Link], list[str]]:
    """(each interface that is asked for and there → its link, names that are asked for and not there).

    Raises KernelError for what cannot be watched.
    """
    if not interfaces:
        raise KernelError("no interface to watch", "name one, as in `ztlens up -i eth0`")
    for interface in interfaces:
        link = there.get(interface.name)
        if link is not None and link.loopback:
            raise KernelError(
                f"{interface.name} is loopback, which is not watched",
                "traffic of a host with itself never leaves it; name an interface to the outside",
            )
        if interface.hooks not in ("ingress", "egress", "both"):
            raise KernelError(f"{interface.name}: no hooks {interface.hooks!r}", "hooks are ingress, egress or both")
    found = asked(interfaces, (name for name, link in there.items() if not link.loopback))
    named = dict.fromkeys(i.name for i in interfaces if not is_pattern(i.name))
    return {interface: there[name] for name, interface in found.items()}, [name for name in named if name not in there]


def no_interface(name: str, there: Mapping[str, Link]) -> KernelError:
    """That `name` is not there, with those that are; or whose other name it is."""
    for link in there.values():
        if name in link.others:
            return KernelError(f"{name} is another name of {link.name}", f"interfaces go by their first: {link.name}")
    names = ", ".join(sorted(name for name, link in there.items() if not link.loopback))
    return KernelError(f"there is no interface {name}", f"those here: {names or 'none but lo'}")


def check_foreign(wanted: Mapping[Interface, Link], ours: Iterable[int]) -> None:
    """Raises ForeignProgram if an interface's place is taken by a program whose id is not in `ours`."""
    ids = set(ours)
    for interface, link in wanted.items():
        if interface.hooks != "egress":
            found = libbpf.xdp_query(link.ifindex).any
            if found and found not in ids:
                raise _foreign_xdp(link, found)
        if interface.hooks != "ingress":
            found = libbpf.tc_query(link.ifindex, TC_HANDLE, TC_PRIORITY)
            if found and found not in ids:
                raise _foreign_tc(link, found)
            _check_tcx(link, ids)


def _check_tcx(link: Link, ours: Collection[int]) -> None:
    """TCX runs many programs, others' beside ours; but two of ztlens would both judge."""
    if probes.has("tcx_link"):
        for found in set(libbpf.tcx_query(link.ifindex)) - set(ours):
            info = libbpf.program_by_id(found)
            if info is not None and info.name in _OURS:
                held = bpflink.holding("egress", link.ifindex, found)
                raise _foreign(link.name, "a TC egress", found, _detach_link(held))


def _foreign_xdp(link: Link, found: int) -> ForeignProgram:
    held = bpflink.holding("xdp", link.ifindex, found)
    command = _detach_link(held) if held else f"ip link set dev {link.name} xdp off"
    return _foreign(link.name, "an XDP", found, command)


def _detach_link(held: int) -> str:
    return f"bpftool link detach id {held}"


def _foreign_tc(link: Link, found: int) -> ForeignProgram:
    command = f"tc filter del dev {link.name} egress prio {TC_PRIORITY} handle {TC_HANDLE:#x} bpf"
    return _foreign(link.name, "a TC egress", found, command)


def _foreign(name: str, what: str, number: int, command: str) -> ForeignProgram:
    info = libbpf.program_by_id(number)
    ours = info is not None and info.name in _OURS
    hint = "it is left alone" + (" (another ztlens instance, or one whose pins are gone)" if ours else "")
    return ForeignProgram(
        f"{name} already has {what} program (id {number}, name {info.name if info else '?'})",
        f"{hint}; if nobody needs it: {command}",
    )


def attach(
    wanted: Mapping[Interface, Link],
    programs: Programs,
    clsact_ours: Collection[int],
    notice: Callable[[str], None],
    may_fail: Collection[str] = (),
) -> tuple[list[Attached], dict[str, KernelError]]:
    """Attach what is not attached yet: (what now is, those of the names `may_fail` that could not be).

    All or nothing for the others: what was attached by this call is taken off if one fails. `clsact_ours` holds the
    ifindexes whose clsact an earlier start of ours made. Raises KernelError, ForeignProgram.
    """
    links = programs.links()
    done: list[Attached] = []
    failed: dict[str, KernelError] = {}
    for interface, link in wanted.items():
        done.append(Attached(link.name, link.ifindex, clsact=link.ifindex in clsact_ours, fresh=False))
        try:
            if interface.hooks != "egress":
                mode, by, fresh = _attach_xdp(link, programs, links.get(("xdp", link.ifindex)), notice)
                done[-1] = replace(done[-1], xdp=mode, xdp_by=by, fresh=fresh)
            if interface.hooks != "ingress":
                by, made, fresh = _attach_tc(link, programs, links.get(("egress", link.ifindex)))
                clsact, fresh = done[-1].clsact or made, done[-1].fresh or fresh
                done[-1] = replace(done[-1], tc=True, tc_by=by, clsact=clsact, fresh=fresh)
        except KernelError as error:
            if link.name in may_fail:
                failed[link.name] = error
                detach([done.pop()], programs)
                continue
            if not programs.old:  # else the predecessor's programs were replaced: taking ours off would fail open
                detach([a for a in done if a.fresh], programs)
            raise
    return done, failed


def _attach_xdp(
    link: Link, programs: Programs, held: BpfLink | None, notice: Callable[[str], None]
) -> tuple[str, str, bool]:
    """(mode, held by, whether it had to be attached)."""
    found = libbpf.xdp_query(link.ifindex)
    if found.any:
        name, by = ("generic" if found.generic else "native"), LINK if held is not None else NETLINK
        if found.any != programs.xdp_id:
            old_fd = programs.old.get(found.any)
            if old_fd is None:
                raise _foreign_xdp(link, found.any)
            if held is not None:
                bpflink.replace(held, programs.xdp_fd, old_fd)
            else:
                mode = libbpf.XDP_FLAGS_SKB_MODE if found.generic else libbpf.XDP_FLAGS_DRV_MODE
                libbpf.xdp_attach(link.ifindex, programs.xdp_fd, mode, old_fd=old_fd)
        if held is not None:
            bpflink.move(held, programs.pins[0])
        return name, by, found.any != programs.xdp_id
    try:
        by = _put_xdp(link, programs, libbpf.XDP_FLAGS_DRV_MODE)
    except KernelError as error:
        if error.errno not in _NATIVE_REFUSES:
            raise _named(error, link) from error
        reason = str(error).rpartition(": ")[2]
    else:
        return "native", by, True
    try:
        by = _put_xdp(link, programs, libbpf.XDP_FLAGS_SKB_MODE)
    except KernelError as error:
        raise _named(error, link) from error
    notice(
        f"{link.name}: generic XDP, the driver refused native ({reason}); "
        "counts are of merged packets (flag aggregated) and slower; a smaller MTU often helps"
    )
    return "generic", by, True


def _put_xdp(link: Link, programs: Programs, mode: int) -> str:
    """Held by what."""
    if probes.has("xdp_link"):
        bpflink.make(programs.pins[0], programs.xdp_fd, link.ifindex, "xdp", mode)
        return LINK
    libbpf.xdp_attach(link.ifindex, programs.xdp_fd, mode)
    return NETLINK


def _attach_tc(link: Link, programs: Programs, held: BpfLink | None) -> tuple[str, bool, bool]:
    """(held by, whether clsact was made, whether the program had to be attached)."""
    if held is not None:
        if held.program != programs.tc_id:
            bpflink.replace(held, programs.tc_fd, programs.old[held.program])
        bpflink.move(held, programs.pins[0])
        return LINK, False, held.program != programs.tc_id
    found = libbpf.tc_query(link.ifindex, TC_HANDLE, TC_PRIORITY)
    if found == programs.tc_id:
        return NETLINK, False, False
    if found and found not in programs.old:
        raise _foreign_tc(link, found)
    try:
        if not found and probes.has("tcx_link"):
            _check_tcx(link, ())
            bpflink.make(programs.pins[0], programs.tc_fd, link.ifindex, "egress", libbpf.FIRST)
            return LINK, False, True
        made = libbpf.clsact_create(link.ifindex)
        libbpf.tc_attach(link.ifindex, programs.tc_fd, TC_HANDLE, TC_PRIORITY, replace=bool(found))
    except ForeignProgram:
        raise
    except KernelError as error:
        raise _named(error, link) from error
    return NETLINK, made, True


def _named(error: KernelError, link: Link) -> KernelError:
    out = KernelError(f"{link.name}: {error}", error.hint)
    out.errno = error.errno
    return out


def detach_links(attached: Iterable[Attached], programs: Programs) -> None:
    """Take off what links hold of `attached`. From any network namespace."""
    links = programs.links()
    for one in attached:
        for hook, on in (("xdp", one.xdp and one.xdp_by == LINK), ("egress", one.tc and one.tc_by == LINK)):
            link = links.get((hook, one.ifindex))
            if on and link is not None:
                bpflink.drop(link)


def detach_netlink(attached: Iterable[Attached], programs: Programs, there: Collection[int]) -> None:
    """Take off what netlink holds of `attached` on the interfaces `there`, where it still is ours."""
    for one in attached:
        if one.ifindex not in there:
            continue
        if one.xdp and one.xdp_by == NETLINK:
            found = libbpf.xdp_query(one.ifindex)
            if found.any == programs.xdp_id:
                mode = libbpf.XDP_FLAGS_SKB_MODE if found.generic else libbpf.XDP_FLAGS_DRV_MODE
                libbpf.xdp_attach(one.ifindex, -1, mode, old_fd=programs.xdp_fd)
        if one.tc and one.tc_by == NETLINK and _tc_is(one.ifindex, programs):
            libbpf.tc_detach(one.ifindex, TC_HANDLE, TC_PRIORITY)
        if one.clsact and not has_filters(one.ifindex):
            libbpf.clsact_destroy(one.ifindex)


def detach(attached: Sequence[Attached], programs: Programs) -> None:
    """Both, of interfaces that are there."""
    detach_links(attached, programs)
    detach_netlink(attached, programs, [one.ifindex for one in attached])


def taken_off(attached: Iterable[Attached], programs: Programs) -> list[str]:
    """Interfaces from which somebody else has taken a program that is noted as attached."""
    links = programs.links()
    out = []
    for one in attached:
        on = {"xdp": (one.xdp, one.xdp_by, programs.xdp_id), "egress": (one.tc, one.tc_by, programs.tc_id)}
        for hook, (noted, by, program) in on.items():
            if not noted:
                continue
            if by == LINK:
                link = links.get((hook, one.ifindex))
                there = link is not None and link.program == program
            else:
                there = libbpf.xdp_query(one.ifindex).any == program if hook == "xdp" else _tc_is(one.ifindex, programs)
            if not there:
                out.append(one.name)
                break
    return out


def _tc_is(ifindex: int, programs: Programs) -> bool:
    return libbpf.tc_query(ifindex, TC_HANDLE, TC_PRIORITY) == programs.tc_id


def watched_ifindexes(ingress: Collection[int], there: Iterable[Link], notice: Callable[[str], None]) -> set[int]:
    """Interfaces whose packets egress leaves to ingress: those watched there, and bridges all of whose ports are.

    What a bridge routes (rather than switches) carries the bridge's ifindex, not the port's.
    """
    out, there = set(ingress), list(there)
    for bridge in (link for link in there if link.kind == "bridge"):
        ports = {link.ifindex: link.name for link in there if link.master == bridge.ifindex}
        if ports and out.issuperset(ports):
            out.add(bridge.ifindex)
        elif not out.isdisjoint(ports):
            rest = ", ".join(sorted(name for ifindex, name in ports.items() if ifindex not in ingress))
            notice(f"{bridge.name}: its port {rest} is not watched, so what {bridge.name} routes may be judged twice")
    return out
