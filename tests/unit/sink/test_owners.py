"""A conversation that several nodes see counts once: at its owner, until that is gone, and what is remembered of it."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from schemas.codes import EventKind
from schemas.verdict import STRIDE
from sink.store import Commit, Store, rollup
from tests.support import batches
from tests.support.rollups import HOUR, append, flow, keep, naive, roll_up, stored

TRAFFIC = batches.traffic(200, seconds=40.0).rows
FIVE = {"sport": 40000, "dport": 443, "proto": 6, "src": bytes(12) + bytes([10, 0, 0, 1]),
        "dst": bytes(12) + bytes([10, 0, 0, 2])}  # fmt: skip
ENDS = {"src": FIVE["dst"], "dst": FIVE["src"], "sport": FIVE["dport"], "dport": FIVE["sport"]}


def conversation(shift: int = 0, **fields: Any) -> np.ndarray:
    """`new` and `end` of a flow of 5 packets, a second apart, `shift` ns later."""
    return flow(
        {"event": EventKind.NEW, "time": batches.START + shift},
        {"event": EventKind.END, "time": batches.START + shift + 10**9, "packets_original": 5},
        **(FIVE | fields),
    )


def counted(store: Store) -> list[tuple]:
    return store.connection.execute(
        """SELECT r.node, p.duplicate, sum(p.flows), sum(p.packets_original) FROM store.pairs_1m AS p
            JOIN store.rings AS r ON r.id = p.ring GROUP BY ALL ORDER BY ALL"""
    ).fetchall()


@pytest.mark.parametrize("changed", [{}, {"flow_id": 77}, ENDS])
def test_a_conversation_two_nodes_see_is_counted_once(memory: Store, changed: dict[str, Any]) -> None:
    append(memory, conversation(), node="n1", ring="r1")
    append(memory, conversation(2_000_000, **changed), node="n2", ring="r2")
    roll_up(memory)
    assert counted(memory) == [("n1", False, 1, 5), ("n2", True, 1, 5)]


@pytest.mark.parametrize(
    ("who", "changed", "shift"),
    [
        ("n2", {"sport": 40001}, 0),
        ("n2", {"proto": 17}, 0),
        ("n2", {}, 60 * 10**9),  # the same ends later: another conversation
        ("n1", {}, 0),  # another ring of the node: a packet is judged once a node
    ],
)
def test_others_are_counted_each(memory: Store, who: str, changed: dict[str, Any], shift: int) -> None:
    append(memory, conversation(), node="n1", ring="r1")
    append(memory, conversation(shift, **changed), node=who, ring="r2")
    roll_up(memory)
    assert [row[1:] for row in counted(memory)] in ([(False, 1, 5), (False, 1, 5)], [(False, 2, 10)])


def test_icmp_ends_are_not_swapped(memory: Store) -> None:
    append(memory, conversation(proto=1), node="n1", ring="r1")
    append(memory, conversation(proto=1, **ENDS), node="n2", ring="r2")
    roll_up(memory)
    assert [row[1] for row in counted(memory)] == [False, False]


def test_a_duplicate_stays_one_for_its_life_whatever_comes_in_which_step(memory: Store) -> None:
    one, two = conversation(), conversation(1_000_000)
    append(memory, one[:1], node="n1", ring="r1")
    append(memory, two[:1], node="n2", ring="r2")
    roll_up(memory)
    append(memory, two[1:], 1, node="n2", ring="r2")
    roll_up(memory)
    append(memory, one[1:], 1, node="n1", ring="r1")
    roll_up(memory)
    assert counted(memory) == [("n1", False, 1, 5), ("n2", True, 1, 5)]


def test_an_ended_owner_is_remembered_and_then_forgotten(memory: Store) -> None:
    append(memory, conversation(), node="n1", ring="r1")
    append(memory, batches.verdict(flow_id=3), node="n2", ring="r2")
    roll_up(memory)
    append(memory, conversation(), 1, node="n2", ring="r2")
    roll_up(memory)
    assert counted(memory) == [("n1", False, 1, 5), ("n2", False, 1, 1), ("n2", True, 1, 5)]
    append(memory, conversation(2 * rollup.REMEMBERED), 2, node="n1", ring="r1")
    roll_up(memory)
    left = memory.connection.execute("SELECT ring, flow_id, ended FROM store.open_flows ORDER BY ALL").fetchall()
    assert left == [(1, 1, True), (2, 1, True), (2, 3, False)]


@pytest.mark.parametrize("events", [2, 4, 1000])
def test_a_sink_that_was_away_for_long_counts_once_too(memory: Store, events: int) -> None:
    for node in ("n1", "n2"):
        for number in range(6):
            rows = conversation(number * 2 * rollup.REMEMBERED, flow_id=number + 1, sport=40000 + number)
            append(memory, rows, 2 * number, node=node, ring="r")
    roll_up(memory, events)
    assert counted(memory) == [("n1", False, 6, 30), ("n2", True, 6, 30)]


@pytest.mark.parametrize("last", ["end", "closed", "nothing"])
def test_what_goes_on_when_its_owner_is_gone_is_counted(memory: Store, last: str) -> None:
    """Its flow ends, or its node is taken down; what the other tells next may be of the time before, then not."""
    told = [(0, 1, 1), (10, 2, 5), (15, 4, 5)]  # s, event, packets so far
    went_on = [(60, 2, 9), (120, 2, 20), (180, 4, 21)]
    for node, events in (("n1", told[:2]), ("n2", told[:2]), ("n1", told[2:] if last == "end" else []),
                         *(("n2", [event]) for event in went_on)):  # fmt: skip
        for at, event, packets in events:
            held = memory.state.rings[node, "r"].held.total() // STRIDE if (node, "r") in memory.state.rings else 0
            row = batches.verdict(**FIVE, event=event, packets_original=packets, time=batches.START + at * 10**9)
            append(memory, row, held, node=node, ring="r")
        if node == "n1" and last == "closed" and not events:
            memory.append(Commit(records=[batches.policy_record("closed", ring="r", end=2 * STRIDE)]))
        roll_up(memory)
    gone = [("n1", False, 1, 5), ("n2", False, 0, 12), ("n2", True, 1, 9)]
    assert counted(memory) == (gone if last != "nothing" else [("n1", False, 1, 5), ("n2", True, 1, 21)])


def told(store: Store, node: str, at: float, event: int, packets: int, **fields: Any) -> None:
    """One event of the conversation FIVE at a node, `at` s after the start, rolled up."""
    known = store.state.rings.get((node, "r"))
    held = known.held.total() // STRIDE if known else 0
    row = batches.verdict(**FIVE | fields, event=event, packets_original=packets, time=batches.START + int(at * 1e9))
    append(store, row, held, node=node, ring="r")
    roll_up(store)


def heard(store: Store, ago: float, *nodes: str) -> None:
    """The last records of the nodes came `ago` s ago, of the others now, to a sink that has run for ever."""
    store.state.read, now = -math.inf, time.monotonic()
    for ring in store.state.rings.values():
        ring.heard = now - ago if ring.node in nodes else now


def test_what_goes_on_when_its_owner_is_silent_is_counted_and_stays_so_when_that_comes_back(memory: Store) -> None:
    for node in ("n1", "n2"):
        told(memory, node, 0, EventKind.NEW, 1)
    heard(memory, rollup.GIVEN_UP - 1, "n1")
    told(memory, "n2", 30, EventKind.SAMPLE, 10)
    assert counted(memory) == [("n1", False, 1, 1), ("n2", True, 1, 10)]
    heard(memory, rollup.GIVEN_UP + 1, "n1")
    told(memory, "n2", 90, EventKind.SAMPLE, 15)
    assert counted(memory) == [("n1", False, 1, 1), ("n2", False, 0, 5), ("n2", True, 1, 10)]
    heard(memory, 0, "n1")
    told(memory, "n1", 100, EventKind.SAMPLE, 16)  # n2 counts it now
    told(memory, "n2", 110, EventKind.SAMPLE, 20)
    told(memory, "n1", 120, EventKind.END, 20)
    assert counted(memory) == [("n1", False, 1, 1), ("n1", True, 0, 19), ("n2", False, 0, 10), ("n2", True, 1, 10)]


@pytest.mark.parametrize("event", [EventKind.SAMPLE, EventKind.END])
def test_a_node_that_comes_back_owns_what_nobody_took_over(memory: Store, event: int) -> None:
    told(memory, "n1", 0, EventKind.NEW, 1)
    told(memory, "n2", 0, EventKind.NEW, 1)
    told(memory, "n2", 50, EventKind.NEW, 1, sport=1, flow_id=2)
    heard(memory, rollup.GIVEN_UP + 1, "n1")
    told(memory, "n2", 90, EventKind.SAMPLE, 2, sport=1, flow_id=2)
    heard(memory, 0, "n1")
    told(memory, "n1", 100, event, 16)
    assert counted(memory) == [("n1", False, 1, 16), ("n2", False, 1, 2), ("n2", True, 1, 1)]


def test_nobody_is_silent_while_nobody_is_heard(memory: Store) -> None:
    """NATS was away: what comes first of one node does not take anything from the other."""
    for node in ("n1", "n2"):
        told(memory, node, 0, EventKind.NEW, 1)
    heard(memory, 10 * rollup.GIVEN_UP, "n1", "n2")
    told(memory, "n2", 300, EventKind.SAMPLE, 10)
    assert counted(memory) == [("n1", False, 1, 1), ("n2", True, 1, 10)]


def test_who_has_just_begun_to_listen_gives_nobody_up(on_disk: Callable[..., Store]) -> None:
    """The sink was down for weeks: what comes first of one node does not take anything from the other."""
    store = on_disk()
    for node in ("n1", "n2"):
        told(store, node, 0, EventKind.NEW, 1)
        store.append(Commit(records=[batches.loss_record(1, node=node, ring="r")]))
    store.close()
    store = on_disk()
    store.append(Commit(records=[batches.loss_record(1, node="n2", ring="r", time=batches.CLOCK + 1)]))
    told(store, "n2", 30, EventKind.SAMPLE, 10)
    assert counted(store) == [("n1", False, 1, 1), ("n2", True, 1, 10)]
    store.close()


def test_of_a_long_backlog_each_minute_asks_anew_who_owns_a_conversation(memory: Store) -> None:
    """One step would take it all: the owner leaves after a second, its conversation goes on for ten minutes."""
    append(memory, conversation(), node="n1", ring="r")
    rows = flow(
        *(
            {"event": EventKind.SAMPLE if n else EventKind.NEW, "packets_original": 1 + n,
             "time": batches.START + n * 10 * 10**9}
            for n in range(61)
        ), **FIVE,
    )  # fmt: skip
    append(memory, rows, node="n2", ring="r")
    roll_up(memory)
    # Ten seconds are allowed for between clocks: what its first minute told of is the owner's, nothing after it.
    assert counted(memory) == [("n1", False, 1, 5), ("n2", False, 0, 55), ("n2", True, 1, 6)]


def open_flows(store: Store) -> list[tuple]:
    return store.connection.execute(
        """SELECT r.node, r.ring, count(*) FROM store.open_flows AS o JOIN store.rings AS r ON r.id = o.ring
            GROUP BY ALL ORDER BY ALL"""
    ).fetchall()


def test_flows_of_a_closed_ring_are_forgotten_when_all_of_it_is_rolled_up(memory: Store) -> None:
    append(memory, TRAFFIC[:100], ring="r1")
    append(memory, TRAFFIC[:80], ring="r2")
    memory.append(Commit(records=[batches.policy_record("closed", ring="r1", end=120 * STRIDE)]))
    roll_up(memory)
    (_, r1, kept), (_, r2, others) = open_flows(memory)
    assert (r1, r2) == ("r1", "r2") and kept > 0 and others > 0
    assert rollup.forget(memory, 0) == 0  # 20 events are missing yet
    append(memory, TRAFFIC[100:120], 100, ring="r1")
    assert rollup.forget(memory, 0) == 0  # and not rolled up yet
    roll_up(memory)
    now = len(set(TRAFFIC[:120]["flow_id"])) - int((TRAFFIC[:120]["event"] == EventKind.END).sum())
    assert rollup.forget(memory, 0) == now
    assert open_flows(memory) == [("n1", "r2", others)]
    assert stored(memory, "store.pairs_1m", where="ring = 1") == naive(TRAFFIC[:120])


def test_a_closed_owner_is_remembered_until_others_are_past_it(memory: Store) -> None:
    append(memory, conversation()[:1], node="n1", ring="r")
    memory.append(Commit(records=[batches.policy_record("closed", ring="r", end=STRIDE)]))
    append(memory, conversation()[:1], node="n2", ring="r")
    roll_up(memory, 1)
    append(memory, batches.verdict(sport=9, flow_id=9, time=batches.START + rollup.REMEMBERED), 1, node="n2", ring="r")
    assert rollup.forget(memory, 0) == 0
    roll_up(memory)
    assert rollup.forget(memory, 0) == 1
    assert open_flows(memory) == [("n2", "r", 2)]


def test_flows_that_a_reboot_cut_off_are_forgotten_with_their_verdicts(memory: Store) -> None:
    append(memory, conversation()[:1], ring="r1")
    append(memory, conversation(sport=2)[:1], ring="r2")
    memory.append(Commit(records=[batches.loss_record(1, ring="r1", time=batches.CLOCK + batches.START + HOUR)]))
    roll_up(memory)
    assert rollup.forget(memory, batches.CLOCK + batches.START + HOUR) == 0  # heard of since then
    assert rollup.forget(memory, batches.CLOCK + batches.START + HOUR + 1) == 1
    assert open_flows(memory) == [("n1", "r2", 1)]
    keep(memory, keep_age=1.0)  # of the newest ring of a node never: it may come back
    assert open_flows(memory) == [("n1", "r2", 1)]


def test_a_flow_whose_end_fills_a_gap_of_a_closed_ring_is_the_one_it_was(memory: Store) -> None:
    append(memory, conversation()[:1], ring="r1")
    append(memory, conversation(sport=2, flow_id=2)[:1], 2, ring="r1")
    memory.append(Commit(records=[batches.policy_record("closed", ring="r1", end=3 * STRIDE)]))
    memory.declare_gaps([(memory.state.rings["n1", "r1"], STRIDE, 2 * STRIDE, "lost")])
    roll_up(memory)
    assert rollup.forget(memory, 0) == 0
    append(memory, conversation()[1:], 1, ring="r1")
    roll_up(memory)
    assert counted(memory) == [("n1", False, 2, 6)]
    assert rollup.forget(memory, 0) == 1  # no gap any more


def test_flows_that_a_reboot_cut_off_are_remembered_while_their_ring_is_rolled_up(memory: Store) -> None:
    """A sink that was away for longer than it keeps verdicts."""
    late = batches.START + 2 * HOUR
    rows = flow({"event": EventKind.NEW}, {"event": EventKind.NEW, "flow_id": 2, "sport": 2, "time": late},
                {"event": EventKind.END, "packets_original": 5, "time": late}, **FIVE)  # fmt: skip
    append(memory, rows, ring="r1")
    append(memory, batches.verdict(flow_id=3, time=batches.START + 3 * HOUR), ring="r2")
    before = batches.CLOCK + batches.START + 24 * HOUR
    assert rollup.step(memory, 1) == 1
    assert rollup.forget(memory, before) == 0
    roll_up(memory)
    assert counted(memory) == [("n1", False, 3, 7)]
    assert rollup.forget(memory, before) == 1


@pytest.mark.parametrize(("again", "owner"), [(False, "n1"), (True, "n2")])
def test_a_flow_that_a_reboot_cut_off_owns_nothing_later(memory: Store, again: bool, owner: str) -> None:
    append(memory, conversation()[:1], node="n1", ring="r1")
    roll_up(memory)
    if again:
        append(memory, batches.verdict(sport=1), node="n1", ring="r2")
    append(memory, conversation(60 * 10**9), node="n2", ring="r1")
    roll_up(memory)
    assert ("n2", owner == "n1", 1, 5) in counted(memory)
