"""The sink in a process of its own against a real nats-server: every verdict once, whatever dies or comes broken."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import nats
import numpy as np
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from schemas import messages, streams, subjects, tables
from schemas.messages import LossRecord, PolicyRecord
from schemas.verdict import STRIDE
from sink.client import History
from sink.errors import SinkError
from sink.store import rollup
from tests.support import batches
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings
from tests.support.until import PATIENCE, until

V, R, D = subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM, subjects.DEAD_STREAM


class Bus:
    """Publishes as a collector does: acknowledged, tried again until it is."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def send(self, data: Iterable[bytes], subject: str = subjects.verdicts("n1")) -> None:
        """In order, one by one."""
        for one in data:
            once = {"Nats-Msg-Id": uuid4().hex}
            while True:
                try:
                    await self.client.jetstream().publish(subject, one, timeout=2, headers=once)
                    break
                except (NatsError, TimeoutError):
                    await asyncio.sleep(0.05)

    async def record(self, *records: PolicyRecord | LossRecord) -> None:
        for record in records:
            kind = subjects.policy if isinstance(record, PolicyRecord) else subjects.loss
            await self.send([messages.encode(record)], kind(record.node))


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    client = await nats.connect(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet)
    for name in (V, R):
        await streams.ensure(client, name)
    yield Bus(client)
    await client.close()


async def _quiet(error: Exception) -> None:
    """A server that is away is what these tests are about."""


@pytest.fixture
def sink(nats_server: NatsServer, tmp_path: Path) -> Iterator[SinkProcess]:
    """A running sink."""
    with SinkProcess(settings(tmp_path, nats_server.url)) as process:
        yield process


async def ask(sink: SinkProcess, question: Any) -> Any:
    return await asyncio.to_thread(sink.ask, question)


async def rows(sink: SinkProcess, sql: str) -> list[tuple[Any, ...]]:
    table = await ask(sink, lambda history: history.sql(sql))
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


async def stored(sink: SinkProcess, count: int, seconds: float = PATIENCE) -> None:
    """Wait until `count` verdicts are stored; never more."""

    async def enough() -> bool:
        with contextlib.suppress(SinkError):
            found = (await rows(sink, "SELECT count(*) FROM store.verdicts"))[0][0]
            assert found <= count
            return bool(found == count)
        return False

    await until(enough, f"{count} verdicts in the store", seconds)


async def each_once(sink: SinkProcess, count: int, ring: str = "r1") -> None:
    """Positions 0 … count-1 are stored exactly once."""
    found = await rows(
        sink,
        f"SELECT count(*), count(DISTINCT position), min(position), max(position) FROM verdicts WHERE ring = '{ring}'",
    )
    assert found == [(count, count, 0, (count - 1) * STRIDE)]


async def ledger_of(sink: SinkProcess, true: Any) -> dict[str, Any]:
    """The ledger, once `true` of it."""

    async def document() -> Any:
        with contextlib.suppress(SinkError):
            found = await ask(sink, lambda history: history.ledger())
            return found if true(found) else None
        return None

    found: dict[str, Any] = await until(document, "the ledger is as expected")
    return found


def balanced(document: dict[str, Any]) -> bool:
    return bool(document["rings"]) and bool(document["balanced"])


async def test_from_the_stream_to_sql_and_a_balanced_ledger(bus: Bus, sink: SinkProcess) -> None:
    given = batches.traffic(30_000)
    n = len(given.rows)
    await bus.record(batches.policy_record("start"))
    await bus.send(batches.cut(given.rows, 4000))
    await bus.record(
        batches.loss_record(n, packets=given.packets, final=True),
        batches.policy_record("closed", end=n * STRIDE, time=batches.CLOCK + 1),
    )
    document = await ledger_of(sink, balanced)
    assert document["rings"][0]["events"]["stored"] == n
    await each_once(sink, n)
    totals = await rows(sink, "SELECT count(*), sum(packets), sum(bytes) FROM flows WHERE ended")
    assert totals == [(given.flows, given.packets, given.bytes)]

    async def counted() -> Any:
        """Counters follow what is stored, and a lag is told when NATS answers."""
        status = await ask(sink, lambda history: history.status())
        lags = [status["streams"][name].get("lag") for name in (V, R)]
        return lags == [0, 0] and status["counters"]["messages"]["received"] == 8 + 3 and status

    status = await until(counted, "all is read")
    assert status["counters"]["verdicts"] == {"received": n, "stored": n, "dropped": {}, "failed": 0}
    assert status["counters"]["records"] == {"received": 3, "stored": 3, "dropped": {}, "failed": 0}
    assert status["counters"]["messages"]["received"] == 8 + 3
    assert status["nats"]["connected"] is True
    assert status["notices"] == []


