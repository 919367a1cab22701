"""The API over its socket, and `History` over socket and file: the same answers, typed errors, a cap on readers."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sink import api
from sink.api import readers
from sink.api.listening import server
from sink.client import History
from sink.errors import BusyError, QueryError, SinkError
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.support import batches
from tests.support.served import listening
from tests.support.until import PATIENCE

N = 3000
ENDLESS = "SELECT sum(a.range * b.range) FROM range(100000000) a, range(100000000) b"


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> SinkSettings:
    """Its parameter: after how many seconds the sink gives up."""
    timeout = getattr(request, "param", 60.0)
    return SinkSettings(
        tmp_path / "z.duckdb", "", tmp_path / "run", readers=2, query_timeout=timeout, answer_rows=150_000
    )


@pytest.fixture
def store(settings: SinkSettings) -> Iterator[Store]:
    out = Store.open(settings)
    given = batches.traffic(N)
    out.append(
        Commit(
            batches=[prepare(batches.batch(given.rows))],
            records=[batches.policy_record(), batches.loss_record(N, packets=given.packets, final=True)],
        )
    )
    yield out
    out.close()


@pytest.fixture
async def served(store: Store, settings: SinkSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[api.Api]:
    """The API of `store`, listening; who waits for a reader gets it."""
    monkeypatch.setattr(readers, "WAITING", 60.0)

    async def status() -> dict[str, Any]:
        return {"running": True}

    made = api.Api(store, settings, status)
    async with listening(made.app, settings.socket):
        yield made
    made.close()


async def ask(settings: SinkSettings, question: Callable[[History], Any]) -> Any:
    """`question` with a History over the socket, in a thread."""

    def work() -> Any:
        with History.over_socket(settings.socket) as history:
            return question(history)

    return await asyncio.to_thread(work)


def client(settings: SinkSettings) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(settings.socket)), base_url="http://sink", timeout=PATIENCE
    )


async def test_the_socket_is_its_owners_alone(served: api.Api, settings: SinkSettings) -> None:
    mode = settings.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_who_asks_ends_an_idle_connection_not_the_sink(served: api.Api, settings: SinkSettings) -> None:
    """Else a question meets the end of its connection, and finds the sink away."""
    expiry = httpx.Limits().keepalive_expiry
    assert expiry is not None and server(served.app).config.timeout_keep_alive > 2 * expiry


async def test_the_same_answers_over_socket_and_from_the_store(
    served: api.Api, store: Store, settings: SinkSettings
) -> None:
    here = History.on_store(store)
    for sql in (
        "SELECT * FROM verdicts ORDER BY position",
        "SELECT rule, sum(bytes) AS b, max(src_addr) AS a FROM flows GROUP BY rule ORDER BY rule",
        "SELECT * FROM verdicts WHERE false",
        "SELECT labels, addresses FROM identities ORDER BY id",
    ):
        assert (await ask(settings, lambda history, sql=sql: history.sql(sql))).equals(here.sql(sql)), sql
    assert await ask(settings, lambda history: history.ledger()) == here.ledger()
    assert await ask(settings, lambda history: history.status()) == {"running": True}
    recent = await ask(settings, lambda history: history.recent("decision = $d", {"d": "deny"}, limit=7))
    expected = here.sql("SELECT * FROM verdicts WHERE decision = 'deny' ORDER BY time DESC LIMIT 7")
    assert recent["position"].to_pylist() == expected["position"].to_pylist()[::-1]


@pytest.mark.parametrize("settings", [1.0], indirect=True)
async def test_errors_keep_their_kind_text_and_hint(served: api.Api, settings: SinkSettings) -> None:
    for sql, kind in (
        ("SELECT nope FROM verdicts", QueryError),
        ("DELETE FROM store.gaps", QueryError),
        (ENDLESS, BusyError),
    ):
        with pytest.raises(kind) as caught:
            await ask(settings, lambda history, sql=sql: history.sql(sql))
        assert "\n" not in str(caught.value)
        assert caught.value.hint
    assert served.counters["refused"] == 3


async def test_formats_and_bad_requests(served: api.Api, settings: SinkSettings) -> None:
    async with client(settings) as http:
        answer = await http.post("/api/v1/sql", json={"sql": "SELECT 1 AS a", "format": "json"})
        assert (answer.headers["content-type"], answer.json()) == ("application/json", [{"a": 1}])
        answer = await http.post("/api/v1/sql", json={"sql": "SELECT 1 AS a", "format": "csv"})
        assert (answer.headers["content-type"], answer.text) == ("text/csv; charset=utf-8", '"a"\n1\n')
        for body in (
            b"", b"[]", b"\xff", b"{}", b'{"sql": 1}', b'{"sql": "SELECT 1", "format": "xml"}', b'{"sql": "\xff"}',
            b'{"sql": "' + b" " * api.BODY_MAX + b'"}', b'{"sql": "SELECT 1", "parameters": 3}',
        ):  # fmt: skip
            answer = await http.post("/api/v1/sql", content=body)
            assert answer.status_code == 400, body[:40]
            assert set(answer.json()) == {"error", "hint", "exit"}
            assert answer.json()["exit"] == 2
        for path, given in (
            ("sql", {"sql": "SELECT 1"}),
            ("audit", {"candidate": {"text": "version: 1"}}),
            ("suggest", {}),
        ):
            answer = await http.post(f"/api/v1/{path}", json=given | {"before": 1})
            assert answer.status_code == 400 and "unknown field `before`" in answer.json()["error"]
        answer = await http.get("/api/v1/ledger", params={"since": "yesterday"})
        assert (answer.status_code, answer.json()["exit"]) == (400, 2)
        answer = await http.get("/api/v1/ledger", params={"since": str(batches.CLOCK + 1)})
        assert answer.json() == {"balanced": True, "rings": []}
        for answer in (
            await http.get("/api/v1/ledger", params={"since": str(1 << 70)}),
            await http.post("/api/v1/audit", json={"candidate": {"text": "version: 1"}, "since": 1 << 70}),
            await http.post("/api/v1/suggest", json={"until": -(1 << 70)}),
        ):
            assert answer.status_code == 400
            assert answer.json() == {
                "error": "a moment lies outside of what ns since 1970 of 64 bits can say",
                "hint": "history knows the years 1678 to 2261", "exit": 2,
            }  # fmt: skip
        assert (await http.get("/api/v1/sql")).status_code == 405
        assert (await http.get("/elsewhere")).status_code == 404


@pytest.mark.parametrize("settings", [1.0], indirect=True)
async def test_readers_are_capped_and_come_free_again(served: api.Api, settings: SinkSettings) -> None:
    """Two questions hold both readers until their time is over; a third waits and gets its answer."""
    endless = [asyncio.create_task(ask(settings, lambda history: history.sql(ENDLESS))) for _ in range(2)]
    answer = await ask(settings, lambda history: history.sql("SELECT 1 AS a").to_pylist())
    assert answer == [{"a": 1}]
    for done in await asyncio.gather(*endless, return_exceptions=True):
        assert isinstance(done, BusyError)


async def test_a_client_that_leaves_frees_its_reader(served: api.Api, settings: SinkSettings) -> None:
    for _ in range(6):
        async with client(settings) as http:
            body = {"sql": "SELECT range FROM range(100000000000)", "format": "json"}
            async with http.stream("POST", "/api/v1/sql", json=body) as answer:
                await anext(answer.aiter_bytes())
    assert await ask(settings, lambda history: history.sql("SELECT 1 AS a").to_pylist()) == [{"a": 1}]


@pytest.mark.parametrize("settings", [3.0], indirect=True)
async def test_an_answer_that_breaks_off_is_an_error(served: api.Api, settings: SinkSettings) -> None:
    """The first batches are sent before the time is over; the last tells why there are no more."""

    def read(history: History) -> None:
        with history.batches("SELECT range FROM range(100000000000)") as rows:
            assert next(iter(rows)).num_rows > 0
            for _ in rows:
                pass

    with pytest.raises(BusyError, match="the question took longer than 3 s"):
        await ask(settings, read)
    assert served.counters["broken"] == 1


async def test_rows_of_an_answer_are_limited_unless_it_is_read_as_it_comes(
    served: api.Api, settings: SinkSettings
) -> None:
    def rows(count: int) -> str:
        return f"SELECT range FROM range({count})"

    assert (await ask(settings, lambda history: history.sql(rows(150_000)))).num_rows == 150_000
    with pytest.raises(QueryError, match=r"more than 150000 rows \(the sink's answer_rows\)") as caught:
        await ask(settings, lambda history: history.sql(rows(150_001)))
    assert caught.value.hint == "add a LIMIT, or sum up"

    def streamed(history: History) -> int:
        with history.batches(rows(400_000)) as answer:
            return sum(batch.num_rows for batch in answer)

    assert await ask(settings, streamed) == 400_000
    assert served.counters["broken"] == 1
    async with client(settings) as http:
        for form in ("json", "csv"):
            answer = await http.post("/api/v1/sql", json={"sql": rows(150_000), "format": form})
            assert answer.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):  # part of an answer never looks like all of it
                await http.post("/api/v1/sql", json={"sql": rows(150_001), "format": form})
    assert await ask(settings, lambda history: history.sql("SELECT 1 AS a").to_pylist()) == [{"a": 1}]


async def test_an_answer_too_long_from_its_first_batch_on_is_refused(store: Store, settings: SinkSettings) -> None:
    made = api.Api(store, dataclasses.replace(settings, answer_rows=2), lambda: {})
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(made.app), base_url="http://sink", timeout=PATIENCE
    ) as http:
        answer = await http.post("/api/v1/sql", json={"sql": "FROM verdicts"})
        assert (answer.status_code, answer.json()["exit"]) == (400, 2)
        assert "more than 2 rows" in answer.json()["error"]
    made.close()


async def test_answers_while_the_store_is_written(served: api.Api, store: Store, settings: SinkSettings) -> None:
    """What a reader sees is whole commits, and never less than before."""
    given = batches.traffic(30_000).rows
    seen: list[int] = []
    done = threading.Event()

    def write() -> None:
        for i in range(0, len(given), 1000):
            store.append(Commit(batches=[prepare(batches.batch(given[i : i + 1000], i * 120, ring="r2"))]))
        done.set()

    def read(history: History) -> None:
        while not done.is_set():
            seen.append(history.sql("SELECT count(*) AS n FROM verdicts WHERE ring = 'r2'")["n"][0].as_py())

    await asyncio.gather(asyncio.to_thread(write), *(ask(settings, read) for _ in range(3)))
    assert seen
    assert all(count % 1000 == 0 for count in seen)
    assert (await ask(settings, lambda h: h.sql("SELECT count(*) AS n FROM verdicts")))["n"].to_pylist() == [33_000]


def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "sink.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with contextlib.closing(api.bind(path)), pytest.raises(SinkError, match="another sink listens"):
        api.bind(path)
    path.unlink()
    path.write_text("mine")
    with pytest.raises(SinkError, match="is no socket"):
        api.bind(path)
    assert path.read_text() == "mine"


async def test_find_takes_the_socket_else_the_file(served: api.Api, store: Store, settings: SinkSettings) -> None:
    def find() -> Any:
        with History.find(settings.run_dir, settings.database) as history:
            return history.status()

    assert await asyncio.to_thread(find) == {"running": True}


def test_find_opens_the_file_when_no_sink_answers(store: Store, settings: SinkSettings, tmp_path: Path) -> None:
    ledger = History.on_store(store).ledger()
    store.close()
    settings.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(settings.socket))
    with History.find(settings.run_dir, settings.database) as history:
        status = history.status()
        assert (status["running"], status["database"]["rows"]) == (False, N)
        assert history.ledger() == ledger
        with pytest.raises(QueryError):
            history.sql("SELECT * FROM read_text('/etc/passwd')")
        with pytest.raises(QueryError):
            history.sql("DELETE FROM store.verdicts")
    with pytest.raises(SinkError, match="there is no database") as caught:
        History.find(tmp_path, tmp_path / "none.duckdb")
    assert caught.value.exit_status == 3
    json.dumps(ledger)


def test_a_log_that_was_not_written_back_is_read_too(store: Store, settings: SinkSettings, tmp_path: Path) -> None:
    """A killed sink leaves rows in the write-ahead log."""
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(settings.database.read_bytes())
    copy.with_name(copy.name + ".wal").write_bytes(settings.database.with_name("z.duckdb.wal").read_bytes())
    with History.on_file(copy) as history:
        assert history.sql("SELECT count(*) AS n FROM verdicts").to_pylist() == [{"n": N}]
