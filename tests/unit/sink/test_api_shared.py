"""Equal questions are answered once, and none lacks what was stored when it was asked for; whose fault an error is."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from schemas.verdict import STRIDE
from sink.api import readers, shared
from sink.errors import QueryError, SinkError
from sink.history.reading import Reading
from sink.store import Commit, Store, prepare
from tests.support import batches, served

ROWS = batches.traffic(300, seed=4).rows


def put(store: Store, first: int, past: int) -> None:
    store.append(Commit(batches=[prepare(batches.batch(ROWS[first:past], first * STRIDE))]))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What readers were given to do, in order."""
    done: list[str] = []
    read = readers.Readers.read

    async def counted(self: readers.Readers, left: Any, work: Callable[[Reading], Any], asked: Any = None) -> Any:
        done.append(type(asked).__name__)
        return await read(self, left, work, asked)

    monkeypatch.setattr(readers.Readers, "read", counted)
    monkeypatch.setattr(shared, "STANDS", 600.0)  # it is not time that ends an answer here
    return done


async def positions(ask: served.Asker, **query: Any) -> set[int]:
    return {row["position"] for row in (await ask.get("verdicts", limit=1000, **query))["verdicts"]}


async def test_who_asks_the_same_gets_one_answer(memory: Store, runs: list[str]) -> None:
    memory.append(Commit(records=[batches.policy_record()]))
    put(memory, 0, 100)
    expected = {n * STRIDE for n in range(100)}
    async with served.asking(memory) as ask:
        assert await asyncio.gather(*(positions(ask) for _ in range(10))) == [expected] * 10
        assert runs == ["VerdictsAsked"]
        denied = {v["position"] for v in served.records(ROWS[:100]) if v["decision"] == "deny"}
        assert await positions(ask, decision="deny") == denied
        assert len(runs) == 2
        put(memory, 100, 200)
        assert await positions(ask) == {n * STRIDE for n in range(200)}


async def test_what_was_stored_before_a_question_is_in_its_answer(
    memory: Store, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.append(Commit(records=[batches.policy_record()]))
    put(memory, 0, 100)
    reading, go_on = threading.Event(), threading.Event()
    table = Reading.table

    def slow(self: Reading, *given: Any) -> Any:
        found = table(self, *given)
        reading.set()
        go_on.wait(30)
        return found

    monkeypatch.setattr(Reading, "table", slow)
    async with served.asking(memory) as ask:
        early = asyncio.create_task(positions(ask))
        await asyncio.to_thread(reading.wait, 30)
        put(memory, 100, 200)
        late = [asyncio.create_task(positions(ask)) for _ in range(5)]
        await asyncio.sleep(0.05)
        go_on.set()
        assert len(await early) == 100
        assert [len(found) for found in await asyncio.gather(*late)] == [200] * 5
    assert len(runs) == 2


async def test_an_error_is_shared_and_not_kept(memory: Store, runs: list[str]) -> None:
    async with served.asking(memory) as ask:
        for _ in range(2):
            said = await asyncio.gather(*(ask.refused(400, "flows", {"where": "nope = 1"}) for _ in range(3)))
            assert len(set(said)) == 1
    assert len(runs) == 2


def test_who_keeps_an_error_does_not_keep_what_had_been_read(memory: Store) -> None:
    class Large:
        """Stands for an array."""

    known: list[weakref.ref[Large]] = []

    def work(reading: Reading) -> None:
        large = Large()
        known.append(weakref.ref(large))
        reading.rows("SELECT nope")

    with pytest.raises(SinkError) as raised, Reading(memory.cursor()) as reading:
        work(reading)
    assert raised.value.__cause__ is not None
    assert [one() for one in known] == [None]


@pytest.mark.parametrize("sql", ["SELECT nope", "SELECT FROM", "SELECT 'x'::INT"])
def test_what_is_wrong_with_our_own_sql_is_our_fault(memory: Store, sql: str) -> None:
    with pytest.raises(QueryError), Reading(memory.cursor(), theirs=True) as reading:
        reading.table(sql)
    with pytest.raises(SinkError) as raised, Reading(memory.cursor()) as reading:
        reading.table(sql)
    assert (type(raised.value), raised.value.exit_status) == (SinkError, 3)
