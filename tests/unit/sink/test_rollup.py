"""Roll-ups equal sums written the plain way, however the events come, are cut, and are interrupted."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codes import Decision, EventKind, RuleId
from schemas.verdict import STRIDE
from sink.client import History
from sink.errors import StoreError
from sink.store import Store, memory_store, retention, rollup
from tests.support import batches
from tests.support.rollups import HOUR, append, flow, fold, keep, naive, roll_up, stored, without_nothing

Open = Callable[..., Store]
TRAFFIC = batches.traffic(3000, seconds=600.0).rows


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


def test_what_fills_a_gap_when_verdicts_behind_it_are_deleted_is_refused(
    on_disk: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The totals of flows that went on are summed up, and which these were nobody knows any more."""
    one, two = (100, 120), (2000, 2020)
    store = on_disk()
    for first, past in ((0, 100), (120, 2000), (2020, 3000)):
        append(store, TRAFFIC[first:past], first)
    ring = store.state.rings["n1", "r1"]
    store.declare_gaps([(ring, first * STRIDE, past * STRIDE, "a test") for first, past in (one, two)])
    roll_up(store)
    monkeypatch.setattr(retention, "now_ns", lambda: batches.CLOCK + int(TRAFFIC["time"][1000]) + 10**9)
    assert keep(store, keep_age=1.0) == 980
    before = stored(store, "store.pairs_1m")
    store.close()

    store = on_disk()
    for _ in range(2):  # and again when it comes again
        append(store, TRAFFIC[90:130], 90)  # the edges are there already
        assert roll_up(store) == 0
        assert stored(store, "store.pairs_1m") == before
    dropped = store.counters.verdicts.dropped
    assert (dropped["late"], dropped["duplicate"]) == (40, 40)
    append(store, TRAFFIC[slice(*two)], two[0])
    assert roll_up(store) == 20
    told = np.concatenate([TRAFFIC[:100], TRAFFIC[120:]])
    last = {int(row["flow_id"]): int(row["packets_original"]) for row in told}
    found = store.connection.execute("SELECT sum(flows), sum(packets_original) FROM store.pairs_1m").fetchone()
    assert found == (len(last), sum(last.values()))
    gaps = store.connection.execute("SELECT first, past, cause FROM store.gaps").fetchall()
    assert gaps == [(100 * STRIDE, 120 * STRIDE, "came after verdicts behind it had been deleted")]
    (line,) = History.on_store(store).ledger()["rings"]
    assert [(gap["first"], gap["count"]) for gap in line["events"]["gaps"]] == [(100, 20)]
    store.close()


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


@pytest.mark.once
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
