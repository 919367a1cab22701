"""`export`, `evidence check`, `--from`, `sink --archive`, `sink --compact`; exports of a sink that goes on storing."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest

from schemas import messages, streams, subjects
from schemas.verdict import STRIDE
from sink.client import History
from sink.history.export import export
from sink.history.pairs import HOUR
from sink.store import Commit, prepare
from tests.support import batches
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, recorded, settings, wait_for
from ztlens.main import main

N = 900
CLOCK = time.time_ns() - batches.START - 7_200 * 1_000_000_000
"""The traffic begins two hours ago."""


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with history and no sink."""
    traffic = batches.traffic(N, seconds=5_000.0)
    given = prepare(batches.envelope.decode(batches.envelope.encode(
        traffic.rows, node="n1", ring="r1", start=0, clock=CLOCK, rev=1)))  # fmt: skip
    record = batches.policy_record("start", time=CLOCK, hash="", yaml="")
    loss = batches.loss_record(N, packets=traffic.packets, final=True)
    monkeypatch.chdir(tmp_path)
    return recorded(tmp_path, monkeypatch, Commit(batches=[given], records=[record, loss]))


Run = Callable[..., str]


@pytest.fixture
def run(database: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str, status: int = 0) -> str:
        capfd.readouterr()
        found = main(list(arguments))
        out, err = capfd.readouterr()
        assert found == status, err
        if status:
            assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"], err
        return out if status == 0 else f"{out}{err}"

    return command


def test_export_and_questions_from_it(run: Run, database: Path) -> None:
    told = json.loads(run("export", "--to", "out", "-o", "json"))
    assert (told["verdicts"], told["nodes"], told["directory"]) == (N, ["n1"], str(Path("out").absolute()))
    assert told["files"] == told["written"]["files"] > 10
    again = run("export", "--to", "out")
    assert again.startswith(f"out: {N} verdicts in {told['files']} files, ")
    assert "; written now: 0 files, 0 B\n" in again
    questions = (
        ("sql", "SELECT * FROM flows ORDER BY flow_id", "-o", "json"), ("sql", "FROM rules", "-o", "csv"),
        ("flows", "-o", "json"), ("violations", "--by", "rule", "-o", "json"), ("violations", "--last", "3"),
        ("observe", "--last", "7", "-o", "json"), ("observe", "--since", "3h", "--decision", "deny", "-o", "json"),
        ("ledger", "-o", "json"), ("ledger",),
    )  # fmt: skip
    here = [run(*question) for question in questions]
    database.unlink()
    assert [run(*question, "--from", "out") for question in questions] == here
    copied = json.loads(run("export", "--from", "out", "--to", "copy", "--since", "1h30m", "-o", "json"))
    assert 0 < copied["verdicts"] < N


def test_bad_input(run: Run, tmp_path: Path) -> None:
    assert "where to is missing" in run("export", status=2)
    assert "is not an output" in run("export", "--to", "out", "-o", "csv", status=2)
    assert "--until is not later" in run("export", "--to", "out", "--since", "1h", "--until", "2h", status=2)
    assert "is not a time" in run("export", "--to", "out", "--since", "soon", status=2)
    (tmp_path / "file").write_text("x")
    assert "file is not a directory" in run("export", "--to", "file", status=2)
    assert "holds other files" in run("export", "--to", str(tmp_path), status=2)
    for question in (("sql", "SELECT 1"), ("flows",), ("violations",), ("ledger",), ("observe",)):
        assert "holds no exported history" in run(*question, "--from", "nowhere", status=2)
    assert "--from and -f exclude each other" in run("observe", "-f", "--from", "out", status=2)
    assert "holds no evidence" in run("evidence", "check", "nowhere", status=2)
    (tmp_path / "state" / "ztlens.duckdb").unlink()
    assert "there is no history" in run("export", "--to", "out", status=3)
    assert not (tmp_path / "out").exists()


def test_evidence(run: Run) -> None:
    told = run("export", "--evidence", "--since", "3h", "--to", "bundle").splitlines()
    digest = told[1]
    assert told[2] == f"check it with: ztlens evidence check bundle --hash {digest}"
    found = run("evidence", "check", "bundle", "--hash", digest)
    assert f"{N} verdicts, all as they were; the ledger balances" in found
    document = json.loads(run("evidence", "check", "bundle", "-o", "json"))
    assert (document["valid"], document["sha256"], document["verdicts"], document["problems"]) == (True, digest, N, [])
    assert "its hash is not the expected" in run("evidence", "check", "bundle", "--hash", "0" * 64, status=1)
    assert "is not empty" in run("export", "--evidence", "--to", "bundle", status=2)
    changed = Path("bundle/ledger.json")
    changed.write_text(changed.read_text().replace("true", "null", 1))
    assert "ledger.json" in run("evidence", "check", "bundle", status=1)
    out = run("evidence", "check", "bundle", "-o", "json", status=1)
    assert json.loads(out[: out.index("error:")])["problems"] == [{"file": "ledger.json", "problem": "was changed"}]
    other = json.loads(run("export", "--evidence", "--to", "other", "-o", "json"))
    assert json.loads(run("evidence", "check", "other", "--hash", other["sha256"], "-o", "json"))["valid"]


def test_compact(run: Run, database: Path) -> None:
    before = run("flows", "-o", "json")
    told = run("sink", "--compact")
    assert told.startswith(f"{database}: {N} verdicts, ")
    assert run("flows", "-o", "json") == before
    database.unlink()
    assert "there is no database" in run("sink", "--compact", status=3)


