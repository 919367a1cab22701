"""The archive: nothing is deleted that is not exported, safe and rolled up; what cannot be exported stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.verdict import STRIDE
from sink.archive import Archive
from sink.client import History
from sink.history.manifest import read
from sink.history.parts import Parts
from sink.settings import SinkSettings
from sink.store import Commit, Store, memory_store, prepare, retention, rollup
from sink.store.database import now_ns
from tests.support import batches
from tests.support.rollups import fold

HOUR = 3_600_000_000_000
N = 3_000
FIRST = (batches.CLOCK + batches.START) // HOUR * HOUR
VERDICTS = "SELECT * FROM verdicts ORDER BY ring, position"


def append(store: Store, first: int, *rows: object) -> None:
    for given in rows:
        store.append(Commit(batches=[prepare(batches.batch(given, first * STRIDE))]))  # type: ignore[arg-type]


def roll_up(store: Store) -> None:
    while rollup.step(store):
        pass
    fold(store)


@pytest.fixture
def store() -> Iterator[Store]:
    """Three hours of September 2026."""
    store = memory_store()
    traffic = batches.traffic(N, seconds=7_500.0)
    append(store, 0, traffic.rows)
    store.append(Commit(records=[batches.policy_record(), batches.loss_record(N, packets=traffic.packets, final=True)]))
    roll_up(store)
    yield store
    store.close()


def settings(tmp_path: Path, **fields: float) -> SinkSettings:
    given = {"keep_age": 86_400.0, "keep_minutes": 0.0, "keep_hours": 0.0} | fields
    return SinkSettings(tmp_path / "z.duckdb", "", tmp_path / "run", archive=tmp_path / "archive", **given)  # type: ignore[arg-type]


def held(store: Store) -> int:
    return int(History.on_store(store).sql("SELECT count(*) AS n FROM verdicts")["n"][0].as_py())


def test_what_is_deleted_is_in_the_archive(store: Store, tmp_path: Path) -> None:
    given = settings(tmp_path)
    append(store, N, batches.verdict(time=now_ns() - batches.CLOCK))  # of today: it stays
    roll_up(store)
    everything = History.on_store(store).sql(VERDICTS).slice(0, N)
    account = History.on_store(store).ledger()
    archive = Archive(tmp_path / "archive")
    assert archive.fill(store, retention.horizon(store, given))
    assert retention.apply(store, given, archive) == N
    assert held(store) == 1
    with History.on_export(tmp_path / "archive") as exported:
        assert exported.sql(VERDICTS).equals(everything)
        assert exported.ledger() == account
    assert archive.counters == {
        "exports": 1, "failed": 0, "files": archive.counters["files"], "rows": archive.counters["rows"],
        "bytes": sum(file.bytes for file in read(tmp_path / "archive").files),
    }  # fmt: skip
    assert archive.fill(store, retention.horizon(store, given))
    with History.on_export(tmp_path / "archive") as exported:
        assert exported.sql(VERDICTS).equals(everything)
        assert exported.sql("FROM retention").equals(History.on_store(store).sql("FROM retention"))


def test_without_an_export_nothing_goes(store: Store, tmp_path: Path) -> None:
    assert retention.apply(store, settings(tmp_path), Archive(tmp_path / "archive")) == 0
    assert held(store) == N


def test_the_hour_that_is_not_over_stays(store: Store, tmp_path: Path) -> None:
    age = (now_ns() - FIRST - HOUR - HOUR // 2) / 1e9
    given, archive = settings(tmp_path, keep_age=age), Archive(tmp_path / "archive")
    first = int(
        store.connection.execute(
            f"SELECT count(*) FROM store.verdicts WHERE time < make_timestamp_ns({FIRST + HOUR})"
        ).fetchall()[0][0]
    )
    assert retention.horizon(store, given) == FIRST + HOUR
    assert archive.fill(store, FIRST + HOUR)
    assert retention.apply(store, given, archive) == first
    assert list(read(tmp_path / "archive").by_hour("verdicts")) == [FIRST]


def test_what_comes_after_the_export_keeps_its_hour(store: Store, tmp_path: Path) -> None:
    given, archive = settings(tmp_path), Archive(tmp_path / "archive")
    assert archive.fill(store, retention.horizon(store, given))
    append(store, N, batches.verdict(time=batches.START + 1))
    deleted = retention.apply(store, given, archive)
    hours = read(tmp_path / "archive").by_hour("verdicts")
    assert deleted == N - hours[FIRST][0].rows
    assert held(store) == hours[FIRST][0].rows + 1
    roll_up(store)
    assert archive.fill(store, retention.horizon(store, given))
    assert retention.apply(store, given, archive) == hours[FIRST][0].rows + 1
    with History.on_export(tmp_path / "archive") as exported:
        assert exported.sql(VERDICTS).num_rows == N + 1


def test_what_is_not_rolled_up_stays(tmp_path: Path) -> None:
    store = memory_store()
    append(store, 0, batches.traffic(300).rows)
    given, archive = settings(tmp_path), Archive(tmp_path / "archive")
    assert archive.fill(store, retention.horizon(store, given))
    assert retention.apply(store, given, archive) == 0
    assert rollup.step(store, 100) == 100
    assert retention.apply(store, given, archive) == 100
    roll_up(store)
    assert archive.fill(store, retention.horizon(store, given))
    assert retention.apply(store, given, archive) == 200
    with History.on_export(tmp_path / "archive") as exported:
        assert exported.sql(VERDICTS).num_rows == 300


def test_an_archive_that_cannot_be_written_keeps_everything(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, archive = settings(tmp_path), Archive(tmp_path / "archive")

    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device", str(tmp_path / "archive"))

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", full)
        assert not archive.fill(store, retention.horizon(store, given))
    assert retention.apply(store, given, archive) == 0
    assert held(store) == N
    assert archive.trouble == (
        f"archive {tmp_path}/archive: {tmp_path}/archive: No space left on device;"
        " nothing is deleted until it can be written"
    )
    assert archive.counters["failed"] == 1
    (tmp_path / "archive").rmdir()
    (tmp_path / "archive").write_text("a file")
    assert not archive.fill(store, retention.horizon(store, given))
    assert "is not a directory" in archive.trouble and archive.counters["failed"] == 2
    (tmp_path / "archive").unlink()
    assert archive.fill(store, retention.horizon(store, given))
    assert (archive.trouble, archive.counters["exports"]) == ("", 1)
    assert retention.apply(store, given, archive) == N


def test_roll_ups(store: Store, tmp_path: Path) -> None:
    """Minutes and hours of roll-ups go too, once they are in the archive."""
    given = settings(tmp_path, keep_age=0.0, keep_minutes=86_400.0, keep_hours=86_400.0)
    archive = Archive(tmp_path / "archive")
    history = History.on_store(store)
    minutes, hours = history.sql("FROM store.pairs_1m ORDER BY ALL"), history.sql("FROM store.pairs_1h ORDER BY ALL")
    assert min(minutes.num_rows, hours.num_rows) > 0
    assert archive.fill(store, retention.horizon(store, given))
    assert retention.apply(store, given, archive) == 0
    assert (history.sql("FROM store.pairs_1m").num_rows, history.sql("FROM store.pairs_1h").num_rows) == (0, 0)
    with History.on_export(tmp_path / "archive") as exported:
        assert exported.sql("FROM store.pairs_1m ORDER BY ALL").equals(minutes)
        assert exported.sql("FROM store.pairs_1h ORDER BY ALL").equals(hours)
    assert held(store) == N
