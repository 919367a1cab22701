"""Which interfaces a datapath watches: put right at its start, and followed while it runs.

Interfaces come and go (containers, tunnels, a driver reloaded) and get other names; a program goes with its interface.
The kernel tells that something changed; then all are listed anew and compared with what is noted as attached, so that
nothing depends on having heard of every change.
"""

import os
import select
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from collector.errors import KernelError
from collector.kernel import attach, bpflink, libc, netlink
from collector.kernel.attach import Attached, Programs
from collector.kernel.interface import DatapathSettings, Interface, Look
from collector.kernel.netns import NETNS_DIR, Link, inside, links
from collector.kernel.patterns import is_pattern, waiting
from schemas.codes import Flag

if TYPE_CHECKING:
    from collector.kernel.datapath import PinnedDatapath

NOT_WATCHED = "not watched"
AT_ONCE = 50  # interfaces attached to in one look: some 10 ms each
_NS = 1_000_000_000


class Watch:
    """The interfaces that `settings` ask for, of one datapath."""

    def __init__(self, settings: DatapathSettings) -> None:
        """Raises KernelError for what cannot be watched. `absent`: what was asked for by name and is not there."""
        self.settings = settings
        self.changes = Changes(settings.netns)
        self.there: dict[str, Link] = {}
        self.went: set[int] = set()  # between the last look and the one before, by ifindex
        try:
            self._list()
            self.wanted, self.absent = attach.wanted_links(settings.interfaces, self.there)
        except KernelError:
            self.changes.close()
            raise

    @property
    def named(self) -> dict[Interface, Link]:
        """Of what is wanted, what was asked for by its name."""
        names = {i.name for i in self.settings.interfaces}
        return {interface: link for interface, link in self.wanted.items() if link.name in names}

    @property
    def waiting(self) -> list[str]:
        """Patterns that no interface matches yet."""
        return waiting(self.settings.interfaces, self.there)

    def begin(self, datapath: "PinnedDatapath") -> None:
        """Attach to all that is wanted, take off what is not any more, note what is where. Raises KernelError."""
        chain = [datapath]
        while (older := chain[-1].predecessor) is not None:
            chain.append(older)
        for one in chain:
            netns, elsewhere = one.attached()
            # One killed before it could take note has what this start would have attached.
            if netns not in (self.settings.netns, None):  # first: in two namespaces ifindexes may be the same
                one.take_off(netns, elsewhere)
                self._left_behind(one)
        noted = [one.attached()[1] for one in chain]
        clsact = {a.ifindex for before in noted for a in before if a.clsact}
        attached, failed = self._put_on(
            datapath, self.wanted, [], programs=datapath.programs, clsact=clsact, notice=datapath.notices.append
        )
        datapath.notices += [f"{name} is not watched: {error}" for name, error in failed.items()]
        for one, before in zip(chain, noted, strict=True):
            one.take_off(self.settings.netns, self._leftovers(before))
            if one is not datapath:
                one.note(self.settings.netns, [])
        if datapath.predecessor is not None:
            libc.membarrier()  # from here on no packet is counted by the old programs
        again = [a for a in attached if a.fresh]
        if datapath.adopted and again:
            datapath.notices.append("attached, as they were not before: " + ", ".join(a.name for a in again))
            self._let_midstream(datapath)

    def look_after(self, datapath: "PinnedDatapath") -> Look:
        """Watch what has come and let go of what went; see collector.kernel.interface.Datapath."""
        look, before = Look(), dict(datapath.interfaces)
        known, bridges = {link.ifindex for link in self.there.values()}, _bridges(self.there)
        noted = datapath.attached()[1]
        try:
            if not self._list():
                noted = self._left_behind(datapath)
            self.wanted, self.absent = attach.wanted_links(self.settings.interfaces, self.there)
        except KernelError as error:
            if not self.settings.netns or (NETNS_DIR / self.settings.netns).exists():
                raise  # it is there, and so is what is attached
            self.there = {}
            self.changes.forget()  # or it would stay for our sake
            self._left_behind(datapath)
            look.unwatched |= dict.fromkeys(self._names(), f"gone ({error})")
            datapath.interfaces = dict.fromkeys(self._names(), NOT_WATCHED)
            return look
        asked = {link.ifindex: interface for interface, link in self.wanted.items()}
        stayed = [a for a in noted if a.ifindex not in self.went]  # another may have the number by now
        right = {a.ifindex: a for a in stayed if a.ifindex in asked and _hooks(a) == asked[a.ifindex].hooks}
        new = {interface: link for interface, link in self.wanted.items() if link.ifindex not in right}
        more = len(new) > AT_ONCE  # others wait for this thread, too: the rest is for the next look
        new = dict(islice(new.items(), AT_ONCE))
        kept = [replace(a, name=asked[a.ifindex].name, fresh=False) for a in right.values()]
        if new or kept != noted or bridges != _bridges(self.there):
            clsact = {a.ifindex for a in stayed if a.clsact}
            attached, failed = self._put_on(
                datapath, new, kept, programs=datapath.programs, clsact=clsact, notice=look.notices.append,
                all_may_fail=True,
            )  # fmt: skip
            datapath.take_off(self.settings.netns, self._leftovers(noted))
            look.unwatched |= {name: f"not watched: {error}" for name, error in failed.items()}
            if any(a.fresh and a.ifindex in known - self.went for a in attached):
                self._let_midstream(datapath)
        self._missing(datapath, noted, look)
        if more:  # not if this look failed: the next would fail at once, and so on
            self.changes.tell()
        datapath.interfaces |= dict.fromkeys(look.unwatched, NOT_WATCHED)
        on = [{name for name, how in of.items() if how != NOT_WATCHED} for of in (before, datapath.interfaces)]
        look.notices += [
            f"{name} was made anew, and is watched again" for name in self._names() if name in on[1] - on[0]
        ]
        look.came, look.went = sorted(on[1] - on[0]), sorted(on[0] - on[1] - set(look.unwatched))
        return look

    def stop(self) -> None:
        """Nothing is told of any more; `changes` stays open, and is never readable again."""
        self.changes.forget()

    def close(self) -> None:
        self.changes.close()

    def _list(self) -> bool:
        """False: the namespace is another one than at the last look."""
        same, self.went = self.changes.empty()  # first: what changes while we list is heard of
        self.there = inside(self.settings.netns, links)
        return same

    def _names(self) -> list[str]:
        return [i.name for i in self.settings.interfaces if not is_pattern(i.name)]

    def _leftovers(self, noted: Collection[Attached]) -> list[Attached]:
        """What of earlier attachments is not wanted any more."""
        hooks = {link.ifindex: interface.hooks for interface, link in self.wanted.items()}
        out = []
        for one in noted:
            ingress, egress = hooks.get(one.ifindex) in (None, "egress"), hooks.get(one.ifindex) in (None, "ingress")
            out.append(replace(one, xdp=one.xdp if ingress else "", tc=one.tc and egress, clsact=one.clsact and egress))
        return out

    def _put_on(
        self,
        datapath: "PinnedDatapath",
        new: Mapping[Interface, Link],
        kept: list[Attached],
        *,
        programs: Programs,
        clsact: Collection[int],
        notice: Callable[[str], None],
        all_may_fail: bool = False,
    ) -> tuple[list[Attached], dict[str, KernelError]]:
        """Attach to `new`, note it with `kept`, and write what goes with it; as attach.attach()."""
        may_fail = {link.name for link in new.values()} - (set() if all_may_fail else set(self._names()))
        there, ingress = self.there.values(), {a.ifindex for a in kept if a.xdp}
        old = set(datapath.handle.watched.read()[0].tolist()) & {link.ifindex for link in there}
        told: list[str] = []
        # Egress leaves alone what came in where ingress sees it: told of a little too early, judged once, not twice.
        coming = {link.ifindex for interface, link in new.items() if interface.hooks != "egress"}
        _write_watched(datapath, old | attach.watched_ifindexes(ingress | coming, there, told.append))
        try:
            attached, failed = inside(
                self.settings.netns, lambda: attach.attach(new, programs, clsact, notice, may_fail)
            )
        except BaseException:
            _write_watched(datapath, old)
            raise
        attached = sorted([*kept, *attached], key=lambda a: a.name)
        datapath.note(self.settings.netns, attached)  # first: whoever fails from here on knows what to take off
        ingress = {a.ifindex for a in attached if a.xdp}
        told = []
        _write_watched(datapath, attach.watched_ifindexes(ingress, there, told.append))
        for line in told:
            if line not in datapath.notices:
                notice(line)
        generic = any(a.xdp == "generic" for a in attached)
        datapath.handle.config.values["flags"][0] = Flag.AGGREGATED if generic else 0
        datapath.interfaces = {a.name: a.how for a in attached} | dict.fromkeys(failed, NOT_WATCHED)
        datapath.held_by = {a.name: a.by for a in attached}
        return attached, failed

    def _left_behind(self, datapath: "PinnedDatapath") -> list[Attached]:
        """Let go of what is in a namespace that went, or is not ours any more. What is noted from now on: nothing."""
        for link in bpflink.read([datapath.directory]):
            bpflink.drop(link)
        datapath.note(self.settings.netns, [])
        return []

    def _missing(self, datapath: "PinnedDatapath", noted: Collection[Attached], look: Look) -> None:
        """What is asked for by name and not there, and what somebody took a program off."""
        now = {link.ifindex: link.name for link in self.there.values()}
        was = {a.name: a.ifindex for a in noted}
        for name in self.absent:
            called = now.get(was.get(name, 0))
            look.unwatched[name] = "gone" if called is None else f"gone: it is called {called} now"
        for link in bpflink.read([datapath.directory]):
            if not link.ifindex:
                bpflink.drop(link)  # its interface went
        attached = datapath.attached()[1]
        for name in inside(self.settings.netns, lambda: attach.taken_off(attached, datapath.programs)):
            look.unwatched[name] = "without its program: somebody took it off"

    def _let_midstream(self, datapath: "PinnedDatapath") -> None:
        """Connections that an interface had before it was watched go on, as they do at a first start."""
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + self.settings.midstream_seconds * _NS
        datapath.handle.config.values["midstream_until"][0] = until


