"""Compaction: the same rows in a smaller file, and one whole database under its name whenever it is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from schemas.verdict import STRIDE
from sink.client import History
from sink.errors import SinkError
from sink.settings import SinkSettings
from sink.store import Commit, Store, compaction, prepare, retention
from sink.store.compaction import compact, settle
from tests.support import batches
from tests.support.sessions import sessions

N = 8_000
QUESTIONS = (
    "FROM verdicts ORDER BY ring, position", "FROM flows ORDER BY ring, flow_id", "FROM changes",
    "FROM rules ORDER BY id", "FROM identities ORDER BY id", "FROM loss", "FROM ledger", "FROM store.ranges",
    "FROM store.schema_version",
)  # fmt: skip


def settings(directory: Path) -> SinkSettings:
    return SinkSettings(directory / "z.duckdb", "", directory / "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of some hours."""
    directory = tmp_path_factory.mktemp("made")
    store = Store.open(settings(directory))
    rows = sessions(N // 22, seconds=9_000.0)
    for i in range(0, len(rows), 4_000):
        store.append(Commit(batches=[prepare(batches.batch(rows[i : i + 4_000], i * STRIDE))]))
    store.append(Commit(records=[batches.policy_record(), batches.loss_record(len(rows), final=True)]))
    store.close()
    return directory / "z.duckdb"


@pytest.fixture(scope="module")
def before(made: Path) -> list[pa.Table]:
    """What it answers."""
    return answers(made)


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    (tmp_path / "z.duckdb").write_bytes(made.read_bytes())
    return tmp_path / "z.duckdb"


def answers(path: Path) -> list[pa.Table]:
    with History.on_file(path) as history:
        return [history.sql(question) for question in QUESTIONS]


def same(one: list[pa.Table], other: list[pa.Table]) -> bool:
    return all(a.equals(b) for a, b in zip(one, other, strict=True))


def names(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


def test_the_same_rows(database: Path, before: list[pa.Table]) -> None:
    said: list[str] = []
    done = compact(database, said=said.append)
    assert same(answers(database), before)
    assert done.verdicts == before[0].num_rows
    assert done.after == database.stat().st_size < done.before
    assert names(database) == {"z.duckdb"}
    assert said[-1].startswith("verdicts: hour 3 of 3, ")
    store = Store.open(settings(database.parent))
    assert store.append(Commit(batches=[prepare(batches.batch(batches.traffic(30).rows, ring="r2"))])) == 30
    store.close()


def test_hours_stay_in_order(database: Path) -> None:
    compact(database)
    with duckdb.connect(str(database), read_only=True) as connection:
        hours = connection.execute("SELECT epoch_ns(time) // 3600000000000 FROM store.verdicts").fetchall()
        assert hours == sorted(hours)
        kinds = connection.execute("SELECT event FROM store.verdicts WHERE time < (SELECT min(time) FROM"
                                   " store.verdicts) + INTERVAL 10 MINUTE").fetchall()  # fmt: skip
        assert kinds == sorted(kinds)


def test_what_was_deleted_gives_its_room_back(tmp_path: Path) -> None:
    store = Store.open(settings(tmp_path))
    store.append(Commit(batches=[prepare(batches.batch(batches.traffic(150_000).rows))]))
    store.connection.execute("DELETE FROM store.verdicts WHERE position % 100 <> 0")
    store.connection.execute("CHECKPOINT")
    assert retention.used_bytes(store) > 0
    store.close()
    done = compact(tmp_path / "z.duckdb")
    assert done.verdicts == 150_000 // 5
    assert done.after < done.before / 2


def test_worthwhile(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compaction.worthwhile(database)
    assert not compaction.worthwhile(database.with_name("none"))
    monkeypatch.setattr(compaction, "UNASKED_FREE", 1 << 20)
    assert not compaction.worthwhile(database)
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM store.verdicts")
        connection.execute("CHECKPOINT")
    assert compaction.worthwhile(database)
    monkeypatch.setattr(compaction, "UNASKED_MOST", 1)
    assert not compaction.worthwhile(database)


def test_refusals(database: Path, before: list[pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SinkError, match="there is no database"):
        compact(tmp_path / "none.duckdb")
    holding = f"import duckdb; c = duckdb.connect({str(database)!r}); print('open', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", holding],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout and child.stdout.readline() == b"open\n"
    with pytest.raises(SinkError, match="in use by another process"):
        compact(database)
    child.communicate(b"\n", timeout=30)
    with monkeypatch.context() as patched:
        patched.setattr(compaction.shutil, "disk_usage", lambda path: compaction.shutil._ntuple_diskusage(9, 9, 1))
        with pytest.raises(SinkError, match="bytes of free disk, there are 1"):
            compact(database)
    with monkeypatch.context() as patched:
        patched.setattr(compaction, "sync", _fail)
        with pytest.raises(SinkError, match=r"cannot compact .*: .*No space left"):
            compact(database)
    with monkeypatch.context() as patched:
        patched.setattr(compaction, "_copy", lambda *_: None)
        with pytest.raises(SinkError, match=r"the copy of .* is not the same"):
            compact(database)
    assert same(answers(database), before)
    assert names(database) == {"z.duckdb"}


def _fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


KILLED = """
import os, signal, sys
from pathlib import Path
from sink.store import compaction
def dies(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{patch}
compaction.compact(Path(sys.argv[1]))
"""
STAGES = {
    "before anything": "compaction.open_writer = dies",
    "before copying": "compaction._copy = dies",
    "in the middle of the verdicts": (
        "real = compaction._copy\n"
        "def middle(c, table, said): real(c, table, (lambda line: dies() if 'hour 2' in line else None))\n"
        "compaction._copy = middle"
    ),
    "before the copy is compared": "compaction._same = dies",
    "before the copy is safe": "compaction.sync = dies",
    "before the new takes its place": "compaction._swap = dies",
    "between link and rename": "Path.replace = dies",
    "right after the rename": (
        "real = compaction.sync\n"
        "def after(path): dies() if path.is_dir() else real(path)\n"
        "compaction.sync = after"
    ),
    "before the old is let go": (
        "real = compaction.settle\n"
        "def second(path): dies() if compaction._beside(path, '.before').exists() else real(path)\n"
        "compaction.settle = second"
    ),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("stage", STAGES)
def test_killed(database: Path, before: list[pa.Table], stage: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED.format(patch=STAGES[stage]), str(database)], cwd=Path(__file__).parents[3],
        check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL
    assert same(answers(database), before)
    settle(database)
    assert names(database) == {"z.duckdb"}
    assert same(answers(database), before)


@pytest.mark.parametrize("opens", [True, False])
def test_the_old_stays_until_the_new_opens(database: Path, before: list[pa.Table], opens: bool) -> None:
    database.with_name("z.duckdb.before").write_bytes(database.read_bytes())
    if not opens:
        database.write_bytes(b"x" * 10_000)
    settle(database)
    assert names(database) == {"z.duckdb"}
    assert same(answers(database), before)
