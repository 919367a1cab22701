"""docs/sql.md: its views are the store's, and each of its queries answers on a store filled as a real one is."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import envelope
from schemas.codes import Outcome
from schemas.messages import FlowSums, PolicyRecord
from schemas.verdict import STRIDE
from sink import api
from sink.client import History
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.support import batches
from tests.support.docs import DOCS, ROOT, blocks, marked
from tests.support.rollups import keep
from tests.support.until import PATIENCE
from ztlens import show

DOCUMENT = DOCS / "sql.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
QUERIES = marked(DOCUMENT, "query")
EVENTS = 3_000
SECOND = 1_000_000_000


def filled(store: Store, node: str, ring: str, seed: int) -> None:
    """An hour's end of one node: traffic, two policies, a refused one, loss records each second, a gap, an end."""
    now = time.time_ns()
    rows = batches.traffic(EVENTS, seed=seed).rows
    rows["outcome"][rows["decision"] == 2][::2] = Outcome.DROPPED
    clock = now - int(rows["time"].max()) - 60 * SECOND
    rows["src"][:9] = b"\0" * 12 + bytes([10, 0, 1, 10])
    extra = batches.untracked(time=int(rows["time"].max()))
    parts = [(rows[:2000], 0), (rows[2000:], 2010), (extra, 2010 + len(rows) - 2000)]  # ten events are missing
    end = (2010 + len(rows) - 2000 + 1) * STRIDE
    messages = [
        prepare(envelope.decode(envelope.encode(part, node=node, ring=ring, start=at * STRIDE, clock=clock, rev=1)))
        for part, at in parts
    ]
    start = now - 600 * SECOND

    def changed(kind: str, after: int, **fields: object) -> PolicyRecord:
        return batches.policy_record(kind, node=node, ring=ring, time=start + after * SECOND, **fields)  # type: ignore[arg-type]

    flows = FlowSums(live=3, packets=40, bytes=4000, due=1)
    losses = [
        msgspec.structs.replace(
            batches.loss_record(at * 100, node=node, ring=ring, time=start + at * SECOND, packets=at * 50, live=flows,
                                lost=1, held_back=2),
            collector={"received": at, "sent": at, "live_capped": at},
        )
        for at in range(5)
    ]  # fmt: skip
    losses.append(batches.loss_record(end // STRIDE, node=node, ring=ring, time=now, packets=9000, final=True))
    records = [
        changed("start", 0, revision=0, hash="", yaml="", rules=[], identities=[]), changed("revision", 1),
        changed("mode", 2, mode="enforce", from_mode="monitor"), changed("refused", 3, error="policy.yaml:1:1: …"),
        changed("closed", 500, end=end),
    ]  # fmt: skip
    store.append(Commit(batches=messages, records=[*records, *losses]))
    of_ring = store.state.rings[node, ring]
    store.declare_gaps([(of_ring, 2000 * STRIDE, 2010 * STRIDE, "not in the stream when the ring was closed")])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory whose store holds two nodes, and an old verdict that retention has deleted."""
    home = tmp_path_factory.mktemp("state")
    settings = SinkSettings(database=home / "ztlens.duckdb", nats_url="", run_dir=home / "run")
    store = Store.open(settings)
    for seed, node in enumerate(("n1", "n2"), start=1):
        filled(store, node, f"r{seed}", seed)
    old = prepare(batches.batch(batches.verdict(), node="n3", ring="r3"))
    store.append(Commit(batches=[old]))
    assert keep(store, keep_age=time.time() - batches.CLOCK / 1e9 - 7200) == 1
    store.close()
    return home


@pytest.fixture(scope="module")
def history(directory: Path) -> Iterator[History]:
    with History.on_file(directory / "ztlens.duckdb") as found:
        yield found


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_answers(name: str, history: History) -> None:
    assert history.sql(QUERIES[name].text).num_rows > 0


def test_what_some_answer(history: History) -> None:
    """Queries whose answer is known from what was put in."""
    flows = history.sql("SELECT sum(bytes) AS bytes FROM flows").column("bytes")[0].as_py()
    minutes = history.sql(QUERIES["bytes-a-minute"].text).column("bytes").to_pylist()
    assert sum(minutes) == flows
    assert history.sql(QUERIES["gaps"].text).column("events").to_pylist() == [10, 10]
    assert history.sql(QUERIES["idle-rules"].text).column("name").to_pylist() == ["rest", "rest"]
    kinds = history.sql(QUERIES["who-changed"].text).column("kind").to_pylist()
    assert sorted(kinds) == sorted(["start", "revision", "mode", "refused", "closed"] * 2)
    losses = history.sql(QUERIES["losses"].text).to_pylist()
    assert {(row["node"], row["lost"], row["held_back"], row["over_the_cap"]) for row in losses} == {
        ("n1", 1, 2, 4), ("n2", 1, 2, 4),
    }  # fmt: skip
    deleted = list(show.records(history.sql(QUERIES["deleted"].text)))
    assert [(row["cause"], row["node"], row["rows"]) for row in deleted] == [("age", "n3", 1)]
    rates = history.sql(QUERIES["packets-a-second"].text).column("packets_a_second").to_pylist()
    assert rates.count(50.0) == 8
    hosts = history.sql(QUERIES["one-host"].text).select(["src", "dst"]).to_pylist()
    assert all("10.0.1.10" in (row["src"], row["dst"]) for row in hosts)


def documented_views() -> dict[str, list[tuple[str, str]]]:
    """View → (column, type) in the document's order."""
    out = {}
    for name, body in re.findall(r"^### (\w+)\n(.*?)(?=^#)", TEXT, re.MULTILINE | re.DOTALL):
        columns = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", body, re.MULTILINE)
        if columns:
            out[name] = columns
    return out


def columns(history: History, view: str) -> list[tuple[str, str]]:
    found = history.sql(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = $view AND schema_name = 'main'"
        " ORDER BY column_index",
        {"view": view},
    )
    return [(row["column_name"], row["data_type"]) for row in found.to_pylist()]


def test_views_are_all_documented_with_their_columns(history: History) -> None:
    found = history.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'")
    views = set(found.column("view_name").to_pylist())
    documented = documented_views()
    assert columns(history, "violations") == columns(history, "flows")  # "The columns of `flows`"
    assert set(documented) | {"violations"} == views
    for view, expected in documented.items():
        assert columns(history, view) == expected, view


def test_every_block_of_sql_is_run() -> None:
    assert all(block.key == "query" for block in blocks(DOCUMENT) if block.language == "sql")
    assert len(QUERIES) >= 20


def count(history: History, what: str) -> int:
    """Rows of a view."""
    return int(history.sql(f"SELECT count(*) AS n FROM {what}").column("n")[0].as_py())


def environment(directory: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ZTLENS_")}
    return clean | {"PATH": path, "ZTLENS_STATE": str(directory), "ZTLENS_RUN_DIR": str(directory / "run")}


def test_outputs_for_programs(directory: Path, history: History, tmp_path: Path) -> None:
    script = marked(DOCUMENT, "shell")["outputs"].text.replace("python3", sys.executable)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment(directory), capture_output=True,
        text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    counted = history.sql(
        "SELECT (SELECT count(*) FROM violations) AS v, (SELECT count(*) FROM flows) AS f"
    ).to_pylist()
    assert done.stdout == f"{counted[0]['v']}\n"
    assert pq.read_table(tmp_path / "flows.parquet").num_rows == counted[0]["f"]
    rules = json.loads((tmp_path / "rules.json").read_text())
    assert sum(row["flows"] for row in rules) == counted[0]["v"]


def test_exported_history(directory: Path, history: History, tmp_path: Path) -> None:
    scripts = marked(DOCUMENT, "shell")
    script = (scripts["export"].text + scripts["pandas"].text).replace("python3", sys.executable)
    done = subprocess.run(
        ["bash", "-uo", "pipefail", "-c", script], cwd=tmp_path, env=environment(directory), capture_output=True,
        text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"history: {count(history, 'verdicts'):,} verdicts in ")
    assert [json.loads(line)["time"] for line in lines if line.startswith("{")] == [
        row["time"] for row in show.records(history.recent(limit=5))
    ]
    assert lines[-1] == str(count(history, "verdicts"))


def test_frames(directory: Path, history: History, tmp_path: Path) -> None:
    """The one-liners of pandas and polars, on the Parquet file of the block before."""
    script = "ztlens sql -o parquet 'SELECT * FROM flows' > flows.parquet\n" + marked(DOCUMENT, "shell")["frames"].text
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("python3", sys.executable)], cwd=tmp_path,
        env=environment(directory), capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    rules = history.sql("SELECT rule, sum(bytes)::UBIGINT AS bytes FROM flows GROUP BY rule").to_pylist()
    for row in rules:
        assert re.search(rf"^{row['rule']} +{row['bytes']}$", done.stdout, re.MULTILINE), row
        assert re.search(rf"{row['rule']} +┆ {row['bytes']}\b", done.stdout), row
    packets = history.sql("SELECT sum(packets)::UBIGINT AS n FROM flows")["n"][0].as_py()
    assert done.stdout.endswith(f"{packets}\n")


def test_history_from_python(directory: Path, tmp_path: Path, history: History) -> None:
    text = marked(DOCUMENT, "python")["history"].text.replace("/var/lib/ztlens", str(directory))
    text = text.replace("/run/ztlens/default", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    count = history.sql("SELECT count(*) AS n FROM flows WHERE decision = 'deny'").column("n")[0].as_py()
    assert done.stdout == f"{count} ['src', 'dst', 'packets']\n"


async def test_http(directory: Path, tmp_path: Path) -> None:
    """The question that curl is shown to send, to the API itself."""
    block = marked(DOCUMENT, "http")["curl"].text
    body = re.search(r"--data '(.*)'", block)
    url = re.search(r"http://\S+", block)
    assert body and url
    settings = SinkSettings(database=tmp_path / "copy.duckdb", nats_url="", run_dir=tmp_path)
    settings.database.write_bytes((directory / "ztlens.duckdb").read_bytes())
    store = Store.open(settings)
    app = api.Api(store, settings, lambda: {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app.app)) as client:
        answer = await client.post(url[0], content=body[1])
    app.close()
    store.close()
    said = re.fullmatch(r'"?verdicts"?\n(\d+)\n', answer.text)
    assert said and 0 < int(said[1]) < 2 * EVENTS, answer.text


def test_arrow_types_are_as_documented(history: History) -> None:
    row = history.sql("SELECT src_addr FROM flows WHERE family = 4 LIMIT 1")
    assert row.schema.field("src_addr").type == pa.string()
    assert row.column("src_addr")[0].as_py().isdigit()
