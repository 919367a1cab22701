"""Which interfaces a datapath watches: put right at its start, and looked after while it runs.

Interfaces come and go (containers, tunnels, a driver reloaded), and a program goes with its interface: one of the same
name made anew would pass unseen.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import KernelError
from collector.kernel import attach, libbpf
from collector.kernel.attach import Attached
from collector.kernel.interface import DatapathSettings, Interface
from collector.kernel.netns import Link, inside
from schemas.codes import Flag

if TYPE_CHECKING:
    from collector.kernel.datapath import BccDatapath


def look_after(datapath: "BccDatapath", settings: DatapathSettings) -> dict[str, str]:
    """Watch again what was made anew. Interface → why it is not watched as asked, empty if all is well."""
    _, noted = datapath.attached()
    names = [interface.name for interface in settings.interfaces]
    try:
        faults = inside(settings.netns, lambda: attach.faults(names, noted, datapath.programs))
        anew = [name for name, fault in faults.items() if fault == attach.ANEW]
        if anew:
            wanted = inside(settings.netns, lambda: attach.wanted_links(settings.interfaces, lambda _: None))
            try:
                watch(datapath, settings, wanted)
                faults = {name: fault for name, fault in faults.items() if name not in anew}
                datapath.notices += [f"{name} was made anew, and is watched again" for name in anew]
            except KernelError as error:
                faults |= dict.fromkeys(anew, f"made anew and cannot be watched: {error}")
    except KernelError as error:  # the namespace went, too
        faults = dict.fromkeys(names, f"{attach.GONE} ({error})")
    datapath.interfaces |= dict.fromkeys(faults, "not watched")
    return faults


def watch(datapath: "BccDatapath", settings: DatapathSettings, wanted: dict[Interface, Link]) -> None:
    """Attach what is missing, take off what is not wanted any more, note what is where. Raises KernelError."""
    chain = [datapath]
    while (older := chain[-1].predecessor) is not None:
        chain.append(older)
    noted = [one.attached() for one in chain]
    clsact = {a.ifindex for netns, attached in noted if netns == settings.netns for a in attached if a.clsact}
    programs = datapath.programs

    def attach_all() -> list[Attached]:
        _write_watched(datapath, attach.watched_ifindexes(wanted, datapath.notices.append))
        return attach.attach(wanted, programs, clsact, datapath.notices.append)

    ifindexes, _ = datapath.handle.watched.read()
    try:
        attached = inside(settings.netns, attach_all)
    except BaseException:
        _write_watched(datapath, ifindexes.tolist())  # egress leaves to ingress only what ingress sees
        raise
    datapath.note(attached)
    hooks = {link.ifindex: interface.hooks for interface, link in wanted.items()}
    for one, (netns, before) in zip(chain, noted, strict=True):
        one.take_off(netns, [_leftover(a, hooks.get(a.ifindex) if netns == settings.netns else None) for a in before])
        if one is not datapath:
            one.note([])
    if datapath.predecessor is not None:
        libbpf.membarrier()  # from here on no packet is counted by the old programs
    generic = any(a.xdp == "generic" for a in attached)
    datapath.handle.config.values["flags"][0] = Flag.AGGREGATED if generic else 0
    datapath.interfaces = {a.name: a.how for a in attached}
    again = [a.name for a in attached if a.fresh]
    if datapath.adopted and again:
        datapath.notices.append("attached, as they were not before: " + ", ".join(again))


def _leftover(noted: Attached, hooks: str | None) -> Attached:
    """What of an earlier attachment is not wanted now that the interface is watched at `hooks` (None: not at all)."""
    ingress, egress = hooks in (None, "egress"), hooks in (None, "ingress")
    return replace(noted, xdp=noted.xdp if ingress else "", tc=noted.tc and egress, clsact=noted.clsact and egress)


def _write_watched(datapath: "BccDatapath", ifindexes: list[int]) -> None:
    watched = datapath.handle.watched
    there, _ = watched.read()
    wanted = np.array(ifindexes, "<u4")
    watched.put(wanted, np.ones(len(wanted), "<u4"))
    watched.remove(there[~np.isin(there, wanted)])
