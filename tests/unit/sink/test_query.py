"""Questions only read: every way out of that which is known, tried; and what an answer looks like."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sink.api import encoded
from sink.client import History
from sink.errors import BusyError, QueryError, SinkError
from sink.history.query import Answer
from sink.settings import SinkSettings
from sink.store import Commit, Store, database, prepare
from tests.support import batches, escapes

N = 300


@contextmanager
def opened(directory: Path) -> Iterator[Store]:
    """A store with N verdicts."""
    store = Store.open(SinkSettings(database=directory / "z.duckdb", nats_url="", run_dir=directory / "run"))
    store.append(Commit(batches=[prepare(batches.batch(batches.traffic(N).rows))], records=[batches.policy_record()]))
    yield store
    store.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """For all that only ask."""
    with opened(tmp_path_factory.mktemp("asked")) as store:
        yield store


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    """One whose questions look for a way out, and its directory; after each of them it takes verdicts of a new ring."""
    directory = tmp_path_factory.mktemp("attacked")
    pq.write_table(pa.table({"password": ["hunter2"]}), directory / "other.parquet")
    with opened(directory) as store:
        yield store, directory


@pytest.mark.parametrize("sql", [*escapes.refused(), *escapes.CLUMSY.values()])
def test_no_way_out(attacked: tuple[Store, Path], sql: str) -> None:
    store, directory = attacked
    secret_of_python = pa.table({"password": ["hunter2"]})  # noqa: F841 (a question may know it by its name)
    rings = len(store.state.rings)
    before = sorted(path.name for path in directory.iterdir())
    places = {"dir": directory, "file": directory / "z.duckdb", "other": directory / "other.parquet"}
    with pytest.raises(SinkError) as caught, Answer(store.cursor(), sql.format(**places)) as answer:
        list(answer.batches())
    assert caught.value.exit_status in (2, 3)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)
    assert sorted(path.name for path in directory.iterdir()) == before
    assert History.on_store(store).sql("SELECT count(*) FROM verdicts").to_pylist() == [{"count_star()": rings * N}]
    assert store.append(Commit(batches=[prepare(batches.batch(batches.traffic(N).rows, ring=f"r{rings + 1}"))])) == N


@pytest.mark.parametrize("sql", escapes.HARMLESS.values(), ids=escapes.HARMLESS)
def test_what_is_harmless_is_answered(store: Store, sql: str) -> None:
    with Answer(store.cursor(), sql) as answer:
        list(answer.batches())
    assert History.on_store(store).sql("SELECT count(*) FROM verdicts").to_pylist() == [{"count_star()": N}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1", "FROM verdicts", "VALUES (1)", "TABLE verdicts", "DESCRIBE verdicts", "SHOW TABLES", "SELECT 1;",
        "SUMMARIZE verdicts", "EXPLAIN SELECT * FROM flows", "EXPLAIN ANALYZE SELECT count(*) FROM flows",
        "WITH a AS (SELECT 1) SELECT * FROM a -- comment", "SELECT * FROM duckdb_views()",
        "PIVOT verdicts ON decision IN ('allow', 'deny') USING count(*) GROUP BY rule",
    ],
)  # fmt: skip
def test_what_reads_is_answered(store: Store, sql: str) -> None:
    with Answer(store.cursor(), sql) as answer:
        assert sum(batch.num_rows for batch in answer.batches()) > 0


@pytest.mark.parametrize("sql", escapes.ENDLESS.values(), ids=escapes.ENDLESS)
def test_an_endless_question_ends(store: Store, sql: str) -> None:
    with pytest.raises(BusyError, match=r"longer than 0\.3 s"):
        Answer(store.cursor(), sql, timeout=0.3)


def test_time_runs_out_between_batches_too(store: Store) -> None:
    with Answer(store.cursor(), "SELECT range FROM range(100000000000)", timeout=2.0) as answer:
        batches_ = answer.batches()
        next(batches_)
        with pytest.raises(BusyError, match="longer than 2 s"):
            for _ in batches_:
                time.monotonic()


def test_an_answer_that_is_closed_stops(store: Store) -> None:
    answer = Answer(store.cursor(), "SELECT range FROM range(100000000000)")
    stream = answer.batches()
    next(stream)
    answer.close()
    answer.close()
    assert list(stream) == []


def test_the_disk_a_question_takes_is_bounded(store: Store) -> None:
    found = History.on_store(store).sql("SELECT current_setting('max_temp_directory_size') AS most").to_pylist()
    assert (database.SPILL_MOST, found) == ("8GB", [{"most": "7.4 GiB"}])


@pytest.mark.parametrize(
    ("sql", "text", "hint"),
    [
        ("SELECT * FROM verdict", "verdict does not exist", "Did you mean"),
        ("SELECT sourse FROM verdicts", "sourse", "DESCRIBE verdicts"),
        ("SELEKT 1", "syntax error", "DESCRIBE verdicts"),
        ("SELECT $a", "parameters", "DESCRIBE verdicts"),
        ("SELECT * FROM verdicts WHERE position = 'x'", "Conversion", "DESCRIBE verdicts"),
    ],
)
def test_a_wrong_question_is_one_line_and_a_hint(store: Store, sql: str, text: str, hint: str) -> None:
    with pytest.raises(QueryError) as caught:
        Answer(store.cursor(), sql)
    assert text in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_status == 2


def test_parameters_by_place_and_by_name(store: Store) -> None:
    history = History.on_store(store)
    assert history.sql("SELECT ? + ? AS s", [1, 2]).to_pylist() == [{"s": 3}]
    assert history.sql("SELECT $a || $b AS s", {"a": "x'", "b": "y"}).to_pylist() == [{"s": "x'y"}]


@pytest.mark.parametrize("limit", [1, 65_536, 65_537, 200_000])
def test_an_answer_ends_after_its_limit(store: Store, limit: int) -> None:
    with Answer(store.cursor(), "SELECT range AS n FROM range(150000)", limit=limit) as answer:
        found = [n for batch in answer.batches() for n in batch.column(0).to_pylist()]
    assert found == [*range(min(limit, 150_000))]


def test_numbers_of_128_bits(store: Store) -> None:
    """Sums are whole numbers where they fit; addresses beyond 10^38 lose nothing."""
    sql = "SELECT sum(5) AS s, ip('ffff::1') AS a, 10::HUGEINT ** 37 AS big, NULL::UHUGEINT AS n"
    table = History.on_store(store).sql(sql)
    assert table.schema.field("s").type == pa.int64()
    found = table.to_pylist()[0]
    assert (found["s"], found["a"], found["n"]) == (5, str((0xFFFF << 112) + 1), None)
    assert float(found["big"]) == 1e37


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "a"], ["a", "a_1"]),
        (["a", "A", "a_1", "a"], ["a", "A_1", "a_1_1", "a_2"]),
        (["a_1", "a", "a", "a", "b"], ["a_1", "a", "a_2", "a_3", "b"]),
    ],
)
def test_columns_of_one_name_are_told_apart(store: Store, names: list[str], unique: list[str]) -> None:
    """In every format as in a table that DuckDB makes of the question, and with the values at their places."""
    sql = "SELECT " + ", ".join(f'{i} AS "{name}"' for i, name in enumerate(names))
    row = dict(zip(unique, range(len(names)), strict=True))
    assert [column[0] for column in store.cursor().execute(f"FROM ({sql})").description] == unique
    assert json.loads(output(store, sql, "json")) == [row]
    head, values = output(store, sql, "csv").decode().replace('"', "").splitlines()
    assert dict(zip(head.split(","), map(int, values.split(",")), strict=True)) == row
    assert pa.ipc.open_stream(output(store, sql, "arrow")).read_all().to_pylist() == [row]


def output(store: Store, sql: str, form: str) -> bytes:
    with Answer(store.cursor(), sql) as answer:
        return b"".join(encoded(answer, form))


EVERYTHING = (
    "SELECT make_timestamp_ns(1790000000000000001) AS t, 'x,\"y' AS s, {'a': 1.50::DECIMAL(9,2), 'b': NULL} AS o,"
    " [1, 2] AS l, MAP {'k': 'v'} AS m, 'NaN'::DOUBLE AS nan, true AS b, sum(7) AS h, NULL AS nothing,"
    " [make_timestamp_ns(1790000000000001001)] AS ts"
)


def test_json(store: Store) -> None:
    assert json.loads(output(store, EVERYTHING, "json")) == [
        {"t": "2026-09-21T14:13:20.000000001Z", "s": 'x,"y', "o": {"a": 1.5, "b": None}, "l": [1, 2], "m": {"k": "v"},
         "nan": None, "b": True, "h": 7, "nothing": None, "ts": ["2026-09-21T14:13:20.000001"]}
    ]  # fmt: skip
    assert json.loads(output(store, "FROM verdicts WHERE false", "json")) == []
    assert len(json.loads(output(store, "SELECT range FROM range(200000)", "json"))) == 200_000


def test_csv(store: Store) -> None:
    assert output(store, "SELECT 1 AS a, 'x,\"y' AS s, [1, 2] AS l", "csv") == b'"a","s","l"\n1,"x,""y","[1,2]"\n'
    assert output(store, "SELECT node FROM verdicts WHERE false", "csv") == b'"node"\n'
    assert output(store, "SELECT range FROM range(200000)", "csv").count(b"\n") == 200_001


def test_arrow(store: Store) -> None:
    data = output(store, "SELECT * FROM verdicts ORDER BY position", "arrow")
    assert pa.ipc.open_stream(data).read_all().num_rows == N
    empty = pa.ipc.open_stream(output(store, "FROM verdicts WHERE false", "arrow")).read_all()
    assert (empty.num_rows, empty.num_columns) == (0, 37)
    assert pa.ipc.open_stream(output(store, "SELECT range FROM range(200000)", "arrow")).read_all().num_rows == 200_000
