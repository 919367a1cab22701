"""The ledger: what balances, what does not, and what is still on its way."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from schemas import envelope
from schemas.messages import FlowSums
from schemas.verdict import STRIDE
from sink.client import History
from sink.history.ledger import rfc3339
from sink.store import Commit, Store, prepare
from tests.support import batches
from tests.support.rollups import keep

Rows = Callable[[Store, str], list[dict[str, Any]]]
TRAFFIC = batches.traffic(300)
N = len(TRAFFIC.rows)


def ledger(store: Store, since: int | None = None) -> dict[str, Any]:
    return History.on_store(store).ledger(since)


def only(document: dict[str, Any]) -> dict[str, Any]:
    assert len(document["rings"]) == 1
    assert document["balanced"] == document["rings"][0]["balanced"]
    return dict(document["rings"][0])


def with_rows(store: Store, past: int = N, **loss: Any) -> None:
    """The first `past` rows, and a loss record of all `N`."""
    given = {"packets": TRAFFIC.packets} | loss
    batch = prepare(batches.batch(TRAFFIC.rows[:past]))
    store.append(Commit(batches=[batch], records=[batches.loss_record(N, **given)]))


def test_a_closed_ring_that_balances(memory: Store) -> None:
    with_rows(memory, untracked=3, lost=5, held_back=2, final=True)
    memory.append(Commit(records=[batches.policy_record("closed", end=N * STRIDE)]))
    found = only(ledger(memory))
    assert found["balanced"] is True
    assert found["final"] is True
    assert found["closed"] is True
    assert found["packets"] == {
        "parsed": TRAFFIC.packets + 3, "judged": TRAFFIC.packets + 3, "flows": TRAFFIC.packets, "untracked": 3,
        "balanced": True,
    }  # fmt: skip
    assert found["events"] == {
        "due": N + 7, "emitted": N, "pending": 0, "lost": 5, "held_back": 2, "published": N, "stored": N,
        "in_flight": 0, "gaps": [], "balanced": True, "losses": [
            {"kind": kind, "decision": decision, "events": events, "since": None, "until": rfc3339(batches.CLOCK)}
            for kind, decision, events in [("held_back", "allow", 2), ("lost", "allow", 3), ("lost", "deny", 2)]
        ],
    }  # fmt: skip


def test_an_empty_store_balances(memory: Store) -> None:
    assert ledger(memory) == {"balanced": True, "rings": []}


@pytest.mark.parametrize(
    ("loss", "packets", "events"),
    [
        ({"judged_packets": TRAFFIC.packets - 1}, False, True),
        ({"packets": TRAFFIC.packets - 1, "judged_packets": TRAFFIC.packets}, False, True),
        ({"consumed": N - 1}, True, False),
        ({"pending": 1}, True, True),
    ],
)
def test_a_final_ring_is_exact(memory: Store, loss: dict[str, Any], packets: bool, events: bool) -> None:
    if "consumed" in loss:
        with_rows(memory, N - 1, final=True, **loss)
    else:
        with_rows(memory, final=True, **loss)
    found = only(ledger(memory))
    assert (found["packets"]["balanced"], found["events"]["balanced"]) == (packets, events)
    assert found["balanced"] == (packets and events)


def test_events_due_that_went_nowhere(memory: Store) -> None:
    counters = batches.loss_record(N, packets=TRAFFIC.packets).counters | {"events_due": N + 1}
    with_rows(memory, final=True, counters=counters)
    assert only(ledger(memory))["events"]["balanced"] is False


def test_what_is_not_stored_yet_is_in_flight_while_the_ring_lives(memory: Store) -> None:
    with_rows(memory, N - 100)
    found = only(ledger(memory))
    assert (found["balanced"], found["events"]["in_flight"], found["events"]["stored"]) == (True, 100, N - 100)


def test_nothing_is_in_flight_in_the_end(memory: Store) -> None:
    with_rows(memory, N - 100, final=True)
    found = only(ledger(memory))
    assert (found["balanced"], found["events"]["in_flight"]) == (False, 100)


def test_a_stated_gap_accounts_for_what_is_missing(memory: Store) -> None:
    with_rows(memory, N - 100, final=True)
    memory.declare_gaps([(memory.state.rings["n1", "r1"], (N - 100) * STRIDE, N * STRIDE, "gone")])
    found = only(ledger(memory))
    assert found["balanced"] is True
    assert [(gap["first"], gap["past"], gap["count"], gap["cause"]) for gap in found["events"]["gaps"]] == [
        (N - 100, N, 100, "gone")
    ]


def test_what_is_stored_beyond_the_record_does_not_count(memory: Store) -> None:
    """The loss record is up to a second old: rows that came since are of a later moment."""
    with_rows(memory, consumed=N - 50)
    assert only(ledger(memory))["events"]["stored"] == N - 50


def test_of_a_live_ring_the_last_scan_counts(memory: Store) -> None:
    scan = FlowSums(live=2, packets=10, bytes=0, due=0)
    with_rows(memory, live=scan, packets=TRAFFIC.packets)
    memory.append(Commit(records=[batches.loss_record(N + 500, packets=99_999, time=batches.CLOCK + 1, flows=None)]))
    found = only(ledger(memory))
    assert found["packets"]["flows"] == TRAFFIC.packets + 10
    assert found["balanced"] is True


def test_before_the_first_scan_there_is_nothing_to_compare(memory: Store) -> None:
    with_rows(memory, flows=None)
    found = only(ledger(memory))
    assert (found["balanced"], found["packets"]["flows"], found["events"]["pending"]) == (True, None, None)


@pytest.mark.parametrize(("difference", "balanced"), [(64, True), (65, False)])
def test_a_live_ring_may_be_a_few_packets_off(memory: Store, difference: int, balanced: bool) -> None:
    with_rows(memory, judged_packets=TRAFFIC.packets + difference)
    assert only(ledger(memory))["balanced"] is balanced


def test_a_ring_without_a_loss_record_is_not_accounted_for(memory: Store) -> None:
    memory.append(Commit(batches=[prepare(batches.batch(TRAFFIC.rows))]))
    assert only(ledger(memory))["balanced"] is False


def test_a_record_of_more_packets_than_63_bits_say_is_shown(memory: Store, rows: Rows) -> None:
    """A record is what a node sends: a broken one must not take the ledger of all others away."""
    huge = (1 << 64) - 1
    with_rows(memory, judged_packets=huge, final=True)
    broken = batches.loss_record(N, node="n2", ring="r2", judged_packets=huge, final=True)
    broken.counters.update(dict.fromkeys(broken.counters, huge))
    memory.append(Commit(records=[broken]))
    found = {row["node"]: row for row in rows(memory, "SELECT * FROM ledger")}
    assert [(row["judged"], row["parsed"], row["balanced"]) for row in found.values()] == [
        ((1 << 63) - 1, TRAFFIC.packets, False), ((1 << 63) - 1, (1 << 63) - 1, False),
    ]  # fmt: skip
    assert ledger(memory)["balanced"] is False
    assert {row["events"] for row in rows(memory, "SELECT * FROM lost_events WHERE node = 'n2'")} == {(1 << 63) - 1}


def test_retention_does_not_change_what_was_stored(memory: Store) -> None:
    with_rows(memory, final=True)
    assert keep(memory, keep_age=1.0) == N
    found = only(ledger(memory))
    assert (found["balanced"], found["events"]["stored"]) == (True, N)


def test_since_leaves_out_rings_not_heard_of_since(memory: Store) -> None:
    for ring, at in (("r1", batches.CLOCK), ("r2", batches.CLOCK + 100)):
        memory.append(Commit(records=[batches.loss_record(0, ring=ring, time=at, final=True)]))
    assert [ring["ring"] for ring in ledger(memory)["rings"]] == ["r1", "r2"]
    assert [ring["ring"] for ring in ledger(memory, batches.CLOCK + 1)["rings"]] == ["r2"]
    assert [ring["ring"] for ring in ledger(memory, batches.CLOCK + 101)["rings"]] == []


def test_the_view_has_a_row_a_ring(memory: Store, rows: Rows) -> None:
    with_rows(memory, final=True)
    (found,) = rows(memory, "SELECT node, ring, parsed, stored, gap_events, in_flight, balanced FROM ledger")
    assert found == {"node": "n1", "ring": "r1", "parsed": TRAFFIC.packets, "stored": N, "gap_events": 0,
                     "in_flight": 0, "balanced": True}  # fmt: skip


def test_losses_say_how_many_when_and_of_which_decision(memory: Store, rows: Rows) -> None:
    second = 10**9
    for at, lost, held_back in ((0, 0, 0), (1, 4, 0), (2, 4, 0), (3, 10, 7)):
        memory.append(Commit(records=[
            batches.loss_record(0, time=batches.CLOCK + at * second, lost=lost, held_back=held_back)
        ]))  # fmt: skip
    ring = memory.state.rings["n1", "r1"]
    memory.declare_gaps([(ring, 0, 3 * STRIDE, "a test")])
    told = rows(
        memory,
        f"""SELECT (epoch_ns(since) - {batches.CLOCK}) // {second} AS since, kind, decision, events,
        (epoch_ns(until) - {batches.CLOCK}) // {second} AS until FROM lost_events WHERE kind <> 'gap' ORDER BY ALL""",
    )
    assert [tuple(row.values()) for row in told] == [
        (0, "lost", "allow", 2, 1), (0, "lost", "deny", 2, 1), (2, "held_back", "allow", 7, 3),
        (2, "lost", "allow", 3, 3), (2, "lost", "deny", 3, 3),
    ]  # fmt: skip
    assert rows(memory, "SELECT since, kind, decision, events FROM lost_events WHERE kind = 'gap'") == [
        {"since": None, "kind": "gap", "decision": None, "events": 3}
    ]
    (document,) = ledger(memory)["rings"]
    assert [(loss["kind"], loss["decision"], loss["events"]) for loss in document["events"]["losses"]] == [
        ("held_back", "allow", 7), ("lost", "allow", 5), ("lost", "deny", 5),
    ]  # fmt: skip


