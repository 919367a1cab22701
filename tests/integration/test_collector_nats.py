"""Ring → JetStream with a real nats-server that dies, goes away, and comes back: every event arrives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import numpy as np

from collector.bus import Bus
from collector.ring import Pump
from schemas import envelope, subjects
from schemas.verdict import STRIDE
from tests.support.fake_datapath import FakeDatapath, FakeKernel, make_rows
from tests.support.nats import NatsServer
from tests.support.until import PATIENCE, until

BATCH = 200


@asynccontextmanager
async def pumping(kernel: FakeKernel, server: NatsServer, **options: Any) -> AsyncIterator[tuple[Pump, Bus]]:
    """A pump and its bus; leaving is a crash: nothing is flushed."""
    bus = Bus(server.url, name="test")
    pump = Pump(
        FakeDatapath(kernel, adopted=True), bus, node="n1",
        **({"batch": BATCH, "batch_wait": 0.01, "in_flight": 16} | options),
    )  # fmt: skip
    tasks = [asyncio.create_task(bus.run()), asyncio.create_task(pump.run())]
    try:
        yield pump, bus
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pump.settle(0)
        pump.close()


async def stored(server: NatsServer) -> list[envelope.Envelope]:
    """All batches in the stream VERDICTS, in its order."""
    client = await nats.connect(server.url)
    js = client.jetstream()
    last = (await js.stream_info(subjects.VERDICTS_STREAM)).state.last_seq
    out = []
    for number in range(1, last + 1):
        message = await js.get_msg(subjects.VERDICTS_STREAM, number)
        out.append(envelope.decode(message.data or b""))
    await client.close()
    return out


def check_cover(batches: list[envelope.Envelope], produced: int) -> np.ndarray:
    """Ranges, trimmed where they overlap, cover [0, produced) exactly; returns the flow ids in ring order."""
    rows = np.zeros(produced // STRIDE, np.uint64)
    covered = np.zeros(len(rows), bool)
    for batch in batches:
        at = slice(batch.start // STRIDE, batch.end // STRIDE)
        ids = batch.columns()["flow_id"]
        assert np.array_equal(rows[at][covered[at]], ids[covered[at]]), "the same range, other rows"
        rows[at], covered[at] = ids, True
    assert covered.all(), f"{(~covered).sum()} of {len(rows)} events are missing"
    return rows


async def feed(kernel: FakeKernel, total: int, chunk: int = 50) -> None:
    """Push `total` events with flow ids 1…, waiting for room: the test's ring never loses."""
    pushed = 0
    while pushed < total:
        room = len(kernel.ring) - (kernel.produced - kernel.consumed) // STRIDE
        n = min(chunk, room, total - pushed)
        if n:
            assert kernel.push(make_rows(n, first_flow=pushed + 1)) == n
            pushed += n
        await asyncio.sleep(0.002)