async def test_sigterm_stores_what_was_read_and_leaves_no_socket(bus: Bus, sink: SinkProcess) -> None:
    await bus.send(batches.cut(batches.traffic(3000).rows, 500))
    await stored(sink, 3000)
    assert await asyncio.to_thread(sink.end) == 0
    directory = sink.settings.database.parent
    assert not sink.settings.socket.exists()
    assert not list(directory.glob("*.wal"))
    assert not list(directory.glob("*.tmp"))
    with History.find(sink.settings.run_dir, sink.settings.database) as history:
        assert history.status()["database"]["rows"] == 3000


async def test_a_server_that_comes_back_without_its_newest_message(
    bus: Bus, nats_server: NatsServer, tmp_path: Path
) -> None:
    """And gives its sequence to another before the sink looks."""
    given = batches.traffic(900).rows
    data = [batches.packed(given[a : a + 300], a * STRIDE) for a in (0, 300, 600)]
    before, there = tmp_path / "before", nats_server.directory / "jetstream"
    with SinkProcess(settings(tmp_path / "sink", nats_server.url)) as sink:
        await bus.send(data[:1])
        await stored(sink, 300)
        nats_server.stop()
        shutil.copytree(there, before)
        nats_server.start()
        await bus.send(data[1:2])
        await stored(sink, 600)
        nats_server.kill()
        shutil.rmtree(there)
        shutil.copytree(before, there)
        assert sink.process is not None
        sink.process.send_signal(signal.SIGSTOP)
        nats_server.start()
        await bus.send([data[2]])
        sink.process.send_signal(signal.SIGCONT)
        await stored(sink, 900)
        assert "stream VERDICTS was set back" in sink.log()
        assert (await ask(sink, lambda history: history.ledger()))["rings"][0]["events"]["gaps"] == []


async def test_much_that_waits_is_rolled_up_at_once(bus: Bus, nats_server: NatsServer, tmp_path: Path) -> None:
    """A question works out anew what is not rolled up. The first roll-up comes with the start, the next in an hour."""
    given = batches.traffic(2 * rollup.DUE_EVENTS).rows
    n = len(given)
    with SinkProcess(settings(tmp_path, nats_server.url, rollup_interval=3600.0)) as sink:
        await bus.send([batches.packed(given[a : a + 4000], a * STRIDE) for a in range(0, n, 4000)])
        await stored(sink, n)

        async def few_wait() -> bool:
            ((rolled,),) = await rows(sink, "SELECT coalesce(sum(past - first), 0)::BIGINT FROM store.rolled")
            return n * STRIDE - rolled < rollup.DUE_EVENTS * STRIDE

        await until(few_wait, "the roll-up")


KILLS = int(os.environ.get("ZTLENS_TEST_KILLS", "10"))
"""Of the sink, under load; 50 take some minutes."""


@pytest.mark.timeout(600 + 20 * KILLS)
async def test_kills_under_load_and_every_verdict_once(bus: Bus, nats_server: NatsServer, tmp_path: Path) -> None:
    """Batches overlap and are cut anew all along, as after kills of a collector. Roll-ups are killed, too."""
    with SinkProcess(settings(tmp_path, nats_server.url, rollup_interval=0.2)) as sink:
        await killed_under_load(bus, sink)


