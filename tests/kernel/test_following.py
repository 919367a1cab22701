"""Interfaces that come later: many at once, none missed; some that cannot be watched; some that were there before."""

import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from collector.errors import KernelError
from collector.kernel import Interface, bpflink, libbpf, loader_core, netlink, probes, watching
from collector.kernel.datapath import PinnedDatapath
from collector.kernel.netns import inside, links
from schemas.codes import Flag
from schemas.maps import MAPS
from tests.support.datapath_suite import told
from tests.support.kernel import instance
from tests.support.netns import Lab, ip, wait_for
from tests.support.place import Place

PATTERN = (Interface("veth*"),)
MANY = 200


@pytest.fixture
def place() -> Iterator[Place]:
    with instance() as pins, Lab() as lab:
        place = Place(lab, pins)
        yield place
        place.close()


def burst(place: Place, first: int = 100, n: int = MANY) -> list[str]:
    """n veth pairs in one run of `ip`; both ends are called veth…"""
    lines = [f"link add veth{i}a type veth peer name veth{i}b" for i in range(first, first + n)]
    ip("-batch", "-", netns=place.netns, lines=lines)
    return [f"veth{i}{end}" for i in range(first, first + n) for end in "ab"]


def on_the_wire(place: Place) -> set[str]:
    """Interfaces that have an XDP and an egress program."""

    def look() -> set[str]:
        return {
            name for name, link in links().items()
            if not link.loopback and libbpf.xdp_query(link.ifindex).any and libbpf.tcx_query(link.ifindex)
        }  # fmt: skip

    return inside(place.netns, look)


def settle(datapath: PinnedDatapath) -> None:
    """As the collector does: a look whenever the kernel tells of a change, until it tells of none."""
    with select.epoll() as poll:
        poll.register(datapath.interface_changes(), select.EPOLLIN)
        while poll.poll(0.2):
            datapath.look_after()


def test_hundreds_at_once_are_all_watched_and_all_let_go(place: Place) -> None:
    datapath = place.open(interfaces=PATTERN)
    names = burst(place)
    settle(datapath)
    assert set(datapath.interfaces) == {"veth0", *names} == on_the_wire(place)
    assert set(datapath.held_by.values()) == {"link"}
    assert watching.AT_ONCE < 2 * MANY
    assert len(datapath.handle.watched.read()[0]) == 1 + 2 * MANY
    ip("-batch", "-", netns=place.netns, lines=[f"link delete {name}" for name in names if name.endswith("a")])
    settle(datapath)
    assert datapath.interfaces == {"veth0": "native+egress"}
    assert len(list(place.pins.glob("link-*"))) == 2
    assert datapath.handle.watched.read()[0].tolist() == [inside(place.netns, links)["veth0"].ifindex]