def test_a_clock_that_is_set_back_loses_nothing_twice(memory: Store, rows: Rows) -> None:
    """Records of the hour that comes twice lie between those of the first time."""
    second = 10**9
    for at, produced, lost in ((0, 5, 0), (10, 6, 2), (20, 7, 2), (5, 8, 2), (15, 8, 6), (25, 8, 6)):
        moment = batches.CLOCK + at * second
        memory.append(Commit(records=[batches.loss_record(produced, time=moment, lost=lost)]))
    told = rows(
        memory,
        f"""SELECT (epoch_ns(since) - {batches.CLOCK}) // {second} AS since, sum(events)::BIGINT AS events,
        (epoch_ns(until) - {batches.CLOCK}) // {second} AS until FROM lost_events GROUP BY ALL ORDER BY ALL""",
    )
    assert [tuple(row.values()) for row in told] == [(0, 2, 10), (5, 4, 15)]


def test_a_clock_that_is_set_back_leaves_no_old_record_the_newest(memory: Store, rows: Rows) -> None:
    """An hour back: what the node said before lies in the future, and what it says now is the newest all the same."""
    now, hour = time.time_ns(), 3_600_000_000_000
    live = FlowSums(live=1, packets=5, bytes=5, due=0)
    for at, produced, revision in ((now + hour - 10**9, 5, 1), (now + hour, 6, 1), (now - 10**9, 7, 2), (now, 7, 2)):
        memory.append(Commit(records=[
            batches.loss_record(produced, time=at, packets=produced, live=live, revision=revision)
        ]))  # fmt: skip
    (line,) = ledger(memory)["rings"]
    assert (line["time"], line["events"]["emitted"], line["packets"]["parsed"]) == (rfc3339(now), 7, 12)
    seen = "SELECT state, revision, epoch_ns(last) AS last FROM nodes"
    assert rows(memory, seen) == [{"state": "live", "revision": 2, "last": now}]
    assert rows(memory, "SELECT epoch_ns(last) AS last FROM ledger") == [{"last": now}]
    assert ledger(memory, now + 1) == {"balanced": True, "rings": []}
    keep(memory, keep_age=1e-6)  # the newest stays; what lies in the future is not old yet
    kept = "SELECT epoch_ns(time) - $now AS t FROM store.loss ORDER BY t".replace("$now", str(now))
    assert [row["t"] for row in rows(memory, kept)] == [0, hour - 10**9, hour]
    (line,) = ledger(memory)["rings"]
    assert (line["time"], line["events"]["emitted"]) == (rfc3339(now), 7)


