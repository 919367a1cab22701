"""Records on their way: policy records all and in order, of loss records the newest."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from collector.records import Records
from schemas import messages, subjects
from schemas.messages import LossRecord, PolicyRecord, RuleInfo
from tests.support.fake_bus import FakeBus
from tests.support.until import until


def policy(revision: int, **fields: object) -> PolicyRecord:
    return PolicyRecord(
        v=1, kind="revision", node="n1", ring="r", time=revision, revision=revision, mode="monitor", **fields
    )  # type: ignore[arg-type]


def loss(time: int, ring: str = "r") -> LossRecord:
    return LossRecord(1, "n1", ring, time, 0, "monitor", 120, 0, 0, 1 << 20, {}, 0, 0, None, {}, {})


@pytest.fixture
async def bus_and_records() -> AsyncIterator[tuple[FakeBus, Records]]:
    bus = FakeBus(open=False)
    records = Records(bus, "n1")  # type: ignore[arg-type]
    task = asyncio.create_task(records.run())
    yield bus, records
    for held in bus.held.values():
        held.cancel()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_policy_in_order_and_only_the_newest_loss(bus_and_records: tuple[FakeBus, Records]) -> None:
    bus, records = bus_and_records
    for time in (1, 2, 3):
        records.put(loss(time))
        records.put(policy(time))
    records.put(loss(9, "older"))
    assert records.waiting == 5
    assert not await records.flush(0.01)
    bus.open = True
    await until(lambda: bus.held, "the first message")
    for name in list(bus.held):
        bus.acknowledge(name)
    assert await records.flush(10)
    decoded = [
        messages.decode(data, PolicyRecord if subject == subjects.policy("n1") else LossRecord)
        for subject, data, _ in bus.delivered
    ]
    assert decoded == [policy(1), policy(2), policy(3), loss(3), loss(9, "older")]
    assert (records.published, records.waiting) == (5, 0)


async def test_a_newer_loss_record_put_while_an_older_is_under_way_is_sent_too(
    bus_and_records: tuple[FakeBus, Records],
) -> None:
    bus, records = bus_and_records
    records.put(loss(1))
    await until(lambda: "r:loss:1" in bus.held, "the first under way")
    records.put(loss(2))
    bus.acknowledge("r:loss:1")
    await until(lambda: "r:loss:2" in bus.held, "the second under way")
    bus.acknowledge("r:loss:2")
    assert await records.flush(10)


async def test_a_record_too_large_goes_without_its_texts(bus_and_records: tuple[FakeBus, Records]) -> None:
    bus, records = bus_and_records
    bus.open = True
    bus.reject_above = 600
    records.put(policy(1, yaml="x" * 1000, hash="h", rules=[RuleInfo(64, "web", "allow", text="y" * 100)]))
    records.put(policy(2, rules=[RuleInfo(64 + i, f"rule {i}", "allow") for i in range(100)]))
    records.put(policy(3))
    assert await records.flush(10)
    assert [messages.decode(data, PolicyRecord) for _, data, _ in bus.delivered] == [
        policy(1, hash="h", rules=[RuleInfo(64, "web", "allow")]),
        policy(3),
    ]
    assert records.refused == 1
