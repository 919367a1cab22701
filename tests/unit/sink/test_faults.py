"""Faults of disk and clock: a clear error, or nothing lost."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from schemas.verdict import STRIDE
from sink.api import readers as readers_
from sink.api.readers import Readers
from sink.client import History
from sink.errors import MemoryFullError, ReopenedError, SinkError, StoreError
from sink.history.reading import Reading
from sink.service import Sink
from sink.settings import SinkSettings
from sink.store import Commit, Store, database, prepare, rollup
from tests.support import batches, golden
from tests.support.rollups import naive, roll_up, stored, without_nothing
from tests.support.until import until

HOUR = 3_600_000_000_000


@pytest.mark.parametrize("share", [0.0001, 0.003, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error_and_left_alone(tmp_path: Path, share: float) -> None:
    """Opening it, or the first answer that needs what is gone: never half an answer."""
    data = golden.kept("v2", "history.duckdb")
    path = tmp_path / "z.duckdb"
    path.write_bytes(data[: int(len(data) * share)])
    before = path.read_bytes()

    def read() -> None:
        with History.on_file(path) as history:
            golden.answers(history, golden.VIEWS)

    def write() -> None:
        Store.open(SinkSettings(path, "", tmp_path)).close()

    with pytest.raises(SinkError) as caught:
        read()
    assert caught.value.exit_status == 3 and "\n" not in str(caught.value) and caught.value.hint
    if share < 0.1:
        with pytest.raises(SinkError) as caught:
            write()
        assert "\n" not in str(caught.value) and caught.value.hint
    assert path.read_bytes()[: len(before)] == before


def test_a_commit_that_failed_for_want_of_memory_left_nothing_behind(
    on_disk: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is there, or nothing; and what it was to delete does not stand there twice after the next one."""
    monkeypatch.setattr(database, "lock", lambda _: None)  # the limit is to fall in the middle
    store = on_disk()
    asked = store.connection.execute
    asked("CREATE TABLE many AS SELECT range AS id, 0 AS turn, 'x' || range AS word FROM range(300000)")
    asked("CHECKPOINT")

    def change(memory: str = "") -> None:
        with store.transaction("change") as connection:
            connection.execute("CREATE OR REPLACE TEMP TABLE news AS SELECT * FROM many WHERE id % 10 = 0")
            connection.execute("DELETE FROM many WHERE id IN (SELECT id FROM news)")
            connection.execute("INSERT INTO many SELECT id, turn + 1, word FROM news")
            if memory:
                connection.execute(f"SET memory_limit = '{memory}'")

    def turns() -> int:
        """How many changes there were, each a whole one."""
        found = store.connection.execute("SELECT count(*), count(DISTINCT id), max(turn), sum(turn) FROM many")
        ((rows, ids, turn, total),) = found.fetchall()
        assert (rows, ids, total) == (300_000, 300_000, turn * 30_000)
        return int(turn)

    failed = 0
    for megabytes in range(4, 13):
        before = turns()
        try:
            change(f"{megabytes}MB")
            store.connection.execute("SET memory_limit = '256MB'")
            assert turns() == before + 1
        except MemoryFullError:
            failed += 1
            assert turns() in (before, before + 1)
        before = turns()
        change()
        assert turns() == before + 1
    assert failed