async def publish(url: str, first: int, rows: Any, clock: int = CLOCK) -> None:
    client = await nats.connect(url)
    for name in (subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM):
        await streams.ensure(client, name)
    for i in range(0, len(rows), 300):
        data = batches.envelope.encode(
            rows[i : i + 300], node="n1", ring="r1", start=(first + i) * STRIDE, clock=clock, rev=1
        )
        await client.jetstream().publish(subjects.verdicts("n1"), data)
    await client.jetstream().publish(subjects.loss("n1"), messages.encode(batches.loss_record(first + len(rows))))
    await client.close()


def test_a_sink_that_goes_on_storing(tmp_path: Path, nats_server: NatsServer) -> None:
    """Exports beside a sink that stores: each is whole and balances as far as it goes; the last has everything."""
    rows = batches.traffic(60_000, seconds=6_000.0).rows
    given = settings(tmp_path, nats_server.url, rollup_interval=0.2)
    asyncio.run(publish(nats_server.url, 0, rows[:6_000]))
    with SinkProcess(given) as sink:
        wait_for(lambda: sink.value("SELECT count(*) FROM verdicts") == 6_000, "the first are stored")
        publishing = threading.Thread(target=lambda: asyncio.run(publish(nats_server.url, 6_000, rows[6_000:])))
        publishing.start()
        held = []
        while publishing.is_alive() or len(held) < 3:
            with History.over_socket(given.socket) as history:
                export(history, tmp_path / "out", piece=4_000)
            with History.on_export(tmp_path / "out") as exported:
                found = exported.sql("SELECT count(*) AS n, count(DISTINCT position) AS d FROM verdicts").to_pylist()[0]
                assert found["n"] == found["d"]
                held.append(found["n"])
        publishing.join()
        wait_for(lambda: sink.value("SELECT count(*) FROM verdicts") == 60_000, "all are stored")
        with History.over_socket(given.socket) as history:
            export(history, tmp_path / "out")
            with History.on_export(tmp_path / "out") as exported:
                question = "SELECT * FROM verdicts ORDER BY position"
                assert exported.sql(question).equals(history.sql(question))
        assert held == sorted(held)
        assert sink.ask(lambda history: history.status())["counters"]["verdicts"]["dropped"] == {}


KILLED = """
import sys
from pathlib import Path
from sink.client import History
from sink.history.export import export
from sink.history.pairs import HOUR
with History.on_file(Path(sys.argv[1])) as history:
    export(history, Path(sys.argv[2]), said=lambda line: print(line, flush=True), piece=50)
"""


def test_killed_exports(database: Path, tmp_path: Path) -> None:
    """kill -9 at several moments: what was there before stays readable, and the next export completes it."""
    with History.on_file(database) as history:
        everything = history.sql("FROM verdicts ORDER BY position")
        middle = history.sql("SELECT epoch_ns(max(time)) AS t FROM verdicts")["t"][0].as_py() // HOUR
        export(history, tmp_path / "out", until=middle * HOUR)
    with History.on_export(tmp_path / "out") as exported:
        before = exported.sql("FROM verdicts ORDER BY position")
    for wait in (0.0, 0.02, 0.05, 0.1, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(database), str(tmp_path / "out")],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout and child.stdout.readline().startswith(b"verdicts: hour ")
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with History.on_export(tmp_path / "out") as exported:
            found = exported.sql("FROM verdicts ORDER BY position")
        assert found.equals(before) or found.equals(everything)
        if found.equals(everything):
            shutil.rmtree(tmp_path / "out")
            with History.on_file(database) as history:
                export(history, tmp_path / "out", until=middle * HOUR)
    with History.on_file(database) as history:
        export(history, tmp_path / "out")
    with History.on_export(tmp_path / "out") as exported:
        assert exported.sql("FROM verdicts ORDER BY position").equals(everything)


def told(status: dict[str, Any]) -> list[str]:
    """Notices, but that the node is silent, as it soon is: nobody plays it."""
    return [notice for notice in status["notices"] if " is silent: " not in notice]


def test_a_sink_with_an_archive(tmp_path: Path, nats_server: NatsServer) -> None:
    """What is older than its age goes into the archive, then out of the store; a file in the way keeps it there."""
    rows = batches.traffic(3_000, seconds=60.0).rows
    asyncio.run(publish(nats_server.url, 0, rows, clock=batches.CLOCK))
    archive = tmp_path / "archive"
    archive.write_text("in the way")
    given = settings(
        tmp_path, nats_server.url, keep_age=86_400.0, archive=archive, retention_interval=1.0, rollup_interval=0.2
    )
    with SinkProcess(given) as sink:
        wait_for(lambda: sink.value("SELECT count(*) FROM verdicts") == 3_000, "all are stored")
        status = wait_for(
            lambda: (found := sink.ask(lambda history: history.status()))["archive"]["failed"] > 1 and found, "failed"
        )
        assert told(status) == [
            f"archive {archive}: {archive} is not a directory; nothing is deleted until it can be written"
        ]
        assert sink.value("SELECT count(*) FROM verdicts") == 3_000
        archive.unlink()
        wait_for(lambda: sink.value("SELECT count(*) FROM verdicts") == 0, "all are deleted")
        status = sink.ask(lambda history: history.status())
        assert told(status) == [] and status["archive"]["rows"] > 3_000
    with History.on_export(archive) as exported:
        assert exported.sql("SELECT count(*) AS n FROM verdicts")["n"][0].as_py() == 3_000
        assert sorted(exported.sql("SELECT position FROM verdicts")["position"].to_pylist()) == [
            i * STRIDE for i in range(3_000)
        ]
