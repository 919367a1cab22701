"""Who leaves before the first byte of an answer: what was done for it ends, its reader is free, others go on."""

import asyncio
import itertools
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sink import api
from sink.api import app
from sink.api.readers import Readers
from sink.errors import BusyError
from sink.history import apart
from sink.settings import SinkSettings
from sink.store import Store
from tests.support import served
from tests.support.until import PATIENCE, until

ENDLESS = {"sql": "SELECT sum(a.range * b.range) FROM range(100000000) a, range(100000000) b", "format": "json"}
ONE = {"sql": "SELECT 1 AS one", "format": "json"}


@pytest.fixture
async def sink(memory: Store, tmp_path: Path) -> AsyncIterator[api.Api]:
    """It gives up after the end of any test."""
    settings = SinkSettings(Path("unused"), "", tmp_path, readers=2, query_timeout=1000.0)
    made = api.Api(memory, settings, lambda: asyncio.sleep(0, served.TOLD))
    async with served.listening(made.app, settings.socket):
        yield made
    made.close()


@pytest.fixture
async def http(sink: api.Api, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "sink.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1/", timeout=PATIENCE) as made:
        yield made


@asynccontextmanager
async def asking(http: httpx.AsyncClient, path: str, body: Any, times: int) -> AsyncIterator[None]:
    """So many ask, and leave at the end."""
    questions = [asyncio.create_task(http.post(path, json=body)) for _ in range(times)]
    yield
    for question in questions:
        assert not question.done()
        question.cancel()
    await asyncio.gather(*questions, return_exceptions=True)


async def test_sql_ends_when_who_asked_has_left(
    sink: api.Api, http: httpx.AsyncClient, memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[None] = []

    class Answer(app.Answer):
        def __init__(self, *given: Any, **how: Any) -> None:
            begun.append(None)
            super().__init__(*given, **how)

    monkeypatch.setattr(app, "Answer", Answer)
    for n in (2, 4):
        async with asking(http, "sql", ENDLESS, 3):  # the third waits for a reader until it has left
            await until(lambda n=n: len(begun) == n, "two questions under way")
        await until(lambda n=n: sink.counters["refused"] == n // 2 * 3, "all given up")
    assert (await http.post("sql", json=ONE)).json() == [{"one": 1}]
    assert len(begun) == 5
    assert memory.counters.again == {"memory": 0, "reopened": 0}


async def test_who_left_while_waiting_takes_no_reader(memory: Store) -> None:
    async def has_left() -> bool:
        return True

    async def stays() -> bool:
        return False

    readers = Readers(memory, SinkSettings(Path("unused"), "", Path("unused"), readers=1))
    go_on = threading.Event()
    done: list[str] = []

    def work(what: str) -> Callable[[], None]:
        return lambda: done.append(what)

    first = asyncio.create_task(readers.attended(stays, go_on.wait, go_on.set))
    waiting = asyncio.create_task(readers.attended(has_left, work("left"), go_on.set))
    last = asyncio.create_task(readers.attended(stays, work("stays"), go_on.set))
    await asyncio.sleep(0)  # all have asked
    go_on.set()
    await asyncio.gather(first, last)
    with pytest.raises(BusyError, match="who asked has left"):
        await waiting
    assert done == ["stays"]
    readers.close()


@pytest.mark.parametrize("behind", [False, True])
async def test_one_question_after_the_other_while_the_sink_is_behind(memory: Store, behind: bool) -> None:
    async def stays() -> bool:
        return False

    settings = SinkSettings(Path("unused"), "", Path("unused"), readers=3)
    readers = Readers(memory, settings, lambda: behind)
    begun: list[int] = []
    go_on = threading.Event()

    def work(number: int) -> Callable[[object], bool]:
        def works(_: object) -> bool:
            begun.append(number)
            return go_on.wait(60)

        return works

    questions = [asyncio.create_task(readers.ask(stays, work(i))) for i in range(2)]
    audit = asyncio.create_task(readers.attended(stays, lambda: work(2)(None), go_on.set))
    wanted = [0, 2] if behind else [0, 1, 2]
    await until(lambda: len(begun) >= len(wanted), "those that need not wait")
    assert sorted(begun) == wanted
    go_on.set()
    assert await asyncio.gather(*questions, audit) == [True, True, True]
    assert sorted(begun) == [0, 1, 2]
    readers.close()


@pytest.mark.parametrize(("took", "rests"), [(0.5, 0.5), (100.0, 5.0)])
async def test_readers_rest_while_the_sink_is_behind(
    memory: Store, monkeypatch: pytest.MonkeyPatch, took: float, rests: float
) -> None:
    """As long as a question took, five seconds at most; the answer itself does not wait. Not when it has caught up."""

    async def stays() -> bool:
        return False

    async def sleep(seconds: float) -> None:
        told.append(f"sleep {seconds}")

    def works(_: object) -> None:
        told.append("works")
        clock.now += took

    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    told: list[str] = []
    is_behind = itertools.chain([True] * 4, [True, False], itertools.repeat(False))
    readers = Readers(memory, SinkSettings(Path("unused"), "", Path("unused")), lambda: next(is_behind))
    monkeypatch.setattr("sink.api.readers.time", clock)
    monkeypatch.setattr("sink.api.readers.asyncio.sleep", sleep)
    for _ in range(4):  # it caught up while the third waited
        await readers.ask(stays, works)
    assert told == ["sleep -1000.0", "works", f"sleep {rests}", "works", "works", "works"]
    readers.close()


async def test_checks_hold_up_no_reader_and_end_when_who_asked_has_left(
    sink: api.Api, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **how: Any) -> None:
            super().__init__(*given, **how)
            processes.append(self)

    monkeypatch.setattr(apart.subprocess, "Popen", Popen)
    monkeypatch.setattr(app.policies, "checked", exec)  # a check without end: it is to be killed
    endless = {"text": f"import time\ntime.sleep(1000)\n{'#' * app.SMALL}"}
    async with asking(http, "policy/check", endless, 6):
        await until(lambda: len(processes) == app.CHECKS, "as many checks as there may be")
        async with asyncio.timeout(20):
            assert (await http.post("sql", json=ONE)).json() == [{"one": 1}]
            assert (await http.get("flows")).json() == {"flows": [], "next": None}
        assert [process.returncode for process in processes] == [None] * app.CHECKS
    await until(lambda: sink.counters["refused"] == 6, "all given up")
    assert [process.returncode for process in processes] == [-9] * app.CHECKS, "the others did not begin"
