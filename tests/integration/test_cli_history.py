"""`sql`, `observe`, `violations`, `flows` and `ledger` by the command line, on a file and through a running sink."""

import asyncio
import csv
import io
import ipaddress
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import nats
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import messages, streams, subjects, times
from schemas.codes import Decision, EventKind, Outcome, Reason, RuleId
from schemas.verdict import STRIDE
from sink.service import run as run_sink
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.support import batches
from tests.support.sinks import configured, recorded
from tests.support.until import until
from ztlens.main import main

FLOWS = 400
"""Of the synthetic traffic; three events each."""


def address(text: str) -> bytes:
    packed = ipaddress.ip_address(text).packed
    return bytes(16 - len(packed)) + packed


SPECIAL = np.concatenate([
    batches.verdict(flow_id=900_001, src=address("10.0.1.10"), dst=address("10.0.2.5"), dport=22, dst_identity=17,
                    decision=Decision.DENY, outcome=Outcome.DROPPED, rule=RuleId.FIRST + 1, time=batches.START + 1),
    batches.verdict(flow_id=900_002, src=address("fd00::9"), dst=address("fe80::1"), family=6, dport=8443, proto=17,
                    src_identity=0, decision=Decision.DENY, reason=Reason.DEFAULT, rule=RuleId.DEFAULT,
                    event=EventKind.CHANGE, time=batches.START + 2),
    batches.untracked(family=0, time=batches.START + 3),
])  # fmt: skip


OURS = "flow_id BETWEEN 900000 AND 900010"


@pytest.fixture(scope="module")
def traffic() -> batches.Traffic:
    return batches.traffic(FLOWS * 3)


