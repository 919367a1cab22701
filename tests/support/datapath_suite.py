"""What every Datapath promises, as a class of tests: the fake and the real one both pass it.

A subclass gives a fixture `world`, which makes things happen below the datapath.
"""

import select
from typing import Any, Protocol

import numpy as np
import pytest

from collector.errors import KernelError
from collector.kernel.interface import Datapath, Interface, Look
from schemas.codes import EventKind, Mode
from schemas.verdict import DTYPE, STRIDE
from tests.support.kernel import compiled
from tests.support.netns import wait_for


class World(Protocol):
    """A datapath under test. Its ring holds `ring_records` events."""

    datapath: Datapath
    ring_records: int

    def packets(self, n: int, first: int = 0) -> None:
        """n packets of 60 bytes, each of a UDP flow of its own with source port 1 + first + its index."""
        ...

    def reopen(self, *interfaces: Interface) -> Datapath:
        """Kill the owner without ceremony and adopt what it left; `interfaces` are asked for from then on."""
        ...

    def add(self, name: str) -> None:
        """An interface comes; `veth0` is there from the beginning."""
        ...

    def remove(self, name: str) -> None: ...
    def rename(self, name: str, to: str) -> None: ...


def ports(rows: np.ndarray) -> list[int]:
    """Who the rows are about, in `World.packets` order."""
    return [int(p) - 1 for p in rows["sport"]]


def drain(datapath: Datapath) -> np.ndarray:
    """Read and release everything."""
    parts = [np.zeros(0, DTYPE)]
    while (events := datapath.read(1000)) is not None:
        parts.append(events.rows)
        datapath.release(events.start + len(events.rows) * STRIDE)
    return np.concatenate(parts)


def balanced(datapath: Datapath) -> bool:
    """The ledger's invariants, between the kernel's books."""
    counters, sums = datapath.counters(), datapath.sweep().sums
    rules = sum(
        int(datapath.rule_counters(slot)[f].sum()) for slot in (0, 1) for f in ("packets_passed", "packets_dropped")
    )
    untracked = sum(n for name, n in counters.items() if name.startswith("untracked"))
    counters = datapath.counters()
    emitted = datapath.produced // datapath.stride
    return (
        counters["parsed"] == rules == counters["ended_packets"] + sums.packets + untracked
        and counters["flows_created"] == counters["flows_ended"] + sums.live
        and counters["events_due"] == emitted + sums.due + counters["samples_lost"] + counters["samples_held_back"]
    )


def told(datapath: Datapath) -> Look:
    """A look at the interfaces, once the kernel has told of a change; the next needs another change."""
    with select.epoll() as poll:
        poll.register(datapath.interface_changes(), select.EPOLLIN)
        assert poll.poll(10)
    return datapath.look_after()