def test_a_clock_set_back_an_hour_loses_nothing(on_disk: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's: its flows go on with times of an hour ago. The sink's own: what it notes is as late as it says."""
    given = batches.traffic(3000, seconds=7200.0)
    rows = given.rows.copy()
    rows["time"][1500:] -= np.uint64(HOUR)
    store = on_disk()
    store.append(Commit(batches=[prepare(batches.batch(rows[:1500]))]))
    roll_up(store)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() - HOUR)
    store.append(Commit(batches=[prepare(batches.batch(rows[1500:], 1500 * STRIDE))]))
    roll_up(store)
    assert without_nothing(stored(store, "store.pairs_1m")) == without_nothing(naive(rows))
    found = History.on_store(store).sql("SELECT count(*) AS f, sum(packets) AS p, sum(bytes) AS b FROM flows")
    assert found.to_pylist() == [{"f": given.flows, "p": given.packets, "b": given.bytes}]
    store.close()
    again = on_disk()
    sums = "SELECT sum(flows) AS f, sum(packets) AS p, sum(bytes) AS b FROM pairs_1m"
    assert History.on_store(again).sql(sums).to_pylist() == found.to_pylist()
    again.close()


async def test_questions_that_are_asked_again_are_counted_by_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, however often it was broken off; who asked sees the answer."""
    monkeypatch.setattr(readers_, "REOPENING", 60.0)
    settings = SinkSettings(tmp_path / "z.duckdb", "", tmp_path)
    store = Store.open(settings)
    readers = Readers(store, settings)

    async def here() -> bool:
        return False

    async def broken_off(break_off: Callable[[], object]) -> None:
        tries: list[Reading] = []

        def work(reading: Reading) -> list[tuple[int]]:
            tries.append(reading)
            return reading.rows("SELECT count(*) FROM range(1000000000000)" if len(tries) < 3 else "SELECT 7")

        doing = asyncio.ensure_future(readers.read(here, work))
        for n in (1, 2):
            await until(lambda n=n: len(tries) == n, "a question under way")
            while len(tries) == n and not doing.done():  # again: it may not have begun to work
                await asyncio.to_thread(break_off)
                await asyncio.sleep(0.3)
        assert await doing == [(7,)]

    def reopen() -> None:
        with suppress(StoreError):  # DuckDB 2, until the question has ended: the next write tries again
            store.reopen()

    assert store.counters.again == {"memory": 0, "reopened": 0}
    await broken_off(store.interrupt)
    assert store.counters.again == {"memory": 1, "reopened": 0}
    await broken_off(reopen)
    await broken_off(reopen)
    assert store.counters.again == {"memory": 1, "reopened": 2}
    readers.close()
    store.close()


async def test_what_fails_outside_of_a_transaction_ends_no_sink(tmp_path: Path) -> None:
    """Where a roll-up begins, how large the database is: memory may be full there, too; and a fault is no end."""
    settings = SinkSettings(tmp_path / "z.duckdb", "", tmp_path, memory_limit="50MB")
    sink = Sink(Store.open(settings), settings)
    tries = 0

    def full_twice() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            sink.store.connection.execute("SELECT list(range) FROM range(100000000)")
        return tries

    def broken() -> None:
        sink.store.connection.execute("SELECT error('IO Error: the disk is broken')")

    try:
        assert await sink.write(full_twice) == 3
        with pytest.raises(StoreError, match=r"^housekeeping: Invalid Input Error: IO Error: the disk is broken$"):
            await sink.write(broken)
        assert await sink.write(rollup.step, sink.store) == 0
    finally:
        await sink.close()


async def test_what_stores_comes_before_what_asks(tmp_path: Path) -> None:
    """A write that finds the memory full breaks off the questions under way, and is done again."""
    settings = SinkSettings(tmp_path / "z.duckdb", "", tmp_path, memory_limit="50MB")
    sink = Sink(Store.open(settings), settings)
    given = Commit(batches=[prepare(batches.batch(batches.traffic(100).rows))], records=[batches.policy_record()])
    caught: list[Exception] = []
    asking = threading.Event()

    def ask() -> None:
        try:
            with Reading(sink.store.cursor()) as reading:
                asking.set()
                reading.rows("SELECT count(*) FROM range(1000000000000)")
        except SinkError as error:
            caught.append(error)

    def full_at_first() -> int:
        if not caught:
            asking.wait()
            with sink.store.transaction("roll-up") as connection:
                connection.execute("SELECT list(range) FROM range(100000000)")
        return sink.store.append(given)

    def always_full() -> None:
        with sink.store.transaction("roll-up") as connection:
            connection.execute("SELECT list(range) FROM range(100000000)")

    question = threading.Thread(target=ask)
    question.start()
    try:
        assert await sink.write(full_at_first) == given.rows
        question.join()
        assert [type(error) for error in caught] == [ReopenedError]
        with pytest.raises(MemoryFullError, match=r"^roll-up: Out of Memory"):
            await sink.write(always_full)
        assert sink.store.connection.execute("SELECT count(*) FROM store.verdicts").fetchone() == (given.rows,)
    finally:
        await sink.close()
