"""The books: what one look holds, rates between two, and what is left out when nothing moves."""

import time
from types import SimpleNamespace

import pytest

from collector import accounts as accounts_module
from collector.accounts import Accounts
from schemas.codes import Decision, Outcome
from schemas.messages import FlowSums
from schemas.verdict import STRIDE
from tests.support.fake_datapath import FakeDatapath, FakeKernel, make_rows


def test_a_look_and_its_record() -> None:
    kernel = FakeKernel(100)
    kernel.push(make_rows(5, rule=64))
    kernel.push(make_rows(2, first_flow=10, rule=0, decision=Decision.DENY, outcome=Outcome.DROPPED))
    books = Accounts(FakeDatapath(kernel), "n1")
    sums = FlowSums(7, 7, 420, 0)
    record = books.record(books.take(), collector={"sent": 3}, flows=sums, final=True)
    assert (record.node, record.ring, record.stride, record.final) == ("n1", kernel.ring_id, STRIDE, True)
    assert (record.produced, record.consumed, record.ring_bytes) == (7 * STRIDE, 0, 100 * STRIDE)
    assert (record.judged_packets, record.judged_bytes, record.counters["parsed"]) == (7, 420, 7)
    assert (record.flows, record.collector, record.mode, record.revision) == (sums, {"sent": 3}, "monitor", 0)


def test_rates_and_outage_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(accounts_module, "time", SimpleNamespace(monotonic=lambda: now[0], time_ns=time.time_ns))
    kernel = FakeKernel(1000)
    books = Accounts(FakeDatapath(kernel), "n1")
    books.take()
    assert books.rates() == {"packets": 0.0, "bytes": 0.0, "events": 0.0, "ring_bytes": 0.0}
    assert books.outage_tolerance() is None
    kernel.push(make_rows(100))
    now[0] += 2.0
    books.take()
    assert books.rates() == {"packets": 50.0, "bytes": 3000.0, "events": 50.0, "ring_bytes": 50.0 * STRIDE}
    assert books.outage_tolerance() == 18.0  # 900 of 1,000 records are free, 50 a second come in
    for _ in range(12):
        now[0] += 1.0
        books.take()
    assert books.rates()["events"] == 0.0  # what was more than 10 s ago is no rate


def test_rule_counters_are_read_until_two_looks_saw_nothing_new() -> None:
    kernel = FakeKernel(100)
    datapath, reads = FakeDatapath(kernel), []
    original = datapath.rule_counters
    datapath.rule_counters = lambda slot: reads.append(slot) or original(slot)  # type: ignore[method-assign]
    books = Accounts(datapath, "n1")
    for _ in range(5):
        books.take()
    assert reads == [0, 1, 0, 1]
    kernel.push(make_rows(1))
    assert books.take().judged_packets == 1
    books.take(exact=True)
    assert len(reads) == 8
