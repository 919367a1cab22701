"""Roll-ups equal sums written the plain way, however the events come, are cut, and are interrupted."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codes import Decision, EventKind, RuleId
from schemas.verdict import STRIDE
from sink.errors import StoreError
from sink.store import Commit, Store, memory_store, prepare, rollup
from tests.support import batches
from tests.support.rollups import HOUR, fold, keep, naive, roll_up, stored, without_nothing

Open = Callable[..., Store]
TRAFFIC = batches.traffic(3000, seconds=600.0).rows


def append(store: Store, rows: np.ndarray, first: int = 0, **who: str) -> None:
    store.append(Commit(batches=[prepare(batches.batch(rows, first * STRIDE, **who))]))


def flow(*events: dict[str, Any], **same: Any) -> np.ndarray:
    return np.concatenate([batches.verdict(**{**same, **event}) for event in events])


@pytest.mark.parametrize("events", [1, 6, 1000])
def test_minutes_are_the_sums_of_what_events_add(memory: Store, events: int) -> None:
    rows = TRAFFIC[: 60 * events]
    append(memory, rows)
    assert roll_up(memory, events) == len(rows)
    assert stored(memory, "store.pairs_1m") == naive(rows)
    assert list(memory.state.rings["n1", "r1"].rolled) == [(0, len(rows) * STRIDE)]
    assert roll_up(memory) == 0


def test_flows_left_open_are_those_without_an_end(memory: Store) -> None:
    append(memory, TRAFFIC[:1500])
    roll_up(memory)
    ended = set(TRAFFIC[:1500]["flow_id"][TRAFFIC[:1500]["event"] == EventKind.END].tolist())
    expected = set(TRAFFIC[:1500]["flow_id"].tolist()) - ended
    found = memory.connection.execute("SELECT flow_id, epoch_ns(first_seen) FROM store.open_flows").fetchall()
    assert {flow_id for flow_id, _ in found} == expected
    first: dict[int, int] = {}
    for row in TRAFFIC[:1500]:
        first.setdefault(int(row["flow_id"]), int(row["time"]) + batches.CLOCK)
    assert dict(found) == {flow_id: first[flow_id] for flow_id in expected}


def test_an_end_in_a_later_step_adds_what_the_flow_did_since(memory: Store) -> None:
    rows = flow(
        {"event": EventKind.NEW, "packets_original": 1, "bytes_original": 60},
        {"event": EventKind.END, "packets_original": 9, "bytes_original": 900, "time": batches.START + 3 * 60 * 10**9},
    )
    append(memory, rows)
    assert roll_up(memory, 1) == 2
    found = memory.connection.execute(
        "SELECT flows, packets_original, bytes_original FROM store.pairs_1m ORDER BY time"
    ).fetchall()
    assert found == [(1, 1, 60), (0, 8, 840)]


@pytest.mark.parametrize("events", [1, 10])
def test_packets_before_a_change_belong_to_the_verdict_before(memory: Store, events: int) -> None:
    after = {"decision": Decision.DENY, "rule": RuleId.DEFAULT, "revision": 2}
    rows = flow(
        {"event": EventKind.NEW, "packets_original": 1},
        {"event": EventKind.CHANGE, "packets_original": 6, **after},
        {"event": EventKind.END, "packets_original": 10, **after},
    )
    append(memory, rows)
    roll_up(memory, events)
    found = memory.connection.execute(
        "SELECT revision, decision, rule, sum(flows), sum(packets_original) FROM store.pairs_1m GROUP BY ALL ORDER BY 1"
    ).fetchall()
    assert found == [(1, 1, 64, 1, 6), (2, 2, 0, 0, 4)]


def test_untracked_events_are_packets_of_no_flow(memory: Store) -> None:
    append(memory, np.concatenate([batches.untracked(), batches.untracked(), batches.verdict()]))
    roll_up(memory)
    found = memory.connection.execute(
        "SELECT decision, sum(flows), sum(packets_original) FROM store.pairs_1m GROUP BY ALL ORDER BY 1"
    ).fetchall()
    assert found == [(1, 1, 1), (2, 0, 2)]


def test_what_stands_behind_a_hole_waits(memory: Store) -> None:
    append(memory, TRAFFIC[:100])
    append(memory, TRAFFIC[200:300], 200)
    assert roll_up(memory) == 100
    append(memory, TRAFFIC[100:200], 100)
    assert roll_up(memory) == 200
    assert stored(memory, "store.pairs_1m") == naive(TRAFFIC[:300])


def test_what_fills_a_gap_later_counts_once(memory: Store) -> None:
    append(memory, TRAFFIC[:1000])
    append(memory, TRAFFIC[1100:], 1100)
    ring = memory.state.rings["n1", "r1"]
    memory.declare_gaps([(ring, 1000 * STRIDE, 1100 * STRIDE, "a test")])
    assert roll_up(memory) == len(TRAFFIC) - 100
    append(memory, TRAFFIC[1000:1100], 1000)
    assert roll_up(memory) == 100
    last: dict[int, int] = {}
    for row in TRAFFIC:
        last[int(row["flow_id"])] = int(row["packets_original"])
    found = memory.connection.execute("SELECT sum(flows), sum(packets_original) FROM store.pairs_1m").fetchone()
    assert found == (len(last), sum(last.values()))
    assert list(memory.state.rings["n1", "r1"].rolled) == [(0, len(TRAFFIC) * STRIDE)]


@pytest.mark.parametrize("part", [rollup.FOLD_ROWS, 100])
def test_hours_are_the_sums_of_their_minutes(memory: Store, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(rollup, "FOLD_ROWS", part)
    rows = batches.traffic(3000, seconds=3 * 3600.0).rows
    append(memory, rows)
    roll_up(memory)
    first, last = int(rows["time"].min()) + batches.CLOCK, int(rows["time"].max()) + batches.CLOCK
    now = last // HOUR * HOUR + rollup.SETTLED
    hours = last // HOUR - first // HOUR
    assert fold(memory, now) == hours  # one at a time
    assert fold(memory, now) == 0
    assert stored(memory, "store.pairs_1h") == naive(rows, HOUR, (first, last // HOUR * HOUR))
    assert fold(memory, now + HOUR) == 1
    assert stored(memory, "store.pairs_1h") == naive(rows, HOUR)


def test_what_comes_after_its_hour_was_folded_is_in_the_hour_too(memory: Store) -> None:
    append(memory, TRAFFIC[:2000])
    roll_up(memory)
    fold(memory, batches.CLOCK + batches.START + 100 * HOUR)
    append(memory, TRAFFIC[2000:], 2000)
    roll_up(memory)
    assert stored(memory, "store.pairs_1h", HOUR) == naive(TRAFFIC, HOUR)
    assert stored(memory, "store.pairs_1m") == naive(TRAFFIC)


def test_a_step_that_fails_leaves_nothing(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    append(memory, TRAFFIC)
    monkeypatch.setattr(rollup, "folded", lambda connection: connection.execute("SELECT nothing"))
    with pytest.raises(StoreError, match="roll-up"):
        rollup.step(memory)
    monkeypatch.undo()
    assert memory.connection.execute("SELECT count(*) FROM store.pairs_1m").fetchone() == (0,)
    assert roll_up(memory) == len(TRAFFIC)
    assert stored(memory, "store.pairs_1m") == naive(TRAFFIC)


def test_it_goes_on_where_it_was_when_opened_again(on_disk: Open) -> None:
    store = on_disk()
    append(store, TRAFFIC)
    assert rollup.step(store, 1000) == 1000
    store.close()
    store = on_disk()
    assert roll_up(store) == len(TRAFFIC) - 1000
    assert stored(store, "store.pairs_1m") == naive(TRAFFIC)
    store.close()


def test_nothing_is_deleted_before_it_is_rolled_up(memory: Store) -> None:
    append(memory, TRAFFIC[:100])
    append(memory, TRAFFIC[200:300], 200)
    assert keep(memory, keep_age=1.0) == 100
    assert memory.connection.execute("SELECT count(*) FROM store.verdicts").fetchone() == (100,)
    assert stored(memory, "store.pairs_1m") == naive(TRAFFIC[:100])


def test_minutes_go_when_they_are_folded_and_hours_stay(memory: Store) -> None:
    append(memory, TRAFFIC)
    keep(memory, keep_minutes=1.0)
    assert stored(memory, "store.pairs_1m") == naive(TRAFFIC)
    fold(memory)
    keep(memory, keep_minutes=1.0)
    assert stored(memory, "store.pairs_1m") == {}
    assert stored(memory, "store.pairs_1h") == naive(TRAFFIC, HOUR)
    told = memory.connection.execute("SELECT cause, rows FROM store.retention").fetchall()
    assert told == [("minutes", len(naive(TRAFFIC)))]
    keep(memory, keep_minutes=1.0, keep_hours=1.0)
    assert stored(memory, "store.pairs_1h") == {}


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


@pytest.mark.parametrize(("again", "owner"), [(False, "n1"), (True, "n2")])
def test_a_flow_that_a_reboot_cut_off_owns_nothing_later(memory: Store, again: bool, owner: str) -> None:
    append(memory, conversation()[:1], node="n1", ring="r1")
    roll_up(memory)
    if again:
        append(memory, batches.verdict(sport=1), node="n1", ring="r2")
    append(memory, conversation(60 * 10**9), node="n2", ring="r1")
    roll_up(memory)
    assert ("n2", owner == "n1", 1, 5) in counted(memory)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_order_of_arrival_and_any_steps_give_the_same(data: st.DataObject) -> None:
    """Batches cut at random, given in random order, rolled up now and then."""
    rows = TRAFFIC[:200]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=12)))
    edges = [0, *cuts, len(rows)]
    parts = data.draw(st.permutations(list(pairwise(edges))))
    store = memory_store()
    for first, past in parts:
        append(store, rows[first:past], first)
        if data.draw(st.booleans()):
            roll_up(store, data.draw(st.integers(20, 200)))
    roll_up(store)
    assert without_nothing(stored(store, "store.pairs_1m")) == without_nothing(naive(rows))
    store.close()