class Changes:
    """Readable once an interface of the namespace came, went or changed; also if the namespace itself was made anew."""

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._told, select.EPOLLIN)
        self._changes: netlink.Changes | None = None
        self._of = (0, 0)

    def fileno(self) -> int:
        return self._poll.fileno()

    def empty(self) -> tuple[bool, set[int]]:
        """(False: in another namespace of this name than before; numbers of interfaces that went until now).

        What comes from here on is heard of. Raises KernelError if there is no such namespace.
        """
        went: set[int] = set()
        with suppress(BlockingIOError):
            os.eventfd_read(self._told)
        if self._changes is not None:
            went = self._changes.empty()
        of = (0, 0)
        if self._netns:
            with suppress(OSError):
                stat = (NETNS_DIR / self._netns).stat()
                of = (stat.st_dev, stat.st_ino)
        same = self._changes is not None and of == self._of
        if not same:
            changes = inside(self._netns, lambda: netlink.Changes(netlink.LINKS))
            self.forget()
            self._poll.register(changes, select.EPOLLIN)
            self._changes, self._of = changes, of
        return same, went

    def tell(self) -> None:
        """Be readable, as if something had changed."""
        os.eventfd_write(self._told, 1)

    def forget(self) -> None:
        """Hear of nothing, until `empty`."""
        if self._changes is not None:
            self._poll.unregister(self._changes)
            self._changes.close()
            self._changes = None

    def close(self) -> None:
        self.forget()
        self._poll.close()
        os.close(self._told)


def _hooks(attached: Attached) -> str:
    return "both" if attached.xdp and attached.tc else "ingress" if attached.xdp else "egress"


def _bridges(there: Mapping[str, Link]) -> list[tuple[int, int]]:
    """(port, bridge) of every bridge port: what `watched_ifindexes` looks at beside what is attached."""
    bridges = {link.ifindex for link in there.values() if link.kind == "bridge"}
    return sorted((link.ifindex, link.master) for link in there.values() if link.master in bridges)


def _write_watched(datapath: "PinnedDatapath", wanted: Collection[int]) -> None:
    watched = datapath.handle.watched
    room = watched.info.max_entries
    if len(wanted) > room:
        raise KernelError(f"{len(wanted)} interfaces to watch: {room} at most can be", "narrow the pattern")
    there, _ = watched.read()
    watched.remove(there[~np.isin(there, np.array(sorted(wanted), "<u4"))])  # first, for room
    new = np.array(sorted(set(wanted) - set(there.tolist())), "<u4")
    watched.put(new, np.ones(len(new), "<u4"))