def test_the_clock_steps_of_a_ring(on_disk: Callable[..., Store]) -> None:
    """Of batches in the ring's order; one that comes late has the clock of its day, and a drift is no step."""
    second = 10**9
    store = on_disk()

    def append(first: int, past: int, ahead: int) -> None:
        data = envelope.encode(TRAFFIC.rows[first:past], node="n1", ring="r1", start=first * STRIDE,
                               clock=batches.CLOCK + ahead, rev=1)  # fmt: skip
        store.append(Commit(batches=[prepare(envelope.decode(data))], records=[batches.loss_record(N)]))

    append(0, 10, 0)
    append(20, 30, 3600 * second)
    append(10, 20, 0)
    append(30, 40, 3600 * second + second - 1)
    store.close()
    store = on_disk()
    append(40, 50, 3600 * second)
    append(50, 60, -second)
    steps = [(20, 3600 * second, 3600.0), (50, -second, -3601.0)]
    assert only(ledger(store))["clock_steps"] == [
        {"time": rfc3339(int(TRAFFIC.rows["time"][at]) + batches.CLOCK + ahead), "seconds": seconds}
        for at, ahead, seconds in steps
    ]
    store.close()


def test_small_steps_of_a_clock_are_one_when_they_make_a_second(on_disk: Callable[..., Store]) -> None:
    """Before and after a restart: what it was last noted at is in the store."""
    store = on_disk()
    for number, ahead in enumerate((0, 600, 1200, 6200, 6200, 7100)):  # ms
        if number == 4:
            store.close()
            store = on_disk()
        data = envelope.encode(TRAFFIC.rows[number : number + 1], node="n1", ring="r1", start=number * STRIDE,
                               clock=batches.CLOCK + ahead * 10**6, rev=1)  # fmt: skip
        store.append(Commit(batches=[prepare(envelope.decode(data))], records=[batches.loss_record(N)]))
    assert [step["seconds"] for step in only(ledger(store))["clock_steps"]] == [1.2, 5.0]
    store.close()


def test_a_node_that_was_heard_of_an_hour_ahead_and_then_no_more_is_silent(memory: Store, rows: Rows) -> None:
    now = time.time_ns()
    for at, packets in ((now + 3_600_000_000_000, 1), (now - 60_000_000_000, 2)):
        memory.append(Commit(records=[batches.loss_record(1, time=at, packets=packets)]))
    assert rows(memory, "SELECT state FROM nodes") == [{"state": "silent"}]


def test_a_node_that_does_not_tell_the_decision(memory: Store) -> None:
    record = batches.loss_record(0, lost=6)
    del record.counters["samples_lost_denied"]
    memory.append(Commit(records=[record]))
    (document,) = ledger(memory)["rings"]
    assert [(loss["kind"], loss["decision"], loss["events"]) for loss in document["events"]["losses"]] == [
        ("lost", None, 6)
    ]
