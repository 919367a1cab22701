"""Hostile SQL over the socket of a real sink: a clear error each time, the same process is still there."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sink.client import History
from sink.errors import BusyError, SinkError
from sink.service import bounded
from sink.store import Commit, Store, prepare
from tests.support import batches, escapes
from tests.support.rollups import roll_up
from tests.support.sinks import SinkProcess, settings, wait_for

N = 3000
LIMIT = 2 << 30
"""Bytes the sink may allocate."""
CONTENT = "SELECT count(*) AS n, sum(hash(v))::VARCHAR AS h FROM store.verdicts AS v"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    """A sink over N verdicts whose NATS is away: nothing but questions happens to it."""
    given = settings(tmp_path, "nats://127.0.0.1:1", query_timeout=1.0, process_memory=LIMIT)
    store = Store.open(given)
    store.append(Commit(batches=[prepare(batches.batch(batches.traffic(N).rows))], records=[batches.policy_record()]))
    roll_up(store)
    store.close()
    pq.write_table(pa.table({"password": ["hunter2"]}), tmp_path / "other.parquet")
    with SinkProcess(given) as process:
        yield process


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def asked(history: History, sql: str) -> list[dict[str, Any]]:
    """The rows of what is answered in its second, unless the machine stands still."""
    for _ in range(20):
        try:
            return list(history.sql(sql).to_pylist())
        except BusyError as error:
            if "longer than" not in str(error):
                raise
    raise AssertionError(f"never within a second: {sql}")


def mapped(pid: int) -> int:
    """Bytes that count against the limit."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmData:")]
    return int(line.split()[1]) << 10


def test_nothing_gets_out_and_nothing_breaks(sink: SinkProcess, tmp_path: Path) -> None:
    database = sink.settings.database
    places = {"dir": tmp_path, "file": database, "other": tmp_path / "other.parquet"}
    assert sink.process is not None
    with History.over_socket(sink.settings.socket) as history:
        before = asked(history, CONTENT)
        files, data = sorted(tmp_path.iterdir()), digest(database)
        for sql in (*escapes.refused(), *escapes.CLUMSY.values()):
            with pytest.raises(SinkError) as caught:
                history.sql(sql.format(**places))
            assert caught.value.hint and "\n" not in str(caught.value), sql
            assert "hunter2" not in str(caught.value), sql
        for sql in (*escapes.ENDLESS.values(), *escapes.LARGE.values()):
            with pytest.raises(BusyError, match=r"longer than 1 s|more memory"):
                history.sql(sql)
        for sql in escapes.LATE.values():
            with pytest.raises(BusyError, match=r"longer than 1 s|more memory"):
                history.sql(sql)
        for sql in escapes.HARMLESS.values():
            asked(history, sql)
        assert sink.process.poll() is None
        assert history.status()["pid"] == sink.process.pid
        assert asked(history, CONTENT) == before
        # What a question took is given back, not only free to the next.
        wait_for(lambda: mapped(sink.process.pid) < LIMIT // 4, "what the questions took to be given back", 10)
        assert sorted(path for path in tmp_path.iterdir() if path.suffix != ".tmp") == files
        assert list(tmp_path.glob("*.tmp/*")) == []
        assert digest(database) == data


def test_nothing_gets_out_of_a_file_that_no_sink_has_open(tmp_path: Path) -> None:
    """As `ztlens sql` reads it while no sink runs: in the process of who asks."""
    given = settings(tmp_path, "nats://127.0.0.1:1")
    store = Store.open(given)
    store.append(Commit(batches=[prepare(batches.batch(batches.traffic(N).rows))], records=[batches.policy_record()]))
    roll_up(store)
    store.close()
    pq.write_table(pa.table({"password": ["hunter2"]}), tmp_path / "other.parquet")
    places = {"dir": tmp_path, "file": given.database, "other": tmp_path / "other.parquet"}
    files, data = sorted(tmp_path.iterdir()), digest(given.database)
    with bounded(3 << 30), History.on_file(given.database, timeout=1.0) as history:
        before = asked(history, CONTENT)
        for sql in (*escapes.refused(), *escapes.CLUMSY.values()):
            with pytest.raises(SinkError) as caught:
                history.sql(sql.format(**places))
            assert caught.value.exit_status in (2, 3), sql
            assert caught.value.hint and "\n" not in str(caught.value), sql
            assert "hunter2" not in str(caught.value), sql
        for sql in (*escapes.ENDLESS.values(), *escapes.LARGE.values()):
            with pytest.raises(BusyError, match=r"longer than 1 s|more memory"):
                history.sql(sql)
        for sql in escapes.HARMLESS.values():
            asked(history, sql)
        assert asked(history, CONTENT) == before
    assert sorted(path for path in tmp_path.iterdir() if path.suffix != ".tmp") == files
    assert list(tmp_path.glob("*.tmp/*")) == []
    assert digest(given.database) == data
    with History.on_file(given.database) as history:  # nothing was left locked or changed
        assert asked(history, CONTENT) == before
