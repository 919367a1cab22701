"""Exported history: it answers like the store it was made from, is brought up to date, and never half."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import tables
from schemas.verdict import STRIDE
from sink.client import History
from sink.errors import ExportError, QueryError, SinkError
from sink.history import export as exporting
from sink.history import exported
from sink.history import manifest as manifests
from sink.history.export import export
from sink.history.manifest import BY_HOUR
from sink.store import Commit, Store, memory_store, prepare, rollup
from tests.support import batches, escapes
from tests.support.rollups import fold

HOUR = 3_600_000_000_000
N = 6_000
FIRST = (batches.CLOCK + batches.START) // HOUR * HOUR
QUESTIONS = (
    "SELECT * FROM verdicts ORDER BY ring, position",
    "SELECT * FROM flows ORDER BY ring, flow_id",
    "SELECT * FROM violations ORDER BY ring, flow_id, first_seen",
    "SELECT * FROM changes ORDER BY time", "SELECT * FROM policy_revisions", "SELECT * FROM rules ORDER BY id",
    "SELECT * FROM identities ORDER BY id", "SELECT * FROM loss", "SELECT * FROM gaps", "SELECT * FROM retention",
    "SELECT * FROM ledger", "SELECT * FROM store.ranges", "SELECT * FROM store.rolled",
    "SELECT * FROM store.pairs_1m ORDER BY ALL", "SELECT * FROM store.pairs_1h ORDER BY ALL",
    "SELECT * FROM store.open_flows ORDER BY ALL",
)  # fmt: skip


def append(store: Store, rows: np.ndarray, first: int = 0, ring: str = "r1") -> None:
    store.append(Commit(batches=[prepare(batches.batch(rows, first * STRIDE, ring=ring))]))


def roll_up(store: Store) -> None:
    while rollup.step(store):
        pass
    fold(store)


@pytest.fixture(scope="module")
def traffic() -> batches.Traffic:
    """Over three hours."""
    return batches.traffic(N, seconds=7_500.0)


@pytest.fixture
def store(traffic: batches.Traffic) -> Iterator[Store]:
    store = memory_store()
    append(store, traffic.rows)
    store.append(Commit(records=[batches.policy_record(), batches.loss_record(N, packets=traffic.packets, final=True)]))
    roll_up(store)
    yield store
    store.close()


@pytest.fixture
def history(store: Store) -> History:
    return History.on_store(store)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def count(history: History, table: str = "verdicts") -> int:
    return int(history.sql(f"SELECT count(*) AS n FROM store.{table}")["n"][0].as_py())


def test_it_answers_like_the_store(history: History, tmp_path: Path) -> None:
    done = export(history, tmp_path / "out")
    with History.on_export(tmp_path / "out") as copied:
        for question in QUESTIONS:
            assert copied.sql(question).equals(history.sql(question)), question
        assert copied.ledger() == history.ledger()
        assert copied.ledger()["balanced"]
        assert copied.recent(limit=7).equals(history.recent(limit=7))
        assert copied.status()["database"]["rows"] == N
    assert done.manifest.nodes == ["n1"]
    assert sum(file.rows for file in done.manifest.of_table("verdicts")) == N


def test_how_it_lies_in_the_directory(history: History, tmp_path: Path) -> None:
    export(history, tmp_path / "out")
    known = manifests.read(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["tables_version"] == tables.VERSION
    assert set(contents(tmp_path / "out")) == {file.path for file in known.files} | {"manifest.json"}
    assert sorted(known.by_hour("verdicts")) == [FIRST, FIRST + HOUR, FIRST + 2 * HOUR]
    for file in known.files:
        path = tmp_path / "out" / file.path
        assert (path.stat().st_size, manifests.sha256(path)) == (file.bytes, file.sha256)
        assert pq.read_metadata(path).num_rows == file.rows
        parts = Path(file.path).parts
        assert parts[0] == file.table and len(parts) == (4 if file.table in BY_HOUR else 2)
    there = {row["table_name"] for row in history.sql("FROM duckdb_tables()").select(["table_name"]).to_pylist()}
    assert set(known.tables()) == there - {"schema_version"} - {table for table in BY_HOUR if not count(history, table)}
    hour = pq.read_table(tmp_path / "out" / known.of_table("verdicts")[1].path)
    nanoseconds = hour["time"].cast(pa.int64()).to_numpy()
    assert nanoseconds.min() >= FIRST + HOUR and nanoseconds.max() < FIRST + 2 * HOUR
    assert known.of_table("verdicts")[1].path.startswith("verdicts/date=2026-09-21/hour=")


def test_a_second_export_adds_what_is_new(traffic: batches.Traffic, tmp_path: Path) -> None:
    store = memory_store()
    history = History.on_store(store)
    middle = int(np.searchsorted(traffic.rows["time"], traffic.rows["time"][0] + np.uint64(HOUR)))
    append(store, traffic.rows[:middle])
    export(history, tmp_path)
    before = manifests.read(tmp_path)
    assert export(history, tmp_path).files == 0
    append(store, traffic.rows[middle:], middle)
    done = export(history, tmp_path)
    after = manifests.read(tmp_path)
    assert done.manifest == after
    assert set(after.by_hour("verdicts")) > set(before.by_hour("verdicts"))
    first = min(before.by_hour("verdicts"))
    assert after.by_hour("verdicts")[first] == before.by_hour("verdicts")[first]
    grown = max(before.by_hour("verdicts"))
    assert next(file.rows for file in after.by_hour("verdicts")[grown]) > before.by_hour("verdicts")[grown][0].rows
    assert set(contents(tmp_path)) == {file.path for file in after.files} | {"manifest.json"}
    with History.on_export(tmp_path) as copied:
        assert copied.sql(QUESTIONS[0]).equals(history.sql(QUESTIONS[0]))


def test_what_the_store_deleted_stays_and_what_comes_late_is_added(store: Store, tmp_path: Path) -> None:
    history = History.on_store(store)
    export(history, tmp_path)
    everything = history.sql(QUESTIONS[0])
    store.connection.execute(f"DELETE FROM store.verdicts WHERE time < make_timestamp_ns({FIRST + 2 * HOUR})")
    assert export(history, tmp_path).files == 0
    late = batches.verdict(flow_id=77_777, time=batches.START + 5)
    append(store, late, N + 10)
    export(history, tmp_path)
    with History.on_export(tmp_path) as copied:
        found = copied.sql(QUESTIONS[0])
    assert found.num_rows == N + 1
    assert found.slice(0, N).equals(everything)
    assert found["flow_id"][N].as_py() == 77_777
    hour = manifests.read(tmp_path).by_hour("verdicts")[FIRST]
    assert sorted(file.rows for file in hour)[0] == 1 and len(hour) == 2


def test_a_span(history: History, tmp_path: Path) -> None:
    since, until = FIRST + HOUR + HOUR // 3, FIRST + 2 * HOUR + 60_000_000_000
    export(history, tmp_path, since, until)
    span = f"WHERE time >= make_timestamp_ns({since}) AND time < make_timestamp_ns({until}) ORDER BY ring, position"
    with History.on_export(tmp_path) as copied:
        assert copied.sql(QUESTIONS[0]).equals(history.sql(f"SELECT * FROM verdicts {span}"))
        assert copied.sql("FROM policy_revisions").equals(history.sql("FROM policy_revisions"))
        assert copied.ledger() == history.ledger()
        for table in ("pairs_1m", "pairs_1h"):  # by whole hours
            hours = f"time >= make_timestamp_ns({FIRST + HOUR}) AND time < make_timestamp_ns({FIRST + 3 * HOUR})"
            held = history.sql(f"SELECT * FROM store.{table} WHERE {hours} ORDER BY ALL")
            assert held.num_rows > 0
            assert copied.sql(f"SELECT * FROM store.{table} ORDER BY ALL").equals(held), table
    known = manifests.read(tmp_path)
    assert (known.since, known.until) == (since, until)
    assert (known.pairs_since, known.pairs_until) == (FIRST + HOUR, FIRST + 3 * HOUR)
    export(history, tmp_path, since + HOUR, until + HOUR)
    known = manifests.read(tmp_path)
    assert (known.since, known.pairs_since) == (since, FIRST + HOUR)
    assert (known.until, known.pairs_until) == (until + HOUR, FIRST + 4 * HOUR)
    export(history, tmp_path)
    known = manifests.read(tmp_path)
    assert (known.since, known.until, known.pairs_since, known.pairs_until) == (None, None, None, None)
    with History.on_export(tmp_path) as copied:
        assert copied.sql(QUESTIONS[0]).equals(history.sql(QUESTIONS[0]))


def test_an_export_of_an_export(history: History, tmp_path: Path) -> None:
    export(history, tmp_path / "one")
    with History.on_export(tmp_path / "one") as one:
        export(one, tmp_path / "two", since=FIRST + HOUR)
    with History.on_export(tmp_path / "two") as two:
        assert two.sql("SELECT count(*) AS n FROM verdicts").equals(
            history.sql(f"SELECT count(*) AS n FROM verdicts WHERE time >= make_timestamp_ns({FIRST + HOUR})")
        )
        assert two.ledger() == history.ledger()


def test_rings_of_other_strides(tmp_path: Path) -> None:
    store = memory_store()
    rows = batches.traffic(30).rows
    append(store, rows)
    given = prepare(batches.batch(rows, ring="old"))
    columns = given.columns | {"position": np.arange(30, dtype="<u8") * 64}
    old = replace(given, past=30 * 64, stride=64, columns=columns)
    store.append(Commit(batches=[old]))
    history = History.on_store(store)
    export(history, tmp_path)
    with History.on_export(tmp_path) as copied:
        assert copied.sql(QUESTIONS[0]).equals(history.sql(QUESTIONS[0]))
        assert copied.sql("SELECT DISTINCT position FROM verdicts WHERE ring = 'old'").num_rows == 30


def test_a_question_about_a_time_opens_the_files_of_its_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()
    append(store, batches.traffic(300, seconds=5 * 86_400.0).rows)
    history = History.on_store(store)
    export(history, tmp_path)
    hours = manifests.read(tmp_path).by_hour("verdicts")
    for most, days in ((60, 1), (2, 3)):
        monkeypatch.setattr(exported, "DAYS_MOST", most)
        with History.on_export(tmp_path) as found:
            assert found.sql(QUESTIONS[0]).equals(history.sql(QUESTIONS[0]))
            last = max(hours)
            since = f"SELECT count(*) AS n FROM store.verdicts WHERE time >= make_timestamp_ns({last})"
            assert found.sql(since).to_pylist() == [{"n": sum(file.rows for file in hours[last])}]
            plan = found.sql(f"EXPLAIN {since}")["explain_value"][0].as_py()
            assert plan.count("Function:") == 1
            every = found.sql("EXPLAIN SELECT count(*) FROM store.verdicts WHERE position > 0")["explain_value"][0]
            assert every.as_py().count("Function:") == len({hour // (days * 24 * HOUR) for hour in hours})


def test_an_empty_history(tmp_path: Path) -> None:
    history = History.on_store(memory_store())
    export(history, tmp_path)
    with History.on_export(tmp_path) as copied:
        for question in QUESTIONS:
            assert copied.sql(question).equals(history.sql(question)), question


def test_pieces_are_bounded(history: History, tmp_path: Path) -> None:
    export(history, tmp_path, piece=500)
    for file in manifests.read(tmp_path).of_table("verdicts"):
        meta = pq.read_metadata(tmp_path / file.path)
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        assert max(sizes) <= 500 and len(sizes) >= file.rows // 500
    with History.on_export(tmp_path) as copied:
        assert copied.sql(QUESTIONS[0]).equals(history.sql(QUESTIONS[0]))


def test_roll_ups_made_meanwhile(traffic: batches.Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()
    append(store, traffic.rows)
    monkeypatch.setattr(rollup, "STEP_EVENTS", N // 3)
    rollup.step(store, N // 3)
    history = History.on_store(store)

    class Meanwhile:
        """Rolls up after the first look at pairs_1m."""

        left = 2

        def sql(self, *asked: Any) -> pa.Table:
            return history.sql(*asked)

        def batches(self, sql: str, *asked: Any) -> Any:
            if "pairs_1m" in sql and self.left:
                self.left -= 1
                rollup.step(store, N // 3)
            return history.batches(sql, *asked)

    export(Meanwhile(), tmp_path)
    with History.on_export(tmp_path) as copied:
        for question in ("FROM store.pairs_1m ORDER BY ALL", "FROM store.rolled", "FROM store.open_flows ORDER BY ALL"):
            assert copied.sql(question).equals(history.sql(question)), question


# -- refusals ----------------------------------------------------------------------------------------------------------


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(ExportError) as caught:
        work()
    assert caught.value.hint and "\n" not in str(caught.value) and caught.value.exit_status == 2
    return str(caught.value)


def test_directories_that_will_not_do(history: History, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is not a directory" in refused(lambda: export(history, tmp_path / "file"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x")
    assert "holds other files, such as letter.txt" in refused(lambda: export(history, tmp_path / "home"))
    assert (tmp_path / "home" / "letter.txt").read_text() == "x"
    assert "holds no exported history" in refused(lambda: History.on_export(tmp_path / "nowhere"))
    other = memory_store()
    append(other, batches.traffic(30).rows, ring="another")
    export(History.on_store(other), tmp_path / "out")
    before = contents(tmp_path / "out")
    assert "history of another store" in refused(lambda: export(history, tmp_path / "out"))
    assert contents(tmp_path / "out") == before


def test_one_at_a_time(history: History, tmp_path: Path) -> None:
    with exporting._locked(tmp_path / "out"):
        assert "another export is writing" in refused(lambda: export(history, tmp_path / "out"))
    export(history, tmp_path / "out")


def test_interrupted_it_leaves_what_was_there(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History.on_store(store)
    export(history, tmp_path, until=FIRST + HOUR)
    before = history.sql(
        f"SELECT * FROM verdicts WHERE time < make_timestamp_ns({FIRST + HOUR}) ORDER BY ring, position"
    )

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    for module, name in ((manifests, "write"), (exporting.pyarrow.parquet, "read_metadata")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, fail)
            with pytest.raises(OSError, match="No space left"):
                export(history, tmp_path)
        with History.on_export(tmp_path) as copied:
            assert copied.sql(QUESTIONS[0]).equals(before)
    (tmp_path / ".export-killed").mkdir()
    (tmp_path / ".export-killed" / "1.parquet").write_bytes(b"half")
    export(history, tmp_path)
    known = manifests.read(tmp_path)
    assert set(contents(tmp_path)) == {file.path for file in known.files} | {"manifest.json"}
    with History.on_export(tmp_path) as copied:
        assert copied.sql(QUESTIONS[0]).equals(history.sql(QUESTIONS[0]))


def changed(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_damaged_exports(history: History, tmp_path: Path) -> None:
    export(history, tmp_path / "out")
    verdicts = manifests.read(tmp_path / "out").of_table("verdicts")[0].path

    def copy(name: str) -> Path:
        return shutil.copytree(tmp_path / "out", tmp_path / name)

    changed(copy("newer"), lambda m: m.update(format=2))
    assert "exported in format 2, this program reads up to 1" in refused(lambda: History.on_export(tmp_path / "newer"))
    (copy("text") / "manifest.json").write_text("hello")
    assert "is damaged" in refused(lambda: History.on_export(tmp_path / "text"))
    (copy("gone") / verdicts).unlink()
    assert "No such file" in refused(lambda: History.on_export(tmp_path / "gone"))
    os.truncate(copy("short") / verdicts, 100)
    assert "has 100 bytes, not the" in refused(lambda: History.on_export(tmp_path / "short"))
    broken = copy("broken") / verdicts
    broken.write_bytes(b"x" * broken.stat().st_size)
    assert "cannot be read" in refused(lambda: History.on_export(tmp_path / "broken"))
    for name in ("../out/manifest.json", "/etc/passwd", ""):
        changed(copy("away"), lambda m, name=name: m["files"][0].update(path=name))
        assert "is not below it" in refused(lambda: History.on_export(tmp_path / "away"))
        shutil.rmtree(tmp_path / "away")
    linked = copy("linked") / verdicts
    linked.unlink()
    linked.symlink_to(tmp_path / "out" / verdicts)
    assert "is not below it" in refused(lambda: History.on_export(tmp_path / "linked"))
    shutil.rmtree(tmp_path / "linked" / "verdicts")
    (tmp_path / "linked" / "verdicts").symlink_to(tmp_path / "out" / "verdicts")
    assert "is not below it" in refused(lambda: History.on_export(tmp_path / "linked"))


def test_older_and_newer_tables(history: History, tmp_path: Path) -> None:
    """Within a format columns and tables are added: unknown ones are left out, missing ones are empty."""
    export(history, tmp_path)
    known = manifests.read(tmp_path)

    def rewrite(path: str, make: Callable[[pa.Table], pa.Table]) -> None:
        pq.write_table(make(pq.read_table(tmp_path / path)), tmp_path / path)

    hours = known.of_table("verdicts")
    rewrite(hours[0].path, lambda t: t.append_column("colour", pa.array(["red"] * t.num_rows)))
    rewrite(hours[1].path, lambda t: t.drop_columns(["tcp_flags_reply"]))
    rewrite(known.of_table("rules")[0].path, lambda t: t.drop_columns(["text"]))

    def change(manifest: dict[str, Any]) -> None:
        manifest["tables_version"] += 1
        manifest["from_the_future"] = {"a": 1}
        manifest["files"] = [file for file in manifest["files"] if file["table"] != "retention"]
        for file in manifest["files"]:
            file["bytes"] = (tmp_path / file["path"]).stat().st_size
            if file["path"] in (hours[0].path, hours[1].path):
                file["tables_version"] = 9 if file["path"] == hours[0].path else 0

    changed(tmp_path, change)
    with History.on_export(tmp_path) as copied:
        columns = "SELECT * EXCLUDE (tcp_flags_reply) FROM verdicts ORDER BY ring, position"
        assert copied.sql(columns).equals(history.sql(columns))
        empty = "SELECT count(*) AS n FROM verdicts WHERE tcp_flags_reply IS NULL"
        assert copied.sql(empty)["n"][0].as_py() == hours[1].rows
        assert copied.sql("SELECT name, text FROM rules ORDER BY id").to_pylist() == [
            {"name": "web-to-db", "text": None}, {"name": "rest", "text": None},
        ]  # fmt: skip
        assert copied.sql("FROM retention").num_rows == 0


# -- read-only in depth ------------------------------------------------------------------------------------------------


def test_no_way_out(history: History, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    export(history, directory)
    pq.write_table(pa.table({"password": ["hunter2"]}), tmp_path / "other.parquet")
    file = directory / manifests.read(directory).of_table("verdicts")[0].path
    before = contents(tmp_path)
    with History.on_export(directory) as copied:
        for sql in (*escapes.refused(), *escapes.CLUMSY.values(), "DROP VIEW store.verdicts"):
            with pytest.raises(SinkError) as caught:
                copied.sql(sql.format(dir=directory, other=tmp_path / "other.parquet", file=file))
            assert caught.value.exit_status in (2, 3) and "hunter2" not in str(caught.value), sql
            assert count(copied) == N, sql
            assert contents(tmp_path) == before, sql


def test_explaining_is_allowed(history: History, tmp_path: Path) -> None:
    export(history, tmp_path)
    with History.on_export(tmp_path) as copied:
        assert copied.sql("EXPLAIN ANALYZE SELECT 'enable_logging' AS x, $$a -- b$$ FROM flows").num_rows == 1
        with pytest.raises(QueryError):
            copied.sql("EXPLAIN ANALYZE")