async def test_kill_9_of_the_server_under_load(nats_server: NatsServer) -> None:
    kernel, total = FakeKernel(4096), 20_000
    async with pumping(kernel, nats_server) as (pump, bus):
        feeding = asyncio.create_task(feed(kernel, total))
        for round_ in range(3):
            await until(lambda r=round_: pump.acknowledged >= total // 5 * (r + 1), f"load before kill {round_}")
            nats_server.kill()
            nats_server.start()
        await feeding
        assert await pump.wait_drained(PATIENCE)
        assert bus.connects == 4
        assert pump.acknowledged == total
    assert kernel.consumed == kernel.produced == total * STRIDE
    assert np.array_equal(check_cover(await stored(nats_server), kernel.produced), np.arange(1, total + 1))


async def test_a_client_that_closes_without_a_word(nats_server: NatsServer) -> None:
    """As nats-py's does when the connection is reset while it closes it: `drain` raises, nobody is called."""
    kernel = FakeKernel()
    async with pumping(kernel, nats_server) as (pump, bus):
        await feed(kernel, 500)
        await until(lambda: pump.acknowledged == 500, "the first events")

        async def reset() -> None:
            raise ConnectionResetError("Connection lost")

        client = bus._client
        assert client is not None and client._transport is not None
        client._transport.drain = reset  # type: ignore[method-assign]
        client._pending, client._pending_data_size = [b"PING\r\n"], 6  # what it was just about to send
        nats_server.kill()
        await until(lambda: client.is_closed, "the end of the connection")
        nats_server.start()
        await feed(kernel, 500)
        await until(lambda: pump.acknowledged == 1000, "all events")
        assert bus.connects == 2
    check_cover(await stored(nats_server), 1000 * STRIDE)


async def test_away_for_a_while_then_everything(nats_server: NatsServer) -> None:
    kernel = FakeKernel(4096)
    async with pumping(kernel, nats_server) as (pump, bus):
        kernel.push(make_rows(500))
        assert await pump.wait_drained(PATIENCE)
        nats_server.stop()
        await until(lambda: not bus.connected, "the bus to notice")
        position = kernel.consumed
        kernel.push(make_rows(3000, first_flow=501))
        await until(lambda: pump.received > 500, "reading to go on as far as it may")
        assert kernel.consumed == position == 500 * STRIDE
        assert bus.client is None
        nats_server.start()
        assert await pump.wait_drained(PATIENCE)
    assert np.array_equal(check_cover(await stored(nats_server), kernel.produced), np.arange(1, 3501))


async def test_a_server_that_hangs(nats_server: NatsServer) -> None:
    kernel = FakeKernel(4096)
    async with pumping(kernel, nats_server) as (pump, bus):
        kernel.push(make_rows(100))
        assert await pump.wait_drained(PATIENCE)
        nats_server.pause()
        kernel.push(make_rows(2000, first_flow=101))
        await until(lambda: bus.retried, "an attempt to time out")
        assert kernel.consumed == 100 * STRIDE
        nats_server.resume()
        assert await pump.wait_drained(PATIENCE)
    assert np.array_equal(check_cover(await stored(nats_server), kernel.produced), np.arange(1, 2101))


async def test_a_start_without_server_is_one_line_and_goes_on_when_it_comes(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "ztlens.collector")
    server, kernel = NatsServer(tmp_path), FakeKernel(4096)
    kernel.push(make_rows(1000))
    async with pumping(kernel, server) as (pump, bus):
        assert not bus.tried.is_set()
        await bus.tried.wait()
        assert bus.last_error and not bus.connected
        with server:
            assert await pump.wait_drained(PATIENCE)
            assert np.array_equal(check_cover(await stored(server), kernel.produced), np.arange(1, 1001))
    away = [r.message for r in caplog.records if "trying on" in r.message]
    assert len(away) == len(set(away))
    assert away[0].startswith(f"NATS at {server.url}: ")


async def test_restart_between_acknowledgement_and_position(nats_server: NatsServer) -> None:
    """JetStream has a batch, the crash comes before the position moves, the heir cuts other batches."""
    kernel = FakeKernel(4096)
    kernel.push(make_rows(1000))
    released: list[int] = []
    async with pumping(kernel, nats_server) as (pump, _):
        pump.ring.release = released.append  # type: ignore[method-assign]  # the crash
        await until(lambda: pump.acknowledged == 1000, "acknowledgements")
    assert kernel.consumed == 0
    kernel.push(make_rows(700, first_flow=1001))
    async with pumping(kernel, nats_server, batch=BATCH + 77) as (pump, _):
        assert await pump.wait_drained(PATIENCE)
    batches = await stored(nats_server)
    assert sum(b.n for b in batches) == 2700, "the overlap is stored twice, for the sink to trim"
    assert np.array_equal(check_cover(batches, kernel.produced), np.arange(1, 1701))


async def test_the_same_cut_again_is_dropped_by_the_server(nats_server: NatsServer) -> None:
    kernel = FakeKernel(4096)
    kernel.push(make_rows(400))
    async with pumping(kernel, nats_server) as (pump, _):
        pump.ring.release = lambda position: None  # type: ignore[method-assign]
        await until(lambda: pump.acknowledged == 400, "acknowledgements")
    async with pumping(kernel, nats_server) as (pump, _):
        assert await pump.wait_drained(PATIENCE)
    assert [b.n for b in await stored(nats_server)] == [200, 200]


async def test_a_deleted_stream_is_made_again(nats_server: NatsServer) -> None:
    kernel = FakeKernel(4096)
    async with pumping(kernel, nats_server) as (pump, bus):
        await until(lambda: bus.connected, "a connection")
        assert bus.client is not None
        await bus.client.jetstream().delete_stream(subjects.VERDICTS_STREAM)
        kernel.push(make_rows(300))
        assert await pump.wait_drained(PATIENCE)
        assert bus.retried >= 1
    check_cover(await stored(nats_server), kernel.produced)


async def test_a_small_max_payload(tmp_path: Path) -> None:
    with NatsServer(tmp_path, "max_payload: 16384") as server:
        kernel = FakeKernel(4096)
        kernel.push(make_rows(1000))
        async with pumping(kernel, server, batch=4000) as (pump, _):
            assert await pump.wait_drained(PATIENCE)
        batches = await stored(server)
        check_cover(batches, kernel.produced)
        assert max(b.n for b in batches) <= 16384 // 112


async def test_little_room_in_the_servers_store(tmp_path: Path) -> None:
    """`max_bytes` is reserved at creation: the stream is made smaller instead of not at all."""
    directory = tmp_path / "js2"
    config = f'jetstream {{ store_dir: "{directory}", max_file_store: 500MB }}'
    with NatsServer(tmp_path, config) as server:
        kernel = FakeKernel(4096)
        kernel.push(make_rows(10))
        async with pumping(kernel, server) as (pump, _):
            assert await pump.wait_drained(PATIENCE)
        client = await nats.connect(server.url)
        info = await client.jetstream().stream_info(subjects.VERDICTS_STREAM)
        assert info.config.max_bytes == 256 << 20
        await client.close()


async def test_wrong_credentials_are_said_and_tried_on(tmp_path: Path) -> None:
    with NatsServer(tmp_path, 'authorization { user: "a", password: "right" }') as server:
        bus = Bus(server.url.replace("//", "//a:wrong@"), name="test")
        task = asyncio.create_task(bus.run())
        await until(lambda: "uthorization" in bus.last_error, "the refusal")
        assert not bus.connected
        assert "wrong" not in bus.last_error
        bus.url = server.url.replace("//", "//a:right@")
        await until(lambda: bus.connected, "the right password")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