class DatapathSuite:
    """Subclasses give `world`."""

    def test_a_new_one_is_empty(self, world: World) -> None:
        datapath = world.datapath
        assert datapath.read(10) is None
        assert (datapath.produced, datapath.consumed, datapath.revision, datapath.mode) == (0, 0, 0, Mode.MONITOR)
        assert set(datapath.counters().values()) == {0}
        assert datapath.stride == STRIDE
        assert len(datapath.ring_id) == 16
        assert balanced(datapath)

    def test_reads_in_order_and_nothing_twice(self, world: World) -> None:
        datapath = world.datapath
        world.packets(10)
        first, second, third = datapath.read(4), datapath.read(100), datapath.read(100)
        assert first is not None
        assert second is not None
        assert third is None
        assert (first.start, second.start) == (0, 4 * STRIDE)
        assert ports(first.rows) + ports(second.rows) == list(range(10))
        assert set(first.rows["event"]) == {EventKind.NEW}
        assert first.rows.dtype == DTYPE
        assert datapath.produced == 10 * STRIDE
        assert datapath.consumed == 0
        datapath.release(4 * STRIDE)
        assert datapath.consumed == 4 * STRIDE

    @pytest.mark.parametrize("position", [-STRIDE, 1, 3 * STRIDE])
    def test_release_takes_only_ends_of_records_read(self, world: World, position: int) -> None:
        world.packets(5)
        assert world.datapath.read(2) is not None
        with pytest.raises(ValueError, match="release"):
            world.datapath.release(position)
        assert world.datapath.consumed == 0

    def test_release_never_goes_back(self, world: World) -> None:
        world.packets(5)
        assert world.datapath.read(5) is not None
        world.datapath.release(4 * STRIDE)
        with pytest.raises(ValueError, match="release"):
            world.datapath.release(3 * STRIDE)

    def test_an_heir_reads_on_from_what_was_released(self, world: World) -> None:
        datapath = world.datapath
        world.packets(10)
        assert datapath.read(8) is not None
        datapath.release(5 * STRIDE)
        ring = datapath.ring_id
        heir = world.reopen()
        world.packets(2, first=10)
        events = heir.read(100)
        assert events is not None
        assert (events.start, ports(events.rows)) == (5 * STRIDE, list(range(5, 12)))
        assert (heir.adopted, heir.ring_id) == (True, ring)

    def test_positions_go_on_through_many_rounds_of_the_ring(self, world: World) -> None:
        datapath, batch, seen = world.datapath, world.ring_records // 3, []
        for round_ in range(8):
            world.packets(batch, first=round_ * batch)
            events = datapath.read(world.ring_records)
            assert events is not None
            assert events.start == round_ * batch * STRIDE
            seen += ports(events.rows)
            datapath.release(events.start + len(events.rows) * STRIDE)
        assert seen == list(range(8 * batch))
        assert datapath.consumed == datapath.produced == 8 * batch * STRIDE

    def test_a_full_ring_makes_events_late_not_lost(self, world: World) -> None:
        datapath, n = world.datapath, world.ring_records + 20
        world.packets(n)
        assert datapath.produced == world.ring_records * STRIDE
        assert datapath.counters()["reserve_failed"] >= 20
        report = datapath.sweep()
        assert (report.ended, report.flushed, report.sums.live, report.sums.due) == (0, 0, n, 20)
        assert balanced(datapath)
        early = ports(drain(datapath))
        report = datapath.sweep()
        assert (report.flushed, report.sums.due) == (20, 0)
        late = ports(drain(datapath))
        assert early == list(range(world.ring_records))
        assert sorted(late) == list(range(world.ring_records, n))
        assert balanced(datapath)

    def test_the_books_count_every_packet(self, world: World) -> None:
        world.packets(7)
        report = world.datapath.sweep()
        assert (report.sums.live, report.sums.packets, report.sums.bytes) == (7, 7, 420)
        counters = world.datapath.counters()
        assert (counters["parsed"], counters["flows_created"]) == (7, 7)
        assert int(world.datapath.rule_counters(0)["packets_passed"].sum()) == 7
        assert int(world.datapath.rule_counters(0)["bytes_passed"].sum()) == 420
        assert balanced(world.datapath)

    def test_ends_every_flow_once(self, world: World) -> None:
        datapath = world.datapath
        world.packets(9)
        assert datapath.read(9) is not None
        datapath.detach()
        datapath.end_all_flows()
        events = datapath.read(100)
        assert events is not None
        assert sorted(ports(events.rows)) == list(range(9))
        assert set(events.rows["event"]) == {EventKind.END}
        assert set(events.rows["packets_original"]) == {1}
        assert datapath.sweep().sums.live == 0
        datapath.end_all_flows()
        assert datapath.read(100) is None
        assert balanced(datapath)

    def test_ends_as_far_as_the_ring_has_room_and_goes_on_after_a_drain(self, world: World) -> None:
        datapath, n = world.datapath, world.ring_records - 10
        world.packets(n)
        datapath.detach()
        datapath.end_all_flows()
        assert datapath.produced <= world.ring_records * STRIDE
        rows = drain(datapath)
        for _ in range(3):
            datapath.end_all_flows()
            rows = np.concatenate([rows, drain(datapath)])
        assert datapath.sweep().sums.live == 0
        assert sorted(ports(rows[rows["event"] == EventKind.END])) == list(range(n))
        assert len(rows) == 2 * n
        assert balanced(datapath)

    def test_applies_a_policy_as_the_next_revision(self, world: World) -> None:
        datapath = world.datapath
        world.packets(3)
        datapath.apply(compiled(rules=2), 1)
        assert datapath.revision == 1
        datapath.apply(compiled(rules=3), 2)
        assert datapath.revision == 2
        # Revision 2 lives in the slot that revision 0 had: its baseline is what was counted there before.
        assert int(datapath.rule_baseline(0)["packets_passed"].sum()) == 3
        assert int(datapath.rule_baseline(1)["packets_passed"].sum()) == 0
        assert int(datapath.rule_counters(0)["packets_passed"].sum()) == 3

    @pytest.mark.parametrize("revision", [0, 2])
    def test_refuses_a_revision_out_of_turn(self, world: World, revision: int) -> None:
        with pytest.raises(KernelError, match="does not follow 0"):
            world.datapath.apply(compiled(), revision)
        assert world.datapath.revision == 0

    def test_a_policy_too_large_changes_nothing(self, world: World) -> None:
        with pytest.raises(KernelError, match="rules") as caught:
            world.datapath.apply(compiled(rules=5000), 1)
        assert "RULES_MAX" in caught.value.hint
        assert world.datapath.revision == 0

    def test_mode_and_revision_change_apart(self, world: World) -> None:
        datapath = world.datapath
        datapath.set_mode(Mode.ENFORCE)
        assert (datapath.mode, datapath.revision) == (Mode.ENFORCE, 0)
        datapath.apply(compiled(rules=1), 1)
        assert (datapath.mode, datapath.revision) == (Mode.ENFORCE, 1)
        datapath.set_mode(Mode.MONITOR)
        assert (datapath.mode, datapath.revision) == (Mode.MONITOR, 1)

    def test_a_confirmed_change_stays(self, world: World) -> None:
        datapath = world.datapath
        datapath.apply(compiled(rules=1), 1, 60)
        change = datapath.unconfirmed
        assert change is not None
        assert (datapath.revision, change.revision, change.from_revision, change.kind) == (1, 1, 0, "revision")
        assert (change.mode, change.from_mode) == (Mode.MONITOR, Mode.MONITOR)
        assert 59 < change.seconds_left <= 60
        with pytest.raises(KernelError, match="unconfirmed"):
            datapath.apply(compiled(rules=2), 2)
        with pytest.raises(KernelError, match="unconfirmed"):
            datapath.set_mode(Mode.ENFORCE)
        datapath.confirm()
        assert (datapath.revision, datapath.unconfirmed, datapath.next_revision) == (1, None, 2)
        with pytest.raises(KernelError, match="nothing waits"):
            datapath.confirm()
        datapath.apply(compiled(rules=2), 2)

    def test_an_unconfirmed_change_falls_back_by_the_clock(self, world: World) -> None:
        datapath = world.datapath
        datapath.apply(compiled(rules=1), 1)
        datapath.apply(compiled(rules=2), 2, 0.05)
        wait_for(lambda: datapath.revision == 1, "the fall-back")
        change = datapath.unconfirmed
        assert change is not None and change.seconds_left == 0
        with pytest.raises(KernelError, match="too late"):
            datapath.confirm()
        assert datapath.revision == 1
        datapath.fall_back()
        assert (datapath.revision, datapath.unconfirmed) == (1, None)
        # Numbers are never given twice, and the slot of revision 1 is in use.
        assert datapath.next_revision == 4
        datapath.set_mode(Mode.ENFORCE, 60)
        assert (datapath.mode, datapath.next_revision) == (Mode.ENFORCE, 4)
        datapath.fall_back()
        assert (datapath.mode, datapath.revision, datapath.unconfirmed) == (Mode.MONITOR, 1, None)
        datapath.apply(compiled(rules=3), 4)
        assert (datapath.revision, datapath.next_revision) == (4, 5)

    def test_an_heir_finds_what_is_unconfirmed(self, world: World) -> None:
        world.datapath.apply(compiled(rules=1), 1)
        world.datapath.set_mode(Mode.ENFORCE, 60)
        heir = world.reopen()
        change = heir.unconfirmed
        assert change is not None
        assert (heir.mode, change.mode, change.from_mode) == (Mode.ENFORCE, Mode.ENFORCE, Mode.MONITOR)
        assert (change.kind, change.revision, change.from_revision) == ("mode", 1, 1)
        heir.fall_back()
        assert (heir.mode, heir.revision, heir.next_revision) == (Mode.MONITOR, 1, 2)

    def test_revision_and_mode_outlive_their_owner(self, world: World) -> None:
        world.datapath.apply(compiled(rules=1), 1)
        world.datapath.set_mode(Mode.ENFORCE)
        heir = world.reopen()
        assert (heir.revision, heir.mode) == (1, Mode.ENFORCE)

    def test_events_wake_an_edge_triggered_poll(self, world: World) -> None:
        with select.epoll() as poll:
            poll.register(world.datapath.fileno(), select.EPOLLIN | select.EPOLLET)
            world.packets(1)
            assert len(poll.poll(5)) == 1
            assert poll.poll(0) == []  # unread, yet no edge

    def test_stays_pinned_until_detached(self, world: World) -> None:
        datapath = world.datapath
        with pytest.raises(KernelError, match="attached"):
            datapath.unpin()
        datapath.detach()
        datapath.detach()
        assert datapath.interfaces == {}
        datapath.unpin()

    def test_closes_twice(self, world: World) -> None:
        world.datapath.close()
        world.datapath.close()

    def test_says_what_it_watches(self, world: World) -> Any:
        assert world.datapath.interfaces == {"veth0": "native+egress"}
        assert world.datapath.held_by == {"veth0": "link"}
        assert world.datapath.look_after() == Look()
        assert world.datapath.predecessor is None
        assert not world.datapath.adopted

    def test_interfaces_that_come_go_and_are_renamed_are_followed_by_pattern(self, world: World) -> None:
        datapath = world.reopen(Interface("veth*"), Interface("tap*", "ingress"))
        assert datapath.interfaces == {"veth0": "native+egress"}
        world.add("other0")
        look = told(datapath)
        assert (look.came, look.went, look.unwatched) == ([], [], {})
        world.add("veth7")
        assert told(datapath).came == ["veth7"]
        world.rename("other0", "tap3")
        assert told(datapath).came == ["tap3"]
        assert datapath.interfaces == {"tap3": "native", "veth0": "native+egress", "veth7": "native+egress"}
        assert datapath.held_by == dict.fromkeys(datapath.interfaces, "link")
        world.rename("tap3", "veth8")  # the other pattern, and so the other hooks
        look = told(datapath)
        assert (look.came, look.went, look.unwatched) == (["veth8"], ["tap3"], {})
        world.rename("veth8", "other8")
        assert told(datapath).went == ["veth8"]
        world.remove("veth7")
        look = told(datapath)
        assert (look.came, look.went, look.unwatched) == ([], ["veth7"], {})
        assert datapath.interfaces == {"veth0": "native+egress"}
        assert datapath.held_by == {"veth0": "link"}

    def test_a_pattern_that_matches_nothing_waits(self, world: World) -> None:
        datapath = world.reopen(Interface("late*"))
        assert datapath.interfaces == {}
        world.add("late0")
        assert told(datapath).came == ["late0"]
        assert datapath.interfaces == {"late0": "native+egress"}
        heir = world.reopen(Interface("late*"))
        assert heir.interfaces == {"late0": "native+egress"}

    def test_a_named_interface_that_is_gone_is_missed_until_it_is_there_again(self, world: World) -> None:
        world.add("veth7")
        datapath = world.reopen(Interface("veth0"), Interface("veth7", "ingress"))
        world.remove("veth7")
        look = told(datapath)
        assert (look.came, look.went, look.unwatched) == ([], [], {"veth7": "gone"})
        assert datapath.interfaces == {"veth0": "native+egress", "veth7": "not watched"}
        world.add("veth7")
        look = told(datapath)
        assert (look.came, look.went, look.unwatched) == (["veth7"], [], {})
        assert look.notices == ["veth7 was made anew, and is watched again"]
        assert datapath.interfaces == {"veth0": "native+egress", "veth7": "native"}

    def test_what_an_interface_that_went_has_counted_stays(self, world: World) -> None:
        datapath = world.reopen(Interface("veth*"))
        world.packets(5)
        before = datapath.counters()
        assert before["parsed"] == 5
        world.remove("veth0")
        assert told(datapath).went == ["veth0"]
        assert (datapath.interfaces, datapath.counters()) == ({}, before)
        assert (datapath.sweep().sums.live, ports(drain(datapath))) == (5, [0, 1, 2, 3, 4])
        assert balanced(datapath)

    def test_after_detach_nothing_is_followed(self, world: World) -> None:
        datapath = world.reopen(Interface("veth*"))
        datapath.detach()
        world.add("veth7")
        assert datapath.look_after() == Look()
        assert datapath.interfaces == {}
