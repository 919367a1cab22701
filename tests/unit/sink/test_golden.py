"""Files and messages of every version that there was: today's sink reads them exactly. A migration can be gone back on.

tests/golden/v<n>: what the program whose tables had version n wrote (`tests.support.golden`), with DuckDB 1.5.5.
"""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import pytest

from schemas import subjects, tables
from sink.client import History
from sink.consume import decode
from sink.errors import SinkError, StoreError
from sink.settings import SinkSettings
from sink.store import Commit, Store, backup, database, prepare
from tests.support import batches, golden
from tests.support.rollups import naive, roll_up, stored, without_nothing

VERSIONS = sorted(path.name for path in golden.GOLDEN.iterdir())
STORED = len(golden.NODES) * golden.EVENTS + 1
"""Events of the golden store. One was deleted; of that it has the range."""
OLD = [name for name in VERSIONS if name != f"v{tables.VERSION}"]


def answers_of(version: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads(golden.kept(version, "answers.json"))
    return found


def messages_of(version: str) -> list[tuple[str, bytes]]:
    return [(subject, data) for subject, data in msgspec.msgpack.decode(golden.kept(version, "messages"))]


def same(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> None:
    """What was answered then is answered now, column by column; there may be more columns."""
    for view, rows in expected.items():
        columns = rows[0]
        now = [{name: row[name] for name in columns} for row in found[view]]
        assert sorted(map(json.dumps, now)) == sorted(map(json.dumps, rows)), view


class Old(NamedTuple):
    """A database of an old version, and its bytes."""

    settings: SinkSettings
    data: bytes

    @property
    def path(self) -> Path:
        return self.settings.database

    @property
    def copy(self) -> Path:
        return backup.copy_of(self.path, 1)


def placed(version: str, directory: Path) -> Old:
    old = Old(SinkSettings(directory / "z.duckdb", "", directory), golden.kept(version, "history.duckdb"))
    old.path.write_bytes(old.data)
    return old


@pytest.fixture
def first(tmp_path: Path) -> Old:
    """A database of version 1."""
    return placed("v1", tmp_path)


def version_of(path: Path) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        return int((connection.execute("SELECT max(version) FROM store.schema_version").fetchone() or (0,))[0])


def beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file.is_file())


def test_every_version_is_kept() -> None:
    assert [f"v{number}" for number in range(1, tables.VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_database_answers_as_it_did(version: str, tmp_path: Path) -> None:
    old = placed(version, tmp_path)
    expected = answers_of(version)
    store = Store.open(old.settings)
    try:
        same(golden.answers(History.on_store(store), tuple(expected)), expected)
        assert store.state.streams[subjects.VERDICTS_STREAM].sequence == 12
    finally:
        store.close()
    assert version_of(old.path) == tables.VERSION
    with History.on_file(old.path) as history:
        same(golden.answers(history, tuple(expected)), expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_are_stored_as_they_were(version: str, memory: Store) -> None:
    golden.fill(memory, messages_of(version))
    everything = answers_of(version)
    expected = {view: everything[view] for view in golden.OF_MESSAGES}
    same(golden.answers(History.on_store(memory), golden.OF_MESSAGES), expected)


@pytest.mark.parametrize("version", OLD)
def test_the_database_of_before_is_kept(version: str, tmp_path: Path) -> None:
    old = placed(version, tmp_path)
    Store.open(old.settings).close()
    copy = backup.copy_of(old.path, int(version[1:]))
    assert copy.read_bytes() == old.data
    assert beside(old.path) == sorted([old.path.name, copy.name])
    Store.open(old.settings).close()  # nothing left to do
    assert copy.read_bytes() == old.data


def test_old_verdicts_are_rolled_up_by_the_ordinary_steps(first: Old) -> None:
    store = Store.open(first.settings)
    assert roll_up(store) == STORED
    for seed, (node, ring) in enumerate(golden.NODES, start=1):
        found = stored(store, "store.pairs_1m", where=f"ring = {store.state.rings[node, ring].id}")
        assert without_nothing(found) == without_nothing(naive(golden.traffic(seed)))
    assert roll_up(store) == 0
    store.close()


def test_its_log_is_kept_with_it(first: Old) -> None:
    """The sink of before was killed: its last commit is in the log alone."""
    script = f"""
import duckdb, os
c = duckdb.connect({str(first.path)!r}, config={{"storage_compatibility_version": "v1.5.0"}})
c.execute("SET checkpoint_threshold = '1GB'")
c.execute("INSERT INTO store.gaps VALUES (1, 999040, 999104, now()::TIMESTAMP, 'in the log')")
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    log = first.path.with_name("z.duckdb.wal")
    written = log.read_bytes()
    assert b"in the log" in written
    store = Store.open(first.settings)
    found = "SELECT count(*) FROM store.gaps WHERE cause = 'in the log'"
    assert store.connection.execute(found).fetchone() == (1,)
    store.close()
    assert first.copy.read_bytes() == first.data
    assert first.copy.with_name(first.copy.name + ".wal").read_bytes() == written
    with duckdb.connect(str(first.copy), read_only=True) as connection:
        assert connection.execute(found).fetchone() == (1,)


def test_without_room_for_a_copy_nothing_is_done(first: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(first.path)._replace(free=first.path.stat().st_size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SinkError, match=r"no room for a copy of .*: 19 MiB needed, 3 MiB free") as caught:
        Store.open(first.settings)
    assert "free space" in caught.value.hint
    assert first.path.read_bytes() == first.data
    assert beside(first.path) == [first.path.name]


def test_a_copy_that_fails_half_way_leaves_nothing(first: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(SinkError, match="No space left on device"):
        Store.open(first.settings)
    assert first.path.read_bytes() == first.data
    assert beside(first.path) == [first.path.name]


def test_a_migration_that_fails_leaves_the_old_version(first: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*tables.MIGRATIONS[1], "SELECT error('half way')")
    with monkeypatch.context() as patched:
        patched.setattr(tables, "MIGRATIONS", (tables.MIGRATIONS[0], broken))
        with pytest.raises(StoreError, match="half way"):
            Store.open(first.settings)
    assert version_of(first.path) == 1
    with duckdb.connect(str(first.path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM verdicts").fetchone() == (STORED - 1,)
    store = Store.open(first.settings)
    same(golden.answers(History.on_store(store), golden.OF_MESSAGES), {
        view: answers_of("v1")[view] for view in golden.OF_MESSAGES
    })  # fmt: skip
    store.close()


def test_killed_in_a_migration_it_is_as_before(first: Old) -> None:
    script = f"""
from pathlib import Path
from schemas import tables
from sink.store.database import open_writer
def slow(statements):
    yield from statements
    print("half way", flush=True)
    yield "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"
tables.MIGRATIONS = (tables.MIGRATIONS[0], slow(tables.MIGRATIONS[1]))
open_writer(Path({str(first.path)!r}), "256MB", 1)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.kill()
    assert version_of(first.path) == 1
    store = Store.open(first.settings)
    assert roll_up(store) == STORED
    store.close()
    assert version_of(first.copy) == 1


def test_a_file_somebody_has_open_is_not_copied(first: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_PATIENCE", 0.3)
    script = f"import duckdb, sys; c = duckdb.connect({str(first.path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(SinkError, match="in use by another process"):
            Store.open(first.settings)
        assert not first.copy.exists()


def test_a_file_of_the_other_duckdb(tmp_path: Path) -> None:
    """What DuckDB 2 wrote opens in 1.5 and the reverse; these tests are run by both (scripts/test.sh)."""
    root = golden.GOLDEN.parents[1]
    other = root / ".venv" / "duckdb2"
    assert other.is_dir(), "scripts/setup.sh --test"
    path = [str(root), *([str(other)] if duckdb.__version__ < "2" else [])]
    script = (
        "import duckdb; print(duckdb.__version__, flush=True)\n"
        "from pathlib import Path; from tests.support import golden\n"
        f"golden.make(Path({str(tmp_path / 'made')!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": ":".join(path)}, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert done.stdout.split(".")[0] != duckdb.__version__.split(".")[0]
    made = Old(SinkSettings(tmp_path / "z.duckdb", "", tmp_path), b"")
    made.path.write_bytes(lzma.decompress((tmp_path / "made" / "history.duckdb.xz").read_bytes()))
    expected = json.loads(lzma.decompress((tmp_path / "made" / "answers.json.xz").read_bytes()))
    with History.on_file(made.path) as history:
        same(golden.answers(history, tuple(expected)), expected)
    store = Store.open(made.settings)
    golden.fill(store, messages_of("v2"))
    assert store.counters.verdicts.dropped["duplicate"] == len(golden.NODES) * (golden.EVENTS + 10)
    more = batches.batch(batches.traffic(30).rows, node="n4", ring="r4")
    assert store.append(Commit(batches=[prepare(more)])) == 30
    assert roll_up(store) == 30
    store.close()


# -- a newer sink with an older collector, and the reverse -----------------------------------------------------------


def changed(data: bytes, **fields: Any) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(data) | fields)


def test_a_newer_collectors_messages_are_stored_without_what_is_new(memory: Store) -> None:
    given = []
    for subject, data in messages_of("v1"):
        fields: dict[str, Any] = {"from_the_future": {"a": [1]}}
        message = msgspec.msgpack.decode(data)
        if "c" in message:
            fields |= {"t": message["t"] | {"colour": "<u8"}, "c": message["c"] | {"colour": bytes(8 * message["n"])}}
        if message.get("rules"):
            fields["rules"] = [rule | {"colour": "red"} for rule in message["rules"]]
        if message.get("counters"):
            fields["counters"] = message["counters"] | {"not_yet_counted": 7}
        given.append((subject, changed(data, **fields)))
    golden.fill(memory, given)
    everything = answers_of("v1")
    expected = {view: everything[view] for view in golden.OF_MESSAGES}
    same(golden.answers(History.on_store(memory), golden.OF_MESSAGES), expected)
    count = "SELECT count(*) FROM store.loss WHERE counters['not_yet_counted'] = 7"
    assert memory.connection.execute(count).fetchone() == (4,)


def test_an_older_collectors_messages_are_stored_with_defaults(memory: Store) -> None:
    """Every field that has a default, and every column but the time, may be missing."""
    needed = {"v", "kind", "node", "ring", "time", "revision", "mode", "stride", "produced", "consumed", "ring_bytes",
              "counters", "judged_packets", "judged_bytes", "flows", "interfaces", "collector"}  # fmt: skip
    for subject, data in messages_of("v1"):
        message = msgspec.msgpack.decode(data)
        if "c" in message:
            message["c"] = {"time": message["c"]["time"]}
        else:
            message = {name: value for name, value in message.items() if name in needed}
        stream = subjects.VERDICTS_STREAM if "c" in message else subjects.RECORDS_STREAM
        content = decode(stream, subject, msgspec.msgpack.encode(message))
        memory.append(Commit(batches=[content]) if "c" in message else Commit(records=[content]))  # type: ignore[list-item]
    found = History.on_store(memory).sql("SELECT DISTINCT dport, packets, rule, src FROM verdicts").to_pylist()
    assert found == [{"dport": 0, "packets": 0, "rule": "default", "src": None}]
    assert History.on_store(memory).sql("SELECT DISTINCT state, error FROM changes").to_pylist() == [
        {"state": "confirmed", "error": ""}
    ]
    times = "SELECT min(epoch_ns(time)), max(epoch_ns(time)) FROM store.verdicts WHERE ring = 1"
    rows = golden.traffic(1)["time"]
    assert memory.connection.execute(times).fetchone() == (
        int(rows.min()) + batches.CLOCK, int(rows.max()) + batches.CLOCK,
    )  # fmt: skip
