"""Audits of generated traffic under generated policies equal a loop over its events, written the plain way."""

from datetime import UTC, datetime
from random import Random
from typing import Any

import numpy as np
import pytest

from schemas.verdict import STRIDE
from sink.client import History
from sink.history.audit import RUNNING, Question, Text
from sink.store import Commit, Store, memory_store, prepare
from tests.support import batches, naive_audit
from tests.support.naive_audit import Day
from tests.support.policies import address_pools, as_yaml, random_packets
from tests.support.random_policies import random_host, random_policy
from tests.support.rollups import roll_up

FLOWS = 100
KEY = ("src_identity", "dst_identity", "proto", "dport", "decision_before", "rule_before", "rule_after")


def append(store: Store, rows: np.ndarray, first: int = 0) -> None:
    store.append(Commit(batches=[prepare(batches.batch(rows, first * STRIDE))]))


def nanoseconds(text: str) -> int:
    whole = datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
    return int(whole.timestamp()) * 10**9 + int(text[20:29])


def numbers(entry: dict[str, Any]) -> list[Any]:
    return [*(entry[name] for name in ("flows", "packets", "bytes", "crossing")), nanoseconds(entry["first_seen"]),
            nanoseconds(entry["last_seen"]), entry.get("lower_bound", False)]  # fmt: skip


def flat(document: dict[str, Any]) -> dict[tuple, list[Any]]:
    """A document as `naive_audit.audit` gives it."""
    found: dict[tuple, list[Any]] = {}
    if document["unchanged"]["first_seen"] is not None:
        found["unchanged",] = numbers(document["unchanged"])
    for name in ("newly_denied", "newly_allowed", "uncertain"):
        for entry in document[name]:
            key = (entry.get("cause", name), *(entry[part] for part in KEY))
            assert key not in found
            found[key] = numbers(entry)
    return found


def world(seed: int) -> tuple[list[Day], np.ndarray, dict[str, Any]]:
    """Two days, their traffic, and a candidate."""
    random = Random(seed)
    days = [Day(n, random_policy(random), random_host(random) or ("10.9.9.9",), batches.CLOCK + n) for n in (1, 2)]
    candidate = random_policy(random)
    for day in days:
        day.record()
    policies = [candidate, *(day.policy for day in days)]
    pools = address_pools(*policies, host=(*days[0].host, *days[1].host))
    return days, naive_audit.traffic(random, random_packets(random, pools, FLOWS), days), candidate


def recorded(days: list[Day], rows: np.ndarray, rolled: int = 0) -> Store:
    """A store of it, the first `rolled` events rolled up."""
    store = memory_store()
    store.append(Commit(records=[day.record() for day in days]))
    if rolled:
        append(store, rows[:rolled])
        roll_up(store)
    append(store, rows[rolled:], rolled)
    return store


@pytest.mark.parametrize("seed", range(10))
def test_audits_equal_a_naive_loop(seed: int) -> None:
    days, rows, candidate = world(seed)
    text = Text(as_yaml(candidate))
    store = recorded(days, rows, len(rows) * (seed % 3) // 3)
    history = History.on_store(store)
    assert flat(history.audit(Question(candidate=text))) == naive_audit.audit(rows, days, candidate)
    found = history.audit(Question(candidate=text, identities="now", against=RUNNING))
    assert flat(found) == naive_audit.audit(rows, days, candidate, now=True, against=True)
    since = int(rows["time"][len(rows) // 2]) + batches.CLOCK
    found = history.audit(Question(candidate=text, since=since))
    assert flat(found) == naive_audit.audit(rows, days, candidate, since=since)
    store.close()


@pytest.mark.parametrize("seed", range(20, 23))
def test_under_the_policy_that_decided_nothing_changes(seed: int) -> None:
    days, rows, _ = world(seed)
    days = days[:1]
    days[0].record()
    rows = rows[rows["revision"] == 1]
    rows["flags"] &= 8
    store = recorded(days, rows)
    document = History.on_store(store).audit(Question(candidate=Text(as_yaml(days[0].policy))))
    assert (document["newly_denied"], document["newly_allowed"], document["uncertain"]) == ([], [], [])
    assert document["unchanged"]["flows"] == document["flows"] == len(np.unique(rows["flow_id"][rows["flow_id"] > 0]))
    store.close()