def test_word_that_the_kernel_could_not_deliver_is_not_needed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that holds two messages: the kernel drops the rest and says ENOBUFS."""
    real = netlink._opened

    def small(groups: int) -> socket.socket:
        opened = real(groups)
        if groups:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        return opened

    monkeypatch.setattr(netlink, "_opened", small)
    datapath = place.open(interfaces=PATTERN)
    names = burst(place, n=30)
    overrun = datapath.watch.changes._changes._socket  # type: ignore[union-attr]
    assert overrun.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 105  # ENOBUFS; reading it clears it
    settle(datapath)
    assert set(datapath.interfaces) == {"veth0", *names} == on_the_wire(place)


def test_a_table_that_changes_while_it_is_read_is_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = netlink._answers, []

    def interrupted(opened: socket.socket) -> Iterator[bytes]:
        tries.append(1)
        if len(tries) < 3:
            raise netlink._Interrupted
        return real(opened)

    monkeypatch.setattr(netlink, "_answers", interrupted)
    assert set(inside(place.netns, links)) == {"lo", "veth0"}
    assert len(tries) == 3


def test_a_table_that_cannot_be_read_lets_nothing_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: socket.socket) -> Iterator[bytes]:
        raise netlink._Interrupted

    datapath = place.open()
    before = (place.xdp(), place.tcx(), datapath.attached(), datapath.interfaces)
    with monkeypatch.context() as patched:
        patched.setattr(netlink, "_answers", interrupted)
        with pytest.raises(KernelError, match=r"^netlink: the table changes faster than it can be read$"):
            datapath.look_after()
    assert (place.xdp(), place.tcx(), datapath.attached(), datapath.interfaces) == before
    assert datapath.look_after().unwatched == {}


def test_a_namespace_that_cannot_be_entered_is_not_asked_again_and_again(place: Place) -> None:
    """Its name is there, unmounted: so it is while `ip netns add` makes it."""
    datapath = place.open(interfaces=PATTERN)
    path = watching.NETNS_DIR / place.netns
    subprocess.run(["umount", str(path)], check=True)
    with select.epoll() as settled:
        settled.register(datapath.interface_changes(), select.EPOLLIN)
        place.wire.close()
        ip("link", "delete", "veth1", netns=place.netns.removesuffix("-in") + "-out")
        assert settled.poll(5)
        with pytest.raises(KernelError, match=r"^entering the network namespace: Invalid argument$"):
            datapath.look_after()
        assert settled.poll(0) == []
    path.unlink()
    assert datapath.look_after().unwatched == {}
    assert datapath.interfaces == {}
    ip("netns", "add", place.netns)


def test_more_than_there_is_room_for_is_said_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tuple(replace(one, entries=lambda _: 3) if one.name == "watched" else one for one in MAPS)
    monkeypatch.setattr(loader_core, "DESCRIBED", maps)
    datapath = place.open(interfaces=PATTERN, loader="core")
    names = burst(place, n=1)
    settle(datapath)
    assert set(datapath.interfaces) == {"veth0", *names} == on_the_wire(place)
    ip("link", "delete", names[0], netns=place.netns)
    names = burst(place, first=101, n=1)  # as many come as go, in one look
    settle(datapath)
    assert set(datapath.interfaces) == {"veth0", *names} == on_the_wire(place)
    monkeypatch.setattr(watching, "AT_ONCE", 1)
    burst(place, first=200, n=1)
    with pytest.raises(KernelError, match=r"^4 interfaces to watch: 3 at most can be$"):
        datapath.look_after()
    settled = select.epoll()
    settled.register(datapath.interface_changes(), select.EPOLLIN)
    assert settled.poll(0) == []  # the next look waits for a change
    settled.close()
    assert set(datapath.interfaces) == {"veth0", *names} == on_the_wire(place)


def test_one_that_cannot_be_watched_does_not_stop_the_others(place: Place) -> None:
    datapath = place.open(interfaces=PATTERN)
    theirs = libbpf.program_load(libbpf.PROGRAM_TYPES["xdp"], "theirs", struct.pack("=2Q", 0xB7, 0x95))
    number = libbpf.program_info(theirs).id
    ip("link", "add", "other1", "type", "veth", "peer", "name", "veth1", netns=place.netns)
    ip("link", "set", "veth1", "name", "other2", netns=place.netns)
    inside(place.netns, lambda: libbpf.xdp_attach(links()["other2"].ifindex, theirs, libbpf.XDP_FLAGS_DRV_MODE))
    ip("link", "set", "other2", "name", "veth1", netns=place.netns)
    ip("link", "set", "other1", "name", "veth2", netns=place.netns)
    look = told(datapath)
    assert look.came == ["veth2"]
    assert look.unwatched == {"veth1": f"not watched: veth1 already has an XDP program (id {number}, name theirs)"}
    assert datapath.interfaces == {"veth0": "native+egress", "veth1": "not watched", "veth2": "native+egress"}
    assert (place.xdp("veth1").any, place.tc("veth1")) == (number, 0)
    datapath.close()
    datapath = place.open(interfaces=PATTERN)  # nor does it stop a start
    assert datapath.interfaces == {"veth0": "native+egress", "veth1": "not watched", "veth2": "native+egress"}
    assert any(notice.startswith("veth1 is not watched: veth1 already has") for notice in datapath.notices)
    datapath.detach()
    assert place.xdp("veth1").any == number


def test_loopback_is_no_match(place: Place) -> None:
    datapath = place.open(interfaces=(Interface("*"),))
    assert datapath.interfaces == {"veth0": "native+egress"}


def test_a_bridge_made_of_what_came_is_watched_too(place: Place) -> None:
    datapath = place.open(interfaces=PATTERN)
    burst(place, n=1)
    ip("link", "add", "br0", "type", "bridge", netns=place.netns)
    told(datapath)
    for port in ("veth100a", "veth0"):
        ip("link", "set", port, "master", "br0", netns=place.netns)
    told(datapath)
    there = inside(place.netns, links)
    watched = set(datapath.handle.watched.read()[0].tolist())
    assert watched == {there[name].ifindex for name in ("veth0", "veth100a", "veth100b", "br0")}
    ip("link", "add", "tap0", "master", "br0", "type", "veth", "peer", "tap1", netns=place.netns)
    look = told(datapath)
    assert look.notices == ["br0: its port tap0 is not watched, so what br0 routes may be judged twice"]
    assert set(datapath.handle.watched.read()[0].tolist()) == watched - {there["br0"].ifindex}


def midstream_until(datapath: PinnedDatapath) -> int:
    return int(datapath.handle.config.values["midstream_until"][0])


def test_connections_that_were_there_before_go_on(place: Place) -> None:
    """A new interface has none; one that only got a new name may have some, and so may those of a wider start."""
    datapath = place.open(interfaces=PATTERN, midstream_seconds=600)
    first = midstream_until(datapath)
    burst(place, n=1)
    assert len(told(datapath).came) == 2
    assert midstream_until(datapath) == first
    ip("link", "add", "tap0", "type", "veth", "peer", "tap1", netns=place.netns)
    told(datapath)
    before = time.monotonic_ns()
    ip("link", "set", "tap0", "name", "veth9", netns=place.netns)
    assert told(datapath).came == ["veth9"]
    renamed = midstream_until(datapath)
    assert before + 600 * 10**9 <= renamed <= time.monotonic_ns() + 600 * 10**9
    datapath.close()
    datapath = place.open(interfaces=PATTERN, midstream_seconds=600)
    assert midstream_until(datapath) == renamed
    datapath.close()
    datapath = place.open(interfaces=(*PATTERN, Interface("tap1")), midstream_seconds=600)
    assert midstream_until(datapath) > renamed


def test_generic_xdp_that_came_later_marks_what_it_counts(place: Place) -> None:
    datapath = place.open(interfaces=PATTERN)
    ip("link", "add", "veth9", "mtu", "9000", "type", "veth", "peer", "tap9", "mtu", "9000", netns=place.netns)
    (notice,) = told(datapath).notices
    assert notice.startswith("veth9: generic XDP, the driver refused native (Numerical result out of range); ")
    assert datapath.interfaces["veth9"] == "generic+egress"
    assert datapath.handle.config.values["flags"][0] == Flag.AGGREGATED
    ip("link", "delete", "veth9", netns=place.netns)
    told(datapath)
    assert datapath.handle.config.values["flags"][0] == 0


def test_one_moved_to_another_namespace_is_let_go_there(place: Place) -> None:
    datapath = place.open(interfaces=PATTERN)
    outer = place.netns.removesuffix("-in") + "-out"
    burst(place, n=1)
    told(datapath)
    ip("link", "set", "veth100b", "netns", outer, netns=place.netns)
    assert told(datapath).went == ["veth100b"]
    ifindex = inside(outer, lambda: links()["veth100b"].ifindex)
    assert inside(outer, lambda: (libbpf.xdp_query(ifindex).any, libbpf.tcx_query(ifindex))) == (0, [])
    assert len(list(place.pins.glob("link-*"))) == 4


def test_a_namespace_made_anew_is_followed_again(place: Place) -> None:
    datapath = place.open(interfaces=PATTERN)
    ip("netns", "delete", place.netns)
    assert datapath.look_after().unwatched == {}
    assert datapath.interfaces == {}
    ip("netns", "add", place.netns)
    burst(place, n=1)
    assert datapath.look_after().came == ["veth100a", "veth100b"]
    burst(place, first=200, n=1)
    wait_for(lambda: told(datapath).came, "word of the others")
    assert set(datapath.interfaces) == {"veth100a", "veth100b", "veth200a", "veth200b"}


def test_a_start_in_another_namespace_moves_to_it_whatever_the_numbers(place: Place) -> None:
    """Both interfaces are number 2, as those of containers are."""
    place.open().close()
    there = place.lab.namespace("other")
    ip("link", "add", "veth0", "index", "2", "type", "veth", "peer", "name", "peer", "index", "9", netns=there)
    assert inside(place.netns, links)["veth0"].ifindex == 2
    datapath = place.open(netns=there)
    xdp, egress = (datapath.handle.programs[name] for name in ("xdp_ingress", "tc_egress"))
    assert datapath.adopted
    assert datapath.interfaces == {"veth0": "native+egress"}
    assert inside(there, lambda: (libbpf.xdp_query(2).any, libbpf.tcx_query(2))) == (
        libbpf.program_info(xdp).id, [libbpf.program_info(egress).id],
    )  # fmt: skip
    assert (place.xdp().any, place.tcx()) == (0, [])
    assert {(link.hook, link.ifindex) for link in bpflink.read([place.pins])} == {("egress", 2), ("xdp", 2)}
    assert datapath.look_after().unwatched == {}


@pytest.mark.parametrize("without", ["", "xdp_link,tcx_link"])
def test_one_made_anew_with_the_same_number_is_watched(
    place: Place, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(probes.PRETEND, without)
    datapath = place.open()
    before, held_by = place.xdp().any, datapath.held_by
    ifindex = str(inside(place.netns, links)["veth0"].ifindex)
    lines = [
        "link delete veth0",
        f"link add veth0 index {ifindex} type veth peer name peer",
        "link add bridge type bridge", "link set peer master bridge", "link set peer nomaster",
    ]  # fmt: skip
    ip("-batch", "-", netns=place.netns, lines=lines)
    assert place.xdp().any == 0
    look = datapath.look_after()
    assert (look.unwatched, datapath.interfaces, datapath.held_by) == ({}, {"veth0": "native+egress"}, held_by)
    assert place.xdp().any == before and place.tc() > 0
    look = datapath.look_after()
    assert (look.unwatched, look.came, look.went) == ({}, [], [])
    datapath.detach()
    assert (place.xdp().any, place.tc(), "clsact" in place.qdiscs()) == (0, 0, False)
