"""The pump: what leaves the ring, in which ranges, and that its position moves over acknowledged ranges only."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from collector.ring import Pump, clock_offset
from schemas import envelope, subjects
from schemas.verdict import SIZE, STRIDE
from tests.support.fake_bus import FakeBus
from tests.support.fake_datapath import FakeDatapath, FakeKernel, make_rows
from tests.support.until import until


@asynccontextmanager
async def pumping(kernel: FakeKernel, bus: FakeBus, **options: Any) -> AsyncIterator[Pump]:
    pump = Pump(FakeDatapath(kernel), bus, node="n1", **({"batch": 10, "batch_wait": 0.02, "in_flight": 4} | options))  # type: ignore[arg-type]
    task = asyncio.create_task(pump.run())
    try:
        yield pump
    finally:
        pump.stop()
        for held in bus.held.values():
            held.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pump.settle(0)
        pump.close()


def ids(kernel: FakeKernel, *ranges: tuple[int, int]) -> list[str]:
    return [f"{kernel.ring_id}:{start * STRIDE}-{end * STRIDE}" for start, end in ranges]


async def test_full_batches_then_what_came_in_time() -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    rows = make_rows(25)
    kernel.push(rows)
    async with pumping(kernel, bus) as pump:
        assert await pump.wait_drained(10)
        assert [m[2] for m in bus.delivered] == ids(kernel, (0, 10), (10, 20), (20, 25))
        assert {m[0] for m in bus.delivered} == {subjects.verdicts("n1")}
        batches = [envelope.decode(m[1]) for m in bus.delivered]
        assert np.array_equal(np.concatenate([b.rows() for b in batches]), rows)
        assert [(b.node, b.ring, b.stride) for b in batches] == [("n1", kernel.ring_id, STRIDE)] * 3
        assert (pump.received, pump.sent, pump.acknowledged) == (25, 25, 25)
        assert kernel.consumed == kernel.produced == 25 * STRIDE


async def test_position_moves_over_the_acknowledged_prefix_only() -> None:
    kernel, bus = FakeKernel(100), FakeBus(open=False)
    kernel.push(make_rows(30))
    async with pumping(kernel, bus) as pump:
        first, second, third = ids(kernel, (0, 10), (10, 20), (20, 30))
        await until(lambda: len(bus.held) == 3, "three batches under way")
        bus.acknowledge(third)
        bus.acknowledge(second)
        await until(lambda: pump.acknowledged == 20, "two acknowledged")
        assert kernel.consumed == 0
        bus.acknowledge(first)
        await until(lambda: kernel.consumed, "the position to move")
        assert kernel.consumed == 30 * STRIDE


async def test_reading_stops_when_in_flight_is_reached() -> None:
    kernel, bus = FakeKernel(200), FakeBus(open=False)
    kernel.push(make_rows(100))
    async with pumping(kernel, bus, in_flight=2) as pump:
        await until(lambda: len(bus.held) == 2 and pump.received == 30, "two under way and one in hand")
        await asyncio.sleep(0)
        assert (pump.received, pump.sent, kernel.consumed) == (30, 20, 0)
        bus.open = True
        for name in list(bus.held):
            bus.acknowledge(name)
        assert await pump.wait_drained(10)
        assert pump.acknowledged == 100


async def test_new_events_wake_an_idle_pump() -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    async with pumping(kernel, bus, batch_wait=0.0) as pump:
        for n in range(1, 4):
            kernel.push(make_rows(1))
            await until(lambda n=n: pump.acknowledged == n, f"event {n}")
    assert [m[2] for m in bus.delivered] == ids(kernel, (0, 1), (1, 2), (2, 3))


async def test_a_record_still_being_written_is_waited_for() -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    kernel.push(make_rows(8))
    kernel.busy_from = 5 * STRIDE
    async with pumping(kernel, bus) as pump:
        await until(lambda: pump.acknowledged == 5, "the records before it")
        assert not pump.drained
        kernel.busy_from = None
        assert await pump.wait_drained(10)
    assert [m[2] for m in bus.delivered] == ids(kernel, (0, 5), (5, 8))


async def test_batches_fit_the_servers_payload() -> None:
    kernel, bus = FakeKernel(100), FakeBus(max_payload=4096 + 3 * SIZE)
    kernel.push(make_rows(9))
    async with pumping(kernel, bus) as pump:
        assert await pump.wait_drained(10)
    assert [m[2] for m in bus.delivered] == ids(kernel, (0, 3), (3, 6), (6, 9))


async def test_a_batch_refused_for_its_size_goes_in_halves() -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    rows = make_rows(8)
    bus.reject_above = len(envelope.encode(rows[:3], node="n1", ring=kernel.ring_id, start=0, clock=1 << 62, rev=0))
    kernel.push(rows)
    async with pumping(kernel, bus) as pump:
        assert await pump.wait_drained(10)
    assert [m[2] for m in bus.delivered] == ids(kernel, (0, 2), (2, 4), (4, 6), (6, 8))
    assert np.array_equal(np.concatenate([envelope.decode(m[1]).rows() for m in bus.delivered]), rows)


async def test_an_heir_reads_what_was_not_acknowledged_again_and_cuts_it_anew() -> None:
    kernel, bus = FakeKernel(100), FakeBus(open=False)
    kernel.push(make_rows(30))
    async with pumping(kernel, bus):
        await until(lambda: len(bus.held) == 3, "three batches under way")
        bus.acknowledge(ids(kernel, (0, 10))[0])
        bus.acknowledge(ids(kernel, (20, 30))[0])
        await until(lambda: kernel.consumed, "the position to move")
    assert kernel.consumed == 10 * STRIDE
    async with pumping(kernel, heir := FakeBus(), batch=15) as pump:
        assert await pump.wait_drained(10)
    assert [m[2] for m in heir.delivered] == ids(kernel, (10, 25), (25, 30))


async def test_settle_gives_up_what_nobody_acknowledges() -> None:
    kernel, bus = FakeKernel(100), FakeBus(open=False)
    kernel.push(make_rows(10))
    async with pumping(kernel, bus) as pump:
        await until(lambda: bus.held, "a batch under way")
        pump.stop()
        assert not await pump.settle(0.05)
    assert kernel.consumed == 0


async def test_stop_hands_over_what_was_read() -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    kernel.push(make_rows(3))
    async with pumping(kernel, bus, batch_wait=3600.0) as pump:
        await until(lambda: pump.received == 3, "the rows to be read")
        assert bus.delivered == []
        pump.stop()
        await until(lambda: pump.sent == 3, "the rows to be sent")
        assert await pump.settle(5)
    assert kernel.consumed == 3 * STRIDE


async def test_every_row_is_offered_once_with_the_clock() -> None:
    seen: list[np.ndarray] = []
    kernel, bus = FakeKernel(100), FakeBus(open=False)

    async def offer(rows: np.ndarray, clock: int, behind: bool) -> None:
        assert abs(clock - clock_offset()) < 10**9
        seen.append(rows)

    rows = make_rows(12)
    kernel.push(rows)
    async with pumping(kernel, bus, offer=offer):
        await until(lambda: sum(map(len, seen)) == 12, "all rows offered, acknowledged or not")
    assert np.array_equal(np.concatenate(seen), rows)


async def test_a_fault_of_the_ring_ends_the_pump() -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    kernel.failures["release"] = ValueError("no such position")
    kernel.push(make_rows(10))
    pump = Pump(FakeDatapath(kernel), bus, node="n1", batch=10, batch_wait=0.02, in_flight=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such position"):
        await asyncio.wait_for(pump.run(), 10)
    pump.close()


async def test_idle_waits_grow_and_are_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, bus = FakeKernel(100), FakeBus()
    waits: list[float] = []
    async with pumping(kernel, bus) as pump:
        wait: Callable[..., Any] = pump._wakeup.wait

        async def noted(seconds: float) -> None:
            waits.append(seconds)
            await wait(0.0)

        monkeypatch.setattr(pump._wakeup, "wait", noted)
        await until(lambda: len(waits) > 8, "idle rounds")
    assert waits[-1] == 0.25
    assert sorted(waits) == waits
