"""A datapath's life on real interfaces: attached, orphaned, adopted, replaced, refused, gone."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector.errors import ForeignProgram, KernelError
from collector.kernel import Interface, libbpf, open_datapath, probes
from collector.kernel import layout as layouts
from collector.kernel.interface import Datapath
from collector.kernel.netns import inside, links
from collector.kernel.private import private_datapath
from collector.kernel.removal import remove_datapath
from schemas.codes import EventKind, Flag, Mode
from schemas.verdict import STRIDE
from tests.support.datapath_suite import balanced, drain, ports
from tests.support.kernel import KNOBS, compiled, instance, udp_frame
from tests.support.netns import Lab, ip, wait_for
from tests.support.place import Place

ROOT = Path(__file__).resolve().parents[2]

OWNER = """
import json
import sys
from pathlib import Path
from collector.kernel import DatapathSettings, Interface, open_datapath
pins, netns, release = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
datapath = open_datapath(DatapathSettings(pins, (Interface("veth0"),), netns=netns, knobs=json.loads(sys.argv[4])))
print("ready", flush=True)
sys.stdin.readline()
events = datapath.read(1000)
datapath.release(release)
print(len(events.rows), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def place() -> Iterator[Place]:
    with instance() as pins, Lab() as lab:
        place = Place(lab, pins)
        yield place
        place.close()


@pytest.fixture
def netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel without bpf_link."""
    monkeypatch.setenv(probes.PRETEND, "xdp_link,tcx_link")


def parsed(datapath: Datapath, n: int) -> None:
    wait_for(lambda: datapath.counters()["parsed"] == n, f"{n} packets")


def test_watches_both_hooks_and_leaves_nothing(place: Place) -> None:
    datapath = place.open()
    assert datapath.interfaces == {"veth0": "native+egress"}
    assert place.xdp().native != 0
    assert place.tc() != 0
    assert place.pins.is_dir()
    assert place.pins.stat().st_mode & 0o777 == 0o700
    datapath.detach()
    datapath.unpin()
    assert place.xdp().any == 0
    assert place.tc() == 0
    assert not place.pins.exists()
    assert list(place.pins.parent.glob(place.pins.name + "*")) == []


def test_egress_and_ingress_are_counted_at_their_hooks(place: Place) -> None:
    datapath = place.open()
    place.packets(3)
    inner = place.lab.open(place.netns, socket.AF_PACKET, socket.SOCK_RAW)
    inner.bind(("veth0", 0))
    for i in range(2):
        inner.send(udp_frame("10.0.0.2", 53, "10.0.0.1", 100 + i, bytes(18)))
    parsed(datapath, 5)
    events = datapath.read(10)
    assert events is not None
    egress = (events.rows["flags"] & Flag.EGRESS).astype(bool)
    assert (int(egress.sum()), len(egress)) == (2, 5)


@pytest.mark.parametrize(("hooks", "how"), [("ingress", "native"), ("egress", "egress")])
def test_watches_one_hook(place: Place, hooks: str, how: str) -> None:
    datapath = place.open(interfaces=(Interface("veth0", hooks),))
    assert datapath.interfaces == {"veth0": how}
    assert bool(place.xdp().any) == (hooks == "ingress")
    assert bool(place.tc()) == (hooks == "egress")


def test_a_killed_owner_is_succeeded_without_a_gap(place: Place) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place.pins), place.netns, str(4 * STRIDE), json.dumps(KNOBS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert owner.stdin is not None
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "ready\n"
        place.packets(6)
        observer = libbpf.obj_get(str(place.pins / "events"))
        os.close(observer)
        wait_for(lambda: _produced(place.pins) == 6 * STRIDE, "6 events")
        owner.stdin.write("go\n")
        owner.stdin.flush()
        assert owner.stdout.readline() == "6\n"
        with pytest.raises(KernelError, match=f"process {owner.pid}"):
            place.open()
        owner.send_signal(signal.SIGKILL)
    finally:
        owner.kill()
        owner.communicate()
    place.packets(5, first=6)  # nobody is there, and yet
    wait_for(lambda: _produced(place.pins) == 11 * STRIDE, "11 events")
    program = place.xdp().native
    datapath = place.open()
    assert datapath.adopted
    assert place.xdp().native == program
    events = datapath.read(100)
    assert events is not None
    assert (events.start, ports(events.rows)) == (4 * STRIDE, list(range(4, 11)))
    assert balanced(datapath)


def _produced(pins: Path) -> int:
    from collector.kernel.ring import Ring  # noqa: PLC0415

    ring = Ring(libbpf.obj_get(str(pins / "events")))
    try:
        return ring.produced
    finally:
        ring.close()


@pytest.mark.usefixtures("netlink")
def test_what_was_taken_off_is_attached_again(place: Place) -> None:
    datapath = place.open()
    ring = datapath.ring_id
    datapath.close()
    ip("link", "set", "veth0", "xdp", "off", netns=place.netns)
    assert place.xdp().any == 0
    datapath = place.open()
    assert (datapath.adopted, datapath.ring_id, datapath.interfaces) == (True, ring, {"veth0": "native+egress"})
    assert place.xdp().native != 0
    assert any("veth0" in notice for notice in datapath.notices)


def test_a_change_of_interfaces_keeps_the_ring(place: Place) -> None:
    outer = place.lab.namespace("far")
    place.lab.link(place.netns, "veth2", outer, "veth3")
    first = place.open()
    ring = first.ring_id
    first.close()
    second = place.open(interfaces=(Interface("veth2", "ingress"),))
    assert (second.ring_id, second.interfaces) == (ring, {"veth2": "native"})
    assert (place.xdp("veth0").any, place.tc("veth0")) == (0, 0)
    assert "clsact" not in place.qdiscs("veth0")


def test_other_knobs_replace_the_datapath_and_the_old_one_is_drained(place: Place) -> None:
    old = place.open()
    old.set_mode(Mode.ENFORCE)
    place.packets(5)
    parsed(old, 5)
    assert old.read(3) is not None
    old.release(2 * STRIDE)
    old.close()
    seen: list[int] = []

    def prepare(new: Datapath) -> None:
        assert place.xdp().native == before  # not attached yet
        new.apply(compiled(rules=1), 1)
        seen.append(new.revision)

    before = place.xdp().native
    new = open_datapath(replace(place.settings, knobs=KNOBS | {"RING_BYTES": 131_072}), prepare)
    try:
        assert seen == [1]
        assert not new.adopted
        assert new.mode == Mode.ENFORCE
        assert place.xdp().native not in (0, before)
        predecessor = new.predecessor
        assert predecessor is not None
        assert predecessor.ring_id == old.ring_id != new.ring_id
        place.packets(4, first=100)
        parsed(new, 4)
        assert predecessor.counters()["parsed"] == 5
        predecessor.detach()
        assert place.xdp().native not in (0, before)  # the new one's place is left alone
        rows = drain(predecessor)
        assert ports(rows) == [2, 3, 4]
        predecessor.end_all_flows()
        rows = drain(predecessor)
        assert sorted(ports(rows)) == [0, 1, 2, 3, 4]
        assert set(rows["event"]) == {EventKind.END}
        assert balanced(predecessor)
        predecessor.unpin()
        assert [p.name for p in place.pins.parent.glob(place.pins.name + "*")] == [place.pins.name]
        predecessor.close()
        assert ports(drain(new)) == [100, 101, 102, 103]
    finally:
        new.close()
    heir = place.open(knobs=KNOBS | {"RING_BYTES": 131_072})
    assert (heir.adopted, heir.predecessor, heir.ring_id) == (True, None, new.ring_id)


def test_an_undrained_predecessor_waits_for_the_next_owner(place: Place) -> None:
    first = place.open()
    place.packets(2)
    parsed(first, 2)
    first.close()
    place.open(knobs=KNOBS | {"RING_BYTES": 131_072}).close()
    third = place.open(knobs=KNOBS | {"RING_BYTES": 262_144})
    middle = third.predecessor
    assert middle is not None
    oldest = middle.predecessor
    assert oldest is not None
    assert oldest.ring_id == first.ring_id
    assert ports(drain(oldest)) == [0, 1]
    assert place.xdp().native != 0


def test_a_predecessor_of_another_version_is_read_as_todays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description says its record is laid out otherwise: here, `rule` and `sport` changed places."""
    real = layouts.new_layout

    def swapped(overrides: dict[str, int]) -> layouts.Layout:
        layout = real(overrides)
        event = layout.dtypes["verdict_event"]
        names = [{"rule": "sport", "sport": "rule"}.get(name, name) for name in event.names or ()]
        old = np.dtype([(name, event[i]) for i, name in enumerate(names)])
        return replace(layout, dtypes=layout.dtypes | {"verdict_event": old})

    with monkeypatch.context() as patch:
        patch.setattr("collector.kernel.opening.new_layout", swapped)
        first = place.open()
        place.packets(3)
        parsed(first, 3)
        first.close()
    predecessor = place.open().predecessor
    assert predecessor is not None
    rows = drain(predecessor)
    assert rows["rule"].tolist() == [1, 2, 3]  # what its description calls so
    assert rows.dtype.names == layouts.new_layout({}, "core").events.names


@pytest.fixture
def foreign() -> Iterator[int]:
    """Descriptor of somebody else's XDP program."""
    with private_datapath(KNOBS) as other:
        yield other.handle.programs["mark"]


def test_somebody_elses_xdp_program_is_left_alone(place: Place, foreign: int) -> None:
    number = libbpf.program_info(foreign).id
    inside(
        place.netns,
        lambda: libbpf.xdp_attach(links()["veth0"].ifindex, foreign, libbpf.XDP_FLAGS_DRV_MODE),
    )
    with pytest.raises(ForeignProgram) as caught:
        place.open()
    assert str(caught.value) == f"veth0 already has an XDP program (id {number}, name mark)"
    assert "xdp off" in caught.value.hint
    assert place.xdp().native == number
    assert place.tc() == 0
    assert not place.pins.exists()


@pytest.mark.usefixtures("netlink")
def test_somebody_elses_clsact_and_filters_stay(place: Place) -> None:
    with private_datapath(KNOBS) as other:
        theirs = other.handle.programs["tc_egress"]

        def attach_theirs() -> int:
            ifindex = links()["veth0"].ifindex
            assert libbpf.clsact_create(ifindex)
            libbpf.tc_attach(ifindex, theirs, 5, 7)
            return ifindex

        ifindex = inside(place.netns, attach_theirs)
        datapath = place.open()
        datapath.detach()
        assert "clsact" in place.qdiscs()
        assert place.tc() == 0
        number = inside(place.netns, lambda: libbpf.tc_query(ifindex, 5, 7))
        assert number == libbpf.program_info(theirs).id


@pytest.mark.usefixtures("netlink")
def test_a_filter_that_came_later_keeps_our_clsact(place: Place) -> None:
    datapath = place.open()
    with private_datapath(KNOBS) as other:
        theirs = other.handle.programs["tc_egress"]
        inside(place.netns, lambda: libbpf.tc_attach(links()["veth0"].ifindex, theirs, 5, 7))
    datapath.detach()
    assert "clsact" in place.qdiscs()
    assert place.tc() == 0


def test_a_second_instance_on_the_same_interface_is_refused(place: Place) -> None:
    place.open()
    with instance() as pins, pytest.raises(ForeignProgram, match="veth0 already has an XDP program"):
        place.open(pins=pins)


def test_a_large_mtu_falls_back_to_generic() -> None:
    with instance() as pins, Lab() as lab:
        place = Place(lab, pins, mtu=9000)
        datapath = place.open(interfaces=(Interface("veth0", "ingress"),))
        assert datapath.interfaces == {"veth0": "generic"}
        assert any("generic XDP" in notice for notice in datapath.notices)
        place.packets(3)
        parsed(datapath, 3)
        events = datapath.read(10)
        assert events is not None
        assert set(events.rows["flags"] & Flag.AGGREGATED) == {Flag.AGGREGATED}
        datapath.close()
        datapath = place.open(interfaces=(Interface("veth0", "ingress"),))
        assert (datapath.adopted, datapath.interfaces) == (True, {"veth0": "generic"})
        datapath.detach()
        assert place.xdp().any == 0
        place.close()


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"interfaces": (Interface("nope"),)}, "there is no interface nope", "those here: veth0"),
        ({"interfaces": (Interface("lo"),)}, "lo is loopback", "interface to the outside"),
        ({"interfaces": ()}, "no interface to watch", "eth0"),
        ({"interfaces": (Interface("veth0", "sideways"),)}, "no hooks 'sideways'", "ingress, egress or both"),
        ({"netns": "ztlens-no-such"}, "no network namespace ztlens-no-such", "those here"),
        ({"knobs": {"NOPE": 1}}, "no knob NOPE", "FLOWS_MAX"),
        ({"knobs": {"RING_BYTES": 5000}}, "RING_BYTES is 5000", "power of two"),
        ({"knobs": {"RULES_MAX": 100}}, "RULES_MAX is 100", "multiple of 64"),
        ({"knobs": {"FLOWS_MAX": 0}}, "FLOWS_MAX is 0", "positive numbers below 2,147,483,648"),
        ({"knobs": {"RING_BYTES": 1 << 32}}, "RING_BYTES is 4294967296", "positive numbers below 2,147,483,648"),
        ({"knobs": {"RULES_MAX": 16_448}}, "RULES_MAX is 16448", "16384 at most"),
        ({"timeouts": {"NOPE": 1}}, "no time-out NOPE", "UDP"),
        ({"pins": Path("/sys/fs/bpf/ztlens-test/a.b")}, "no dots", "instance name"),
        ({"pins": Path("/tmp/ztlens-pins")}, "not on a BPF file system", "/sys/fs/bpf"),
    ],
)
def test_a_wrong_setting_is_named(place: Place, changes: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(KernelError, match=message) as caught:
        place.open(**changes)
    assert hint in caught.value.hint
    assert not place.pins.exists()
    assert place.xdp().any == 0


def test_a_failed_attachment_is_undone(place: Place, foreign: int) -> None:
    """The foreign program comes after the look and before the attachment: on the second of two interfaces."""
    outer = place.lab.namespace("far")
    place.lab.link(place.netns, "veth2", outer, "veth3")

    def prepare(_: Datapath) -> None:
        inside(
            place.netns,
            lambda: libbpf.xdp_attach(links()["veth2"].ifindex, foreign, libbpf.XDP_FLAGS_DRV_MODE),
        )

    settings = replace(place.settings, interfaces=(Interface("veth0"), Interface("veth2")))
    with pytest.raises(ForeignProgram, match="veth2 already has"):
        open_datapath(settings, prepare)
    assert (place.xdp("veth0").any, place.tc("veth0")) == (0, 0)
    assert "clsact" not in place.qdiscs("veth0")
    assert not place.pins.exists()


def test_a_start_cut_short_leaves_nothing_in_the_way(place: Place) -> None:
    first = place.open()
    first.close()
    half = place.pins.with_name(place.pins.name + "+new")
    half.mkdir()
    libbpf.obj_pin(libbpf.obj_get(str(place.pins / "flows")), str(half / "flows"))
    second = place.open()
    assert (second.adopted, second.ring_id) == (True, first.ring_id)
    assert not half.exists()


def test_a_switch_cut_short_is_completed(place: Place) -> None:
    """Killed between the two renames: the old one has gone aside, the new one has not come."""
    first = place.open()
    first.close()
    place.pins.rename(place.pins.with_name(place.pins.name + "+old-00000000000000000001"))
    second = place.open()
    assert (second.adopted, second.ring_id) == (True, first.ring_id)
    assert second.predecessor is None


def test_down_without_a_collector_takes_all_away(place: Place) -> None:
    datapath = place.open()
    place.packets(3)
    parsed(datapath, 3)
    datapath.close()
    assert remove_datapath(place.pins) == 3
    assert (place.xdp().any, place.tc(), place.pins.exists()) == (0, 0, False)
    assert remove_datapath(place.pins) is None


def test_an_interface_that_is_gone_is_no_obstacle(place: Place) -> None:
    datapath = place.open()
    ip("link", "del", "veth0", netns=place.netns)
    datapath.detach()
    datapath.unpin()
    assert not place.pins.exists()


def test_a_namespace_that_is_gone_is_no_obstacle(place: Place) -> None:
    datapath = place.open()
    ip("netns", "del", place.netns)
    datapath.detach()
    datapath.unpin()
    assert not place.pins.exists()


def test_the_owners_sockets_stay_in_its_own_namespace(place: Place) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    place.open()
    assert Path("/proc/thread-self/ns/net").readlink() == before
    assert Path("/proc/self/ns/net").readlink() == before


class TestBridge:
    """What a bridge routes carries the bridge's ifindex, so egress must know the bridge too."""

    @pytest.fixture
    def bridge(self, place: Place) -> Place:
        far = place.lab.namespace("far")
        place.lab.link(place.netns, "veth2", far, "veth3")
        ip("link", "add", "br0", "type", "bridge", netns=place.netns)
        for port in ("veth0", "veth2"):
            ip("link", "set", port, "master", "br0", netns=place.netns)
        return place

    def _watched(self, datapath: Datapath) -> set[int]:
        return set(datapath.handle.watched.read()[0].tolist())  # type: ignore[attr-defined]

    def test_counts_as_watched_when_all_its_ports_are(self, bridge: Place) -> None:
        there = inside(bridge.netns, links)
        datapath = bridge.open(interfaces=(Interface("veth0"), Interface("veth2")))
        assert self._watched(datapath) == {there[name].ifindex for name in ("veth0", "veth2", "br0")}
        assert not any("judged twice" in notice for notice in datapath.notices)

    def test_does_not_otherwise_and_says_so(self, bridge: Place) -> None:
        there = inside(bridge.netns, links)
        datapath = bridge.open()
        assert self._watched(datapath) == {there["veth0"].ifindex}
        assert any("br0: its port veth2 is not watched" in notice for notice in datapath.notices)


def test_a_predecessor_may_lack_maps_that_came_later(place: Place) -> None:
    first = place.open()
    place.packets(2)
    parsed(first, 2)
    first.close()
    (place.pins / "fragments").unlink()
    predecessor = place.open(knobs=KNOBS | {"RING_BYTES": 131_072}).predecessor
    assert predecessor is not None
    predecessor.end_all_flows()
    assert sorted(ports(drain(predecessor))) == [0, 0, 1, 1]
    predecessor.unpin()
    predecessor.close()


def test_a_closed_predecessor_is_in_nobodys_way(place: Place) -> None:
    place.open().close()
    datapath = place.open(knobs=KNOBS | {"RING_BYTES": 131_072})
    assert datapath.predecessor is not None
    datapath.predecessor.unpin()
    datapath.predecessor.close()
    datapath.detach()
    datapath.unpin()
    assert (place.xdp().any, place.tc()) == (0, 0)
    assert list(place.pins.parent.glob(place.pins.name + "*")) == []
