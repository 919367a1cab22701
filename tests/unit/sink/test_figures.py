"""What metrics are told of the history: against histories whose answers are known."""

import time
from typing import Any

import msgspec
import numpy as np

from schemas.codes import Decision, EventKind
from schemas.messages import RuleInfo
from schemas.verdict import STRIDE
from sink.history import figures
from sink.store import Commit, Store, prepare
from tests.support.batches import CLOCK, START, batch, loss_record, policy_record, verdict
from tests.support.rollups import HOUR, fold, roll_up

SECOND = 10**9


def flow(number: int, start: int, **fields: Any) -> np.ndarray:
    """`new` and `end` of a flow, a second apart, `start` seconds after the traffic's begin."""
    begin = START + start * SECOND
    return np.concatenate([
        verdict(flow_id=number, time=begin, **fields),
        verdict(flow_id=number, time=begin + SECOND, event=EventKind.END, packets_original=2, **fields),
    ])  # fmt: skip


def store(memory: Store, rows: np.ndarray, first: int = 0, **of: str) -> None:
    memory.append(Commit(batches=[prepare(batch(rows, first * STRIDE, **of))]))
    roll_up(memory)


def counted(memory: Store, before: dict[str, np.ndarray]) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    with memory.cursor() as cursor:
        now = figures.denied_pairs(cursor)
    return {node: figures.new_pairs(before.get(node, pairs[:0]), pairs) for node, pairs in now.items()}, now


def test_a_pair_is_new_when_it_is_denied_for_the_first_time(memory: Store) -> None:
    deny = {
        "decision": Decision.DENY,
        "src": b"\0" * 12 + bytes([10, 0, 1, 9]),
        "dst": b"\0" * 12 + bytes([10, 0, 2, 1]),
    }
    store(memory, np.concatenate([flow(1, 0, **deny, dport=22), flow(2, 5, **deny, dport=22), flow(3, 9, dport=80)]))
    new, before = counted(memory, {})
    assert new == {"n1": 1}
    store(memory, np.concatenate([flow(4, 60, **deny, dport=22), flow(5, 61, **deny, dport=23)]), 6)
    new, before = counted(memory, before)
    assert new == {"n1": 1}
    assert fold(memory, CLOCK + START + 3 * HOUR)  # the same pairs, now by the hour
    new, before = counted(memory, before)
    assert new == {"n1": 0}
    store(memory, flow(1, 70, **deny, dport=22), node="n2", ring="r2")  # another node, at the same time: a duplicate
    store(memory, flow(1, 9000, **deny, dport=22), 2, node="n2", ring="r2")
    assert counted(memory, before)[0] == {"n1": 0, "n2": 1}


def test_rules_and_when_each_last_decided(memory: Store) -> None:
    rules = [RuleInfo(64, "old", "allow"), RuleInfo(65, "kept", "allow"), RuleInfo(66, "never", "deny")]
    now = [RuleInfo(64, "kept", "allow"), RuleInfo(65, "never", "deny"), RuleInfo(66, "fresh", "deny")]
    memory.append(Commit(records=[
        policy_record(revision=1, time=CLOCK + START, rules=rules),
        policy_record(revision=2, time=CLOCK + START + 100 * SECOND, rules=now),
        msgspec.structs.replace(loss_record(8, time=CLOCK + START + 200 * SECOND), revision=2),
    ]))  # fmt: skip
    store(memory, np.concatenate([
        flow(1, 10, rule=64), flow(2, 20, rule=65), flow(3, 110, rule=64, revision=2), flow(4, 120, rule=0, revision=2),
    ]))  # fmt: skip
    with memory.cursor() as cursor:
        found = figures.idle_rules(cursor, ["n1", "nobody"])
    assert {rule: (last - CLOCK - START) // SECOND for rule, last in found.pop("n1").items()} == {
        "kept": 111, "never": 0, "fresh": 100,
    }  # fmt: skip
    assert found == {}

    # The clock is set back an hour: the newest record is still that of the highest counters.
    memory.append(Commit(records=[loss_record(9, time=CLOCK - 3600 * SECOND, packets=9, revision=1)]))
    with memory.cursor() as cursor:
        assert figures.idle_rules(cursor, ["n1"])["n1"].keys() == {"old", "kept", "never"}


def test_books_are_of_the_newest_ring_and_balance_over_the_recent_ones(memory: Store) -> None:
    now = time.time_ns()
    memory.append(Commit(records=[
        loss_record(0, ring="r0", time=now - 40 * 86400 * SECOND, packets=9, judged_packets=700, final=True),
        loss_record(0, ring="r1", time=now, packets=5, final=True),
    ]))  # fmt: skip
    with memory.cursor() as cursor:
        found = figures.books(cursor)
    assert found["n1"].balanced is True  # r0 does not, but that is long ago
    assert found["n1"].packets == {"parsed": 5, "judged": 5, "flows": 5, "untracked": 0}
    assert found["n1"].events["stored"] == 0
    memory.append(Commit(records=[loss_record(3, ring="r2", time=now, packets=5, final=True)]))
    with memory.cursor() as cursor:
        found = figures.books(cursor)
    assert found["n1"].balanced is False  # three events published, none stored
    assert found["n1"].events | {"published": 3, "in_flight": 3} == found["n1"].events