async def killed_under_load(bus: Bus, sink: SinkProcess) -> None:
    given = batches.traffic(30_000 * KILLS)
    n = len(given.rows)
    rng = np.random.default_rng(9)
    first, cuts = 0, []
    while first < n:
        past = min(n, first + int(rng.integers(500, 4000)))
        cuts.append((max(0, first - int(rng.integers(0, 300))), past))
        first = past

    allowed = asyncio.Semaphore(0)

    async def load() -> None:
        for a, b in cuts:
            await allowed.acquire()
            await bus.send([batches.packed(given.rows[a:b], a * STRIDE)])

    sending = asyncio.create_task(load())
    seen = 0
    for _ in range(KILLS):  # each time another part of the load begins; the kill comes a moment after the first of it
        for _ in range(len(cuts) // (KILLS + 1)):
            allowed.release()

        async def further(before: int = seen) -> int:
            with contextlib.suppress(SinkError):
                count = int((await rows(sink, "SELECT count(*) FROM store.verdicts"))[0][0])
                return count if count > before else 0
            return 0

        seen = await until(further, "the sink goes on storing")
        assert seen < n
        await asyncio.sleep(float(rng.random()) * 0.3)  # wherever in a commit, a roll-up or between them
        sink.kill()
        await asyncio.to_thread(sink.start, False)
    for _ in cuts:
        allowed.release()
    await sending
    await bus.record(batches.loss_record(n, packets=given.packets, final=True))
    await stored(sink, n, 100)
    await each_once(sink, n)
    document = await ledger_of(sink, balanced)
    assert document["rings"][0]["events"] == {
        "due": n, "emitted": n, "pending": 0, "lost": 0, "held_back": 0, "published": n, "stored": n, "in_flight": 0,
        "gaps": [], "losses": [], "balanced": True,
    }  # fmt: skip
    assert await rows(sink, "SELECT sum(packets), sum(bytes) FROM flows") == [(given.packets, given.bytes)]

    async def rolled() -> bool:
        return await rows(sink, "SELECT sum(past - first) FROM store.rolled") == [(n * STRIDE,)]

    await until(rolled, "everything is rolled up")
    sums = "SELECT sum(flows), sum(packets), sum(bytes) FROM pairs_1m"
    assert await rows(sink, sums) == [(given.flows, given.packets, given.bytes)]
    by_hour = await rows(sink, sums.replace("1m", "1h"))
    assert by_hour in ([(None, None, None)], [(given.flows, given.packets, given.bytes)])
    assert sink.log().count("Traceback") == 0


async def test_ten_kills_of_the_server_under_load(bus: Bus, sink: SinkProcess, nats_server: NatsServer) -> None:
    given = batches.traffic(60_000)
    n = len(given.rows)
    sending = asyncio.create_task(bus.send(batches.cut(given.rows, 500)))
    for kill in range(10):
        target = (kill + 1) * n // 14

        async def further(target: int = target) -> bool:
            return bool((await rows(sink, "SELECT count(*) FROM store.verdicts"))[0][0] >= target)

        await until(further, f"the sink stores on after kill {kill}")
        nats_server.kill()
        await asyncio.to_thread(nats_server.start)
    await sending
    await stored(sink, n, 100)
    await each_once(sink, n)
    assert sink.log().count("Traceback") == 0


async def test_started_before_the_server(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    with SinkProcess(settings(tmp_path, server.url)) as sink:
        await until(lambda: "trying again" in sink.log(), "the sink says that NATS is away")
        status = await ask(sink, lambda history: history.status())
        assert status["nats"]["connected"] is False
        assert "NATS is away" in status["notices"]
        with server:
            client = await nats.connect(server.url)
            await streams.ensure(client, V)
            await Bus(client).send(batches.cut(batches.traffic(300).rows, 100))
            await stored(sink, 300)
            await client.close()
        lines = [line for line in sink.log().splitlines() if "trying again" in line]
        assert len(lines) <= 3, lines


async def test_broken_messages_become_dead_letters_and_stop_nothing(bus: Bus, sink: SinkProcess) -> None:
    given = batches.traffic(900).rows
    parts = list(batches.cut(given, 100))
    broken = [b"", b"\xc1 nonsense", parts[0][:-3], messages.encode(batches.loss_record(5)), b"x" * 900_000]
    for i, part in enumerate(parts):
        await bus.send([part])
        if i < len(broken):
            await bus.send([broken[i]])
    await bus.send([b"\x00 no record"], subjects.policy("n1"))
    await bus.record(batches.loss_record(900, final=True, packets=0))
    await stored(sink, 900)
    await ledger_of(sink, lambda document: document["rings"] and document["rings"][0]["events"]["balanced"])
    inbox = await bus.client.jetstream().pull_subscribe(subjects.ALL_DEAD, stream=D)
    letters = []
    while len(letters) < 6:
        letters += await inbox.fetch(1, timeout=PATIENCE)
    await inbox.unsubscribe()
    assert [letter.data for letter in letters if letter.subject == subjects.dead("batch")] == broken
    assert [letter.data for letter in letters if letter.subject == subjects.dead("record")] == [b"\x00 no record"]
    headers = [letter.headers for letter in letters if letter.subject == subjects.dead("batch")]
    assert [(h["ztlens-stream"], h["ztlens-sequence"]) for h in headers] == [(V, str(2 * i + 2)) for i in range(5)]
    assert all(h["ztlens-reason"] and h["ztlens-subject"] == subjects.verdicts("n1") for h in headers)

    async def counted() -> bool:
        status = await ask(sink, lambda history: history.status())
        told = status["counters"]["messages"]
        whole = told["received"] == told["stored"] + sum(told["dropped"].values())
        return bool(whole and told["dropped"] == {"dead": 6})

    await until(counted, "six dead letters are counted")


async def test_a_stream_made_anew_is_read_from_its_start(bus: Bus, sink: SinkProcess) -> None:
    given = batches.traffic(900).rows
    await bus.send(batches.cut(given[:600], 50))
    await stored(sink, 600)
    await bus.client.jetstream().delete_stream(V)
    await streams.ensure(bus.client, V)
    await bus.send(batches.cut(given[500:], 100, first=500))
    await stored(sink, 900)
    await each_once(sink, 900)
    notes = await rows(sink, f"SELECT note FROM store.streams WHERE stream = '{V}' ORDER BY id")
    assert notes == [("first seen",), ("made anew",)]


async def test_a_stream_made_anew_while_no_sink_ran(bus: Bus, sink: SinkProcess) -> None:
    given = batches.traffic(900).rows
    await bus.send(batches.cut(given[:600], 50))
    await stored(sink, 600)
    await asyncio.to_thread(sink.end)
    await bus.client.jetstream().delete_stream(V)
    await streams.ensure(bus.client, V)
    await bus.send(batches.cut(given[600:], 300, first=600))
    await asyncio.to_thread(sink.start)
    await stored(sink, 900)
    await each_once(sink, 900)


async def test_what_the_stream_lost_is_a_stated_gap(bus: Bus, sink: SinkProcess) -> None:
    """The stream is purged while the sink is away: its sequences and the ring's events are missing, both stated."""
    given = batches.traffic(900).rows
    await bus.send(batches.cut(given[:300], 100))
    await stored(sink, 300)
    await asyncio.to_thread(sink.end)
    await bus.send(batches.cut(given[300:600], 100, first=300))
    await bus.client.jetstream().purge_stream(V)
    await bus.send(batches.cut(given[600:], 100, first=600))
    await bus.record(batches.loss_record(900, final=True), batches.policy_record("closed", end=900 * STRIDE))
    await asyncio.to_thread(sink.start)
    document = await ledger_of(sink, lambda found: balanced(found) and found["rings"][0]["events"]["gaps"])
    (gap,) = document["rings"][0]["events"]["gaps"]
    assert (gap["first"], gap["past"], gap["count"]) == (300, 600, 300)
    assert gap["time"].endswith("Z")
    assert "closed" in gap["cause"]
    assert document["rings"][0]["events"]["stored"] == 600
    found = await rows(sink, "SELECT kind, first, past, events, messages FROM gaps ORDER BY kind")
    assert found == [("ring", 300 * STRIDE, 600 * STRIDE, 300, None), ("stream", 4, 7, None, 3)]


async def test_a_hole_of_a_live_ring_is_a_gap_after_the_deadline_and_can_still_be_filled(
    bus: Bus, sink: SinkProcess
) -> None:
    given = batches.traffic(900).rows
    await bus.send(batches.cut(given[:300], 100))
    await bus.send(batches.cut(given[400:], 100, first=400))
    await bus.record(batches.loss_record(900, packets=5))
    await ledger_of(sink, lambda found: found["rings"] and found["rings"][0]["events"]["gaps"])
    await bus.send(batches.cut(given[300:400], 100, first=300))

    def filled(found: dict[str, Any]) -> bool:
        events = found["rings"][0]["events"]
        return not events["gaps"] and events["stored"] == 900

    await ledger_of(sink, filled)
    await each_once(sink, 900)


async def test_a_second_sink_is_told_so(sink: SinkProcess, tmp_path: Path) -> None:
    second = SinkProcess(settings(tmp_path, sink.settings.nats_url))
    await asyncio.to_thread(second.start, False)
    assert second.process is not None
    assert await asyncio.to_thread(second.process.wait, PATIENCE) == 3
    assert "in use by another process" in second.log()
    assert "Traceback" not in second.log()
    assert (await ask(sink, lambda history: history.status()))["running"] is True


async def test_a_newer_database_is_left_alone(nats_server: NatsServer, tmp_path: Path) -> None:
    given = settings(tmp_path, nats_server.url)
    with duckdb.connect(str(given.database)) as newer:
        for statement in tables.FOUNDATION:
            newer.execute(statement)
        newer.execute("INSERT INTO store.schema_version VALUES (?, now()::TIMESTAMP_NS)", [tables.VERSION + 7])
    before = given.database.read_bytes()
    sink = SinkProcess(given)
    await asyncio.to_thread(sink.start, False)
    assert sink.process is not None
    assert await asyncio.to_thread(sink.process.wait, PATIENCE) == 3
    assert sink.log().splitlines() == [
        f"{given.database} was written by a newer ztlens (tables of version {tables.VERSION + 7},"
        f" this program knows {tables.VERSION})",
        "update ztlens, or name another file with --database; the file was not touched",
    ]
    assert given.database.read_bytes() == before
    assert not given.socket.exists()


async def test_readers_while_it_is_written(bus: Bus, sink: SinkProcess) -> None:
    """Four readers ask all the time; the log is still written back, and no answer shows half a commit's ranges."""
    given = batches.traffic(150_000)
    n = len(given.rows)
    sending = asyncio.create_task(bus.send(batches.cut(given.rows, 2000)))

    async def read() -> None:
        seen = 0
        while seen < n:
            ((seen, ranges),) = await rows(
                sink,
                "SELECT (SELECT count(*) FROM store.verdicts), (SELECT sum(past - first) // 120 FROM store.ranges)",
            )
            assert seen == (ranges or 0)
            await rows(sink, "SELECT rule, sum(packets) FROM flows GROUP BY rule")

    await asyncio.gather(sending, *(asyncio.wait_for(read(), PATIENCE) for _ in range(4)))
    await each_once(sink, n)
    status = await ask(sink, lambda history: history.status())
    assert status["database"]["wal_bytes"] < 64 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB: the log, the file and a checkpoint of 300,000 rows fit twice."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_loses_nothing(bus: Bus, nats_server: NatsServer, small_disk: Path) -> None:
    given = batches.traffic(300_000)
    n = len(given.rows)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(58 << 20))
    with SinkProcess(settings(small_disk, nats_server.url)) as sink:
        await bus.send(batches.cut(given.rows, 4000))
        await until(lambda: "nothing is lost" in sink.log(), "the sink says that the disk is full")

        async def trouble() -> bool:
            with contextlib.suppress(SinkError):
                status = await ask(sink, lambda history: history.status())
                return bool(status["notices"])
            return False

        await until(trouble, "the status says so too")
        filler.unlink()
        await stored(sink, n, 100)
        await each_once(sink, n)
        assert sink.log().count("ERROR") == 1
        assert "Traceback" not in sink.log()
        assert "takes commits again" in sink.log()


async def test_sigterm_ends_it_while_nats_is_away(nats_server: NatsServer, tmp_path: Path) -> None:
    sink = SinkProcess(settings(tmp_path, nats_server.url))
    await asyncio.to_thread(sink.start)
    nats_server.kill()
    assert await asyncio.to_thread(sink.end, signal.SIGTERM, 15.0) == 0
    assert not sink.settings.socket.exists()


def test_a_socket_path_that_cannot_be_is_one_line(nats_server: NatsServer, tmp_path: Path) -> None:
    sink = SinkProcess(settings(tmp_path, nats_server.url, readers=1))
    sink.settings.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(sink.settings.socket))
        taken.listen()
        sink.start(wait=False)
        assert sink.process is not None
        assert sink.process.wait(30) == 3
    assert "another sink listens" in sink.log()
    assert "Traceback" not in sink.log()