@pytest.fixture
def database(tmp_path: Path, traffic: batches.Traffic, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory with history and no sink."""
    rows = np.concatenate([traffic.rows, SPECIAL])
    untracked = int((rows["flow_id"] == 0).sum())
    special = int((SPECIAL["flow_id"] != 0).sum())
    return recorded(tmp_path, monkeypatch, Commit(
        batches=[prepare(batches.batch(rows))],
        records=[
            batches.policy_record("start"),
            batches.loss_record(len(rows), packets=traffic.packets + special, untracked=untracked, final=True),
            batches.policy_record("closed", end=len(rows) * STRIDE, rules=[], identities=[], yaml="", hash=""),
        ],
    ))  # fmt: skip


Run = Callable[..., str]


@pytest.fixture
def run(database: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str, status: int = 0) -> str:
        capfd.readouterr()
        assert main(list(arguments)) == status, capfd.readouterr().err
        return capfd.readouterr().out

    return command


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_sql_in_every_format(run: Run, tmp_path: Path) -> None:
    query = "SELECT decision, count(*) AS n FROM verdicts GROUP BY decision ORDER BY decision"
    found = json.loads(run("sql", query, "-o", "json"))
    assert [row["decision"] for row in found] == ["allow", "deny"]
    assert sum(row["n"] for row in found) == FLOWS * 3 + 3
    table = list(csv.DictReader(io.StringIO(run("sql", query, "-o", "csv"))))
    assert [(row["decision"], int(row["n"])) for row in table] == [(row["decision"], row["n"]) for row in found]
    plain = run("sql", query).splitlines()
    assert plain[0].split() == ["decision", "n"] and len(plain) == 3
    file = tmp_path / "q.sql"
    file.write_text(query + ";\n")
    assert json.loads(run("sql", "--file", str(file), "-o", "json")) == found


def test_sql_of_equal_names(run: Run) -> None:
    query = "SELECT a.n, b.n FROM (SELECT 1 AS n) AS a, (SELECT 2 AS n) AS b"
    assert json.loads(run("sql", query, "-o", "json")) == [{"n": 1, "n_1": 2}]
    assert run("sql", query, "-o", "csv") == "n,n_1\n1,2\n"
    assert [line.split() for line in run("sql", query).splitlines()] == [["n", "n_1"], ["1", "2"]]


@pytest.mark.parametrize("output", ["arrow", "parquet"])
def test_sql_for_programs(database: Path, output: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["sql", "SELECT time, src, dport FROM verdicts ORDER BY position", "-o", output]) == 0
    data = io.BytesIO(capfdbinary.readouterr().out)
    table = pa.ipc.open_stream(data).read_all() if output == "arrow" else pq.read_table(data)
    assert (table.num_rows, table.column_names) == (FLOWS * 3 + 3, ["time", "src", "dport"])


@pytest.mark.parametrize(
    "query",
    ["DELETE FROM store.verdicts", "SELECT nonsense FROM verdicts", "SELECT 1; SELECT 2", "COPY verdicts TO '/tmp/x'",
     "SELEC 1", "WITH d AS (DELETE FROM store.verdicts RETURNING *) SELECT * FROM d",
     "SELECT * FROM read_csv('/etc/passwd')"],
)  # fmt: skip
def test_sql_that_is_refused(database: Path, query: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", query]) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 2
    assert err.startswith("error: ") and "\nhint: " in err


def test_observe_shows_the_newest_oldest_first(run: Run) -> None:
    found = lines(run("observe", "-o", "json"))
    assert len(found) == 20
    times = [row["time"] for row in found]
    assert times == sorted(times)
    assert lines(run("observe", "-o", "json", "--last", "3")) == found[-3:]
    assert run("observe", "--last", "0") == ""
    assert len(lines(run("observe", "-o", "json", "--since", "2026-01-01"))) == FLOWS * 3 + 3
    # A moment within the traffic: what is before it and what is not makes all of it.
    middle = found[0]["time"]
    early = lines(run("observe", "-o", "json", "--until", middle))
    late = lines(run("observe", "-o", "json", "--since", middle))
    assert len(early) + len(late) == FLOWS * 3 + 3 and len(late) < 30


def test_a_verdict_as_json(run: Run) -> None:
    (row,) = lines(run("observe", "-o", "json", "--port", "22", "--from-ip", "10.0.1.0/24"))
    expected = datetime.fromtimestamp((batches.START + batches.CLOCK) // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    assert row["time"].startswith(expected) and row["time"].endswith("1Z")
    del row["time"]
    assert row == {
        "node": "n1", "event": "new", "decision": "deny", "outcome": "dropped", "reason": "rule", "rule": "rest",
        "revision": 1, "src": "10.0.1.10", "sport": 40000, "dst": "10.0.2.5", "dport": 22, "proto": "tcp",
        "family": 4, "src_identity": "frontend", "dst_identity": "database", "direction": "original", "packets": 1,
        "bytes": 74, "packets_original": 1, "bytes_original": 74, "packets_reply": 0, "bytes_reply": 0,
        "tcp_flags_original": 0, "tcp_flags_reply": 0, "egress": False, "midstream": False, "report_only": False,
        "untracked": False, "aggregated": False, "reversed": False, "ifindex": 3, "flow_id": 900_001, "ring": "r1",
        "position": FLOWS * 3 * STRIDE,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--decision", "deny", "--outcome", "dropped"], [900_001]),
        (["--verdict", "deny", "--rule", "rest"], [900_001]),
        (["--event", "change"], [900_002]),
        (["--to-ip", "fe80::/10"], [900_002]),
        (["--ip", "fd00::9"], [900_002]),
        (["--port", "8000-9000/udp"], [900_002]),
        (["--port", "22/udp"], []),
        (["--reason", "malformed"], [0]),
        (["--reason", "malformed", "--event", "change"], []),
        (["--reason", "malformed,rule", "--decision", "deny"], [900_001, 0]),
        (["--where", f"{OURS} AND dport < 100"], [900_001]),
        (["--where", OURS, "--where", "dport > 100 -- high"], [900_002]),
        (["--from-identity", "world", "--protocol", "udp"], [900_002]),
        (["--from-label", "app=frontend", "--port", "22"], [900_001]),
        (["--from-label", "app=db", "--port", "22"], []),
        (["--to-label", "app", "--port", "22"], [900_001]),
        (["--from-label", "!app", "--port", "22"], []),
        (["--from-label", "!app=db", "--port", "22"], [900_001]),
        (["--from-label", "!app", "--protocol", "udp"], [900_002]),
        (["--node", "n2"], []),
        (["--direction", "original", "--port", "22"], [900_001]),
    ],
)
def test_filters(run: Run, arguments: list[str], kept: list[int]) -> None:
    for limit in (["--since", "2026-01-01"], ["--last", "100000"]):
        found = lines(run("observe", "-o", "json", *limit, *arguments))
        assert [row["flow_id"] for row in found] == kept


def test_people_see_what_was_and_what_would_be_dropped(run: Run) -> None:
    text = run("observe", "--where", f"{OURS} OR flow_id = 0")
    was, would, malformed = text.splitlines()
    assert "DENY  WAS dropped" in was and "10.0.1.10:40000 (frontend) → 10.0.2.5:22 (database) tcp rule=rest" in was
    assert "DENY  WOULD BE dropped" in would and "[fd00::9]:40000 (world) → [fe80::1]:8443 (database) udp" in would
    assert "malformed" in malformed and "untracked" in malformed
    table = run("observe", "-o", "table", "--where", OURS).splitlines()
    assert len(table) == 3
    assert run("observe", "-o", "dict", "--port", "22").count("\n") == 35


def test_flows_and_violations_add_up(run: Run, traffic: batches.Traffic) -> None:
    flows = json.loads(run("flows", "-o", "json"))
    assert (len(flows), sum(row["packets"] for row in flows)) == (FLOWS + 2, traffic.packets + 2)
    denied = json.loads(run("violations", "-o", "json"))
    assert len(denied) == sum(row["decision"] == "deny" for row in flows) + 1  # and the untracked one
    assert len(json.loads(run("violations", "-o", "json", "--last", "5"))) == 5
    for by in ("rule", "pair", "source", "port"):
        groups = json.loads(run("violations", "--by", by, "-o", "json"))
        assert sum(row["flows"] for row in groups) == len(denied)
        assert sum(row["packets"] for row in groups) == sum(row["packets"] for row in denied)
        assert [row["packets"] for row in groups] == sorted((row["packets"] for row in groups), reverse=True)
    assert json.loads(run("violations", "--since", "2030-01-01", "-o", "json")) == []
    rules = json.loads(run("violations", "--by", "rule", "-o", "json"))
    assert {row["rule"]: row["dropped_flows"] for row in rules} == {"default": 0, "rest": 1, "malformed": 0}


def test_the_ledger(run: Run, traffic: batches.Traffic) -> None:
    account = json.loads(run("ledger", "-o", "json"))
    assert account["balanced"] is True
    (ring,) = account["rings"]
    assert (ring["node"], ring["ring"], ring["final"]) == ("n1", "r1", True)
    packets = traffic.packets + 3
    for name, value in {"parsed": packets, "judged": packets, "flows": packets - 1, "untracked": 1}.items():
        assert ring["packets"][name] == value
    events = FLOWS * 3 + 3
    for name, value in {"due": events, "emitted": events, "pending": 0, "lost": 0, "held_back": 0, "published": events,
                        "stored": events, "gaps": []}.items():  # fmt: skip
        assert ring["events"][name] == value
    text = run("ledger").splitlines()
    assert text[-1] == "balanced" and len(text) == 3


def test_a_ledger_that_does_not_balance_is_a_no(run: Run, database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store.open(SinkSettings(database=database, nats_url="", run_dir=database.parent))
    store.append(
        Commit(records=[batches.policy_record("start", ring="r2"), batches.loss_record(5, ring="r2", final=True)])
    )
    store.close()
    assert main(["ledger", "-o", "json"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["balanced"] is False
    assert err.splitlines()[0] == "error: the ledger does not balance" and len(err.splitlines()) == 2


@pytest.mark.parametrize("output", ["json", "table"])
def test_a_ledger_of_nothing_is_missing(run: Run, output: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Asked for a time after all of it, there is nothing that could balance."""
    assert main(["ledger", "-o", output, "--since", "2030-01-01T00:00:00Z"]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    since = times.rfc3339(1893456000 * 10**9, local=True, digits=0)
    assert err.splitlines() == [
        f"error: no ring was heard of since {since}", "hint: name an earlier time, or none: the whole ledger"
    ]  # fmt: skip


def test_a_ledger_of_an_empty_store_is_missing(
    database: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty = tmp_path / "other"
    Store.open(SinkSettings(database=empty / "ztlens.duckdb", nats_url="", run_dir=empty)).close()
    assert main(["ledger", "--state", str(empty)]) == 3
    assert capfd.readouterr() == ("", "error: no ring was ever recorded\nhint: watch with `ztlens up`\n")


def test_a_database_of_a_newer_version_is_left_alone(
    run: Run, database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("INSERT INTO store.schema_version VALUES (999, NULL)")
    before = database.read_bytes()
    assert main(["sql", "SELECT 1"]) == 3
    assert "newer" in capfd.readouterr().err
    assert database.read_bytes() == before


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def given(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    yield given


def test_sql_from_a_pipe(run: Run, stdin: Callable[[str], None]) -> None:
    stdin("SELECT 1 AS one;\n")
    assert json.loads(run("sql", "-o", "json")) == [{"one": 1}]


async def test_a_running_sink_is_asked(
    nats_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same commands while a sink owns the file; a state directory that is named is the one that is read."""
    database = configured(tmp_path, monkeypatch)
    kept: dict[str, Any] = {"keep_age": 0.0, "keep_minutes": 0.0, "keep_hours": 0.0}  # for ever: they are of 2026
    settings = SinkSettings(database=database, nats_url=nats_server.url, run_dir=tmp_path / "run", **kept)
    sink = asyncio.ensure_future(run_sink(settings))
    client = await nats.connect(nats_server.url)
    try:
        for name in streams.STREAMS:
            await streams.ensure(client, name)
        js = client.jetstream()
        await js.publish(subjects.policy("n1"), messages.encode(batches.policy_record("start")))
        await js.publish(subjects.verdicts("n1"), batches.packed(SPECIAL))

        async def count() -> bool:
            assert not sink.done(), sink.exception()
            capfd.readouterr()
            status = await asyncio.to_thread(main, ["sql", "SELECT count(*) AS n FROM verdicts", "-o", "json"])
            out = capfd.readouterr().out
            return status == 0 and json.loads(out) == [{"n": 3}]

        await until(count, "three rows through the sink")
        assert await asyncio.to_thread(main, ["observe", "-o", "json", "--rule", "rest"]) == 0
        assert [row["flow_id"] for row in lines(capfd.readouterr().out)] == [900_001]
        assert await asyncio.to_thread(main, ["sql", "SELECT 1", "--state", str(tmp_path / "other")]) == 3
        assert "no database" in capfd.readouterr().err
    finally:
        await client.close()
        sink.cancel()
        await asyncio.gather(sink, return_exceptions=True)
