"""What holds the programs on an interface: bpf_links where the kernel has them, netlink where not."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.errors import ForeignProgram, KernelError
from collector.kernel import Interface, bpflink, libbpf, probes, watching
from collector.kernel.datapath import PinnedDatapath
from collector.kernel.netns import inside, links
from collector.kernel.removal import remove_datapath
from schemas.codes import Flag
from tests.support.datapath_suite import drain, ports
from tests.support.kernel import KNOBS, instance, udp_frame
from tests.support.netns import Lab, ip, wait_for
from tests.support.place import Place
from ztlens.demo.netns import NetworkError

ROOT = Path(__file__).resolve().parents[2]
LARGER = KNOBS | {"RING_BYTES": 131_072}
OWNER = """
import json
import sys
from pathlib import Path
from typing import Any
from collector.kernel import DatapathSettings, Interface, open_datapath
pins, netns, knobs = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
datapath = open_datapath(DatapathSettings(pins, (Interface("veth*"),), netns=netns, knobs=knobs))
print(json.dumps(datapath.held_by), flush=True)
sys.stdin.readline()
"""
HELD = {
    "": "link", "tcx_link": "link+netlink", "xdp_link": "netlink+link", "xdp_link,tcx_link": "netlink",
}  # fmt: skip
"""What the kernel lacks → what then holds both hooks."""
PASS = struct.pack("=2Q", 0xB7, 0x95)
"""A program that answers 0, TCX_PASS: it ends the chain."""
SENDER = """
import select
import socket
import sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("veth1", 0))
sent = 0
print("go", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    wire.send(bytes.fromhex(sys.argv[1]))
    sent += 1
print(sent)
"""


@pytest.fixture(params=HELD)
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(probes.PRETEND, request.param)
    return str(request.param)


@pytest.fixture
def place() -> Iterator[Place]:
    with instance() as pins, Lab() as lab:
        place = Place(lab, pins)
        yield place
        place.close()


def pinned(place: Place) -> list[str]:
    return sorted(link.hook for link in bpflink.read([place.pins]))


def state(place: Place) -> tuple[int, int, bool, list[str]]:
    """(XDP program, egress program, whether a clsact is there, hooks of pinned links)."""
    return place.xdp().any, place.tc(), "clsact" in place.qdiscs(), pinned(place) if place.pins.exists() else []


def test_what_holds_is_said_noted_and_taken_away(place: Place, lacking: str) -> None:
    datapath = place.open()
    assert (datapath.interfaces, datapath.held_by) == ({"veth0": "native+egress"}, {"veth0": HELD[lacking]})
    xdp, tc, clsact, hooks = state(place)
    assert xdp and tc
    assert clsact == ("tcx_link" in lacking)
    assert hooks == [hook for hook, name in (("egress", "tcx_link"), ("xdp", "xdp_link")) if name not in lacking]
    (noted,) = datapath.handle.attachments()["attached"]
    assert (noted["xdp_by"], noted["tc_by"]) == tuple(
        "netlink" if name in lacking else "link" for name in ("xdp_link", "tcx_link")
    )
    datapath.detach()
    datapath.unpin()
    assert state(place) == (0, 0, False, [])
    assert not place.pins.exists()


def test_a_killed_owner_leaves_it_and_the_next_adopts_it(place: Place, lacking: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place.pins), place.netns, json.dumps(KNOBS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert owner.stdout is not None
    assert json.loads(owner.stdout.readline()) == {"veth0": HELD[lacking]}
    owner.kill()
    owner.communicate()
    before = state(place)
    assert before[0] and before[1]
    datapath = place.open()
    assert (datapath.adopted, datapath.held_by) == (True, {"veth0": HELD[lacking]})
    assert state(place) == before
    place.packets(3)
    wait_for(lambda: datapath.counters()["parsed"] == 3, "3 packets")
    datapath.close()
    assert remove_datapath(place.pins) == 3
    assert state(place) == (0, 0, False, [])


def test_another_version_takes_the_same_place(place: Place, lacking: str) -> None:
    """Packets go on meanwhile: each is counted by the old datapath or by the new one."""
    place.open().close()
    before = state(place)
    names = {link.path.name for link in bpflink.read([place.pins])}
    outer = place.netns.removesuffix("-in") + "-out"
    sender = subprocess.Popen(
        ["ip", "netns", "exec", outer, sys.executable, "-c", SENDER, udp_frame("10.0.0.1", 1, "10.0.0.2", 53).hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert sender.stdout is not None
    assert sender.stdout.readline() == "go\n"
    datapath = place.open(knobs=LARGER)
    wait_for(lambda: datapath.counters()["parsed"] > 0, "packets for the new one")
    sent = int(sender.communicate("\n")[0])
    old = datapath.predecessor
    assert isinstance(old, PinnedDatapath)
    assert (datapath.adopted, datapath.held_by) == (False, {"veth0": HELD[lacking]})
    after = state(place)
    assert after[2:] == before[2:] and not {*after[:2]} & {*before[:2]}
    assert {link.path.name for link in bpflink.read([place.pins])} == names  # the same links, moved
    assert bpflink.read([old.directory]) == []
    wait_for(lambda: datapath.counters()["parsed"] + old.counters()["parsed"] >= sent, f"{sent} packets")
    assert datapath.counters()["parsed"] + old.counters()["parsed"] == sent
    assert sent > datapath.counters()["parsed"]
    old.detach()
    old.unpin()
    assert state(place) == after


def test_an_owner_killed_while_replacing_is_succeeded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links run the new program, and are pinned beside the old one."""
    place.open().close()
    monkeypatch.setattr(bpflink, "move", lambda *_: None)
    first = place.open(knobs=LARGER)
    assert first.predecessor is not None
    assert pinned(place) == []
    monkeypatch.undo()
    first.close()
    again = place.open(knobs=LARGER)
    assert (again.adopted, again.held_by, pinned(place)) == (True, {"veth0": "link"}, ["egress", "xdp"])
    assert isinstance(again.predecessor, PinnedDatapath)
    again.predecessor.unpin()
    assert place.xdp().any and place.tc()


def test_what_netlink_holds_is_replaced_by_netlink_and_stays_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a version, or a kernel, without links: the kernel cannot make a link of it without a moment unjudged."""
    monkeypatch.setenv(probes.PRETEND, "xdp_link,tcx_link")
    place.open().close()
    monkeypatch.delenv(probes.PRETEND)
    before = state(place)
    adopted = place.open()
    assert (adopted.held_by, state(place)) == ({"veth0": "netlink"}, before)
    adopted.close()
    datapath = place.open(knobs=LARGER)
    assert (datapath.held_by, place.tcx(), pinned(place)) == ({"veth0": "netlink"}, [], [])
    assert not {place.xdp().any, place.tc()} & {*before[:2]}
    datapath.detach()
    assert state(place) == (0, 0, False, [])


def test_links_of_a_newer_kernel_are_adopted_where_they_cannot_be_made(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.open().close()
    before = state(place)
    monkeypatch.setenv(probes.PRETEND, "xdp_link,tcx_link")
    datapath = place.open()
    assert (datapath.held_by, state(place)) == ({"veth0": "link"}, before)
    datapath.detach()
    assert state(place) == (0, 0, False, [])


def test_nobody_takes_a_link_off_by_netlink(place: Place) -> None:
    place.open()
    before = state(place)
    with pytest.raises(NetworkError, match="Can't replace active BPF XDP link"):
        ip("link", "set", "veth0", "xdp", "off", netns=place.netns)
    assert state(place) == before


def test_a_link_forced_off_is_told_and_attached_by_the_next_start(place: Place) -> None:
    datapath = place.open()
    for link in bpflink.read([place.pins]):
        opened = libbpf.obj_get(str(link.path))
        libbpf.link_detach(opened)
        os.close(opened)
    assert datapath.look_after().unwatched == {"veth0": "without its program: somebody took it off"}
    assert datapath.interfaces == {"veth0": "not watched"}
    assert pinned(place) == []
    datapath.close()
    datapath = place.open()
    assert (datapath.adopted, datapath.interfaces) == (True, {"veth0": "native+egress"})
    assert any("veth0" in notice for notice in datapath.notices)
    assert pinned(place) == ["egress", "xdp"]


def test_an_interface_that_went_leaves_no_link(place: Place) -> None:
    datapath = place.open()
    ip("link", "delete", "veth0", netns=place.netns)
    assert datapath.look_after().unwatched == {"veth0": "gone"}
    assert pinned(place) == []
    assert datapath.attached()[1] == []


def test_somebody_elses_tcx_programs_run_beside_ours(place: Place) -> None:
    theirs = libbpf.program_load(libbpf.PROGRAM_TYPES["tc"], "theirs", PASS)
    ifindex = inside(place.netns, lambda: links()["veth0"].ifindex)
    held = inside(place.netns, lambda: libbpf.link_create(theirs, ifindex, "egress", 0))
    number = libbpf.program_info(theirs).id
    try:
        datapath = place.open()
        ours = libbpf.program_info(datapath.handle.programs["tc_egress"]).id
        assert place.tcx() == [ours, number]  # first: whatever theirs answers, ours has judged
        datapath.detach()
        assert place.tcx() == [number]
    finally:
        os.close(held)
        os.close(theirs)


def test_what_takes_a_link_off_is_said(place: Place) -> None:
    theirs = libbpf.program_load(libbpf.PROGRAM_TYPES["xdp"], "theirs", PASS)
    ifindex = inside(place.netns, lambda: links()["veth0"].ifindex)
    held = inside(place.netns, lambda: libbpf.link_create(theirs, ifindex, "xdp", libbpf.XDP_FLAGS_DRV_MODE))
    try:
        with pytest.raises(ForeignProgram, match="veth0 already has an XDP program") as caught:
            place.open()
        number = libbpf.link_info(held).id
        assert caught.value.hint == f"it is left alone; if nobody needs it: bpftool link detach id {number}"
    finally:
        os.close(held)
        os.close(theirs)
    place.open()


def test_another_name_of_an_interface_is_told_from_none(place: Place) -> None:
    ip("link", "property", "add", "dev", "veth0", "altname", "uplink", "altname", "to-the-world", netns=place.netns)
    with pytest.raises(KernelError, match=r"^to-the-world is another name of veth0$") as caught:
        place.open(interfaces=(Interface("to-the-world"),))
    assert caught.value.hint == "interfaces go by their first: veth0"
    assert place.open().interfaces == {"veth0": "native+egress"}


def test_a_second_instance_is_refused_on_either_hook(place: Place, lacking: str) -> None:
    place.open(interfaces=(Interface("veth0", "egress"),))
    with instance() as pins, pytest.raises(ForeignProgram, match="veth0 already has a TC egress program") as caught:
        place.open(pins=pins, interfaces=(Interface("veth0", "egress"),))
    assert "another ztlens instance" in caught.value.hint
    assert re.search("bpftool link detach id [1-9]|tc filter del dev veth0 egress", caught.value.hint)


def test_a_large_mtu_is_held_by_a_generic_link(lacking: str) -> None:
    with instance() as pins, Lab() as lab:
        place = Place(lab, pins, mtu=9000)
        datapath = place.open()
        assert datapath.interfaces == {"veth0": "generic+egress"}
        assert datapath.held_by == {"veth0": HELD[lacking]}
        assert place.xdp().generic
        place.packets(3)
        wait_for(lambda: datapath.produced, "events")
        assert ports(rows := drain(datapath)) == [0, 1, 2]
        assert set(rows["flags"] & Flag.AGGREGATED) == {Flag.AGGREGATED}
        place.close()
        again = place.open(knobs=LARGER)
        assert again.interfaces == {"veth0": "generic+egress"}
        again.detach()
        assert place.xdp().any == 0
        place.close()


def test_a_start_that_fails_behind_the_attachment_is_undone(
    place: Place, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = watching._write_watched, []

    def second_fails(*arguments: Any) -> None:
        calls.append(place.xdp().any)
        if len(calls) == 2:
            raise KernelError("no")
        real(*arguments)

    monkeypatch.setattr(watching, "_write_watched", second_fails)
    with pytest.raises(KernelError, match=r"^no$"):
        place.open()
    assert [xdp != 0 for xdp in calls] == [False, True]
    assert state(place) == (0, 0, False, [])
    assert not place.pins.exists()
