"""`ztlens replay` with a real nats-server and a real sink: what a subscriber gets is, row by row, what SQL says."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import nats
import numpy as np
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from schemas import envelope, messages, streams, subjects
from schemas.messages import ReplayRecord
from schemas.present import WORDS, address_text, proto_text
from schemas.verdict import DTYPE, STRIDE
from sink.history.export import export
from tests.support import batches
from tests.support.batches import START
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings, wait_for
from tests.support.until import PATIENCE, until
from ztlens.parts import ztlens_command

ROWS = 1500
"""Of each of two rings."""
TRAFFIC = batches.traffic(ROWS, seconds=1.0).rows
ROW = (
    "epoch_ns(time) AS time, node, ring, position, event, decision, outcome, reason, rule, revision, src, sport, dst,"
    " dport, proto, src_identity, dst_identity, direction, packets_original, bytes_original, packets_reply,"
    " bytes_reply, tcp_flags_original, tcp_flags_reply, ifindex, flow_id"
)
IN_ORDER = "ORDER BY time, node, ring, position"
MARKER = re.compile(r"^ztlens\.replay\.v1\.([^.]+)\.")


@dataclass
class House:
    """A NATS server, a sink, and a client that hears everything of ours."""

    server: NatsServer
    sink: SinkProcess
    client: Client
    directory: Path
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    async def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """stdout and stderr of a command of this installation; what was published meanwhile is in `heard`."""
        self.heard.clear()
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == status, err.decode()
        await self.client.flush()
        await asyncio.sleep(0)
        return out.decode(), err.decode()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """The command, running."""
        given = self.sink.settings
        return await asyncio.create_subprocess_exec(
            *ztlens_command(arguments[0], "--nats", self.server.url, "--state", str(given.database.parent),
                            "--database", str(given.database), "--run-dir", str(given.run_dir), *arguments[1:]),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    def sql(self, sql: str) -> list[dict[str, Any]]:
        """What the sink answers."""
        return self.sink.ask(lambda history: history.sql(sql).to_pylist())  # type: ignore[no-any-return]

    async def ended(self) -> ReplayRecord:
        """The replay's last word, once it is heard."""

        def done() -> ReplayRecord | None:
            told = [data for subject, data in self.heard if subjects.kind(subject) == "progress"]
            records = [messages.decode(data, ReplayRecord) for data in told]
            return next((record for record in records if record.done), None)

        return await until(done, "the end of the replay")  # type: ignore[no-any-return]

    def forget(self) -> None:
        """End the sink and delete its database."""
        self.sink.end()
        for file in self.directory.glob("history.duckdb*"):
            file.unlink()

    def of_kind(self, kind: str) -> list[tuple[str, bytes]]:
        """What was heard of one kind."""
        return [(subject, data) for subject, data in self.heard if subjects.kind(subject) == kind]


@asynccontextmanager
async def house(server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    """History of two nodes in stream and store: a range of the first came twice, as after a crash."""
    client = await nats.connect(server.url)
    for name in streams.STREAMS:
        await streams.ensure(client, name)
    publish = client.jetstream().publish
    for node, ring in (("gw.1", "r1"), ("n2", "r2")):
        record = batches.policy_record("start", node=node, ring=ring)
        await publish(subjects.policy(node), messages.encode(record))
    for i in range(0, ROWS, 500):
        for node, ring in (("gw.1", "r1"), ("n2", "r2")):
            part = TRAFFIC[i : i + 500]
            await publish(subjects.verdicts(node), batches.packed(part, i * STRIDE, node=node, ring=ring))
    again = batches.packed(TRAFFIC[100:700], 100 * STRIDE, node="gw.1", ring="r1")
    await publish(subjects.verdicts("gw.1"), again)
    with SinkProcess(settings(tmp_path, server.url)) as sink:
        wait_for(lambda: sink.value("SELECT count(*) FROM verdicts") == 2 * ROWS, "all is stored")
        one = House(server, sink, client, tmp_path)

        async def hear(message: Msg) -> None:
            one.heard.append((message.subject, message.data))

        await client.subscribe("ztlens.>", cb=hear)
        await client.flush()
        yield one
    await client.close()


def received(given: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Rows of batches in words, as the view has them; rule and identities stay numbers. Sorted."""
    out = []
    for _, data in given:
        batch = envelope.decode(data)
        columns = {name: column.tolist() for name, column in batch.columns().items()}
        for i, position in enumerate(batch.positions().tolist()):
            row = {name: values[i] for name, values in columns.items()} | {"position": position}
            row |= {name: words[row[name]] for name, words in WORDS.items()}
            row["src"], row["dst"] = (address_text(row[name], row["family"]) for name in ("src", "dst"))
            row |= {"proto": proto_text(row["proto"]), "node": batch.node, "ring": batch.ring}
            out.append(row)
    return sorted(out, key=lambda row: (row["time"], row["node"], row["ring"], row["position"]))


NUMBERS = ("rule", "src_identity", "dst_identity")


async def test_a_subscriber_gets_what_sql_says(nats_server: NatsServer, tmp_path: Path) -> None:
    """Both forms, row by row; by other subjects and with a mark in each message; nothing of it is stored."""
    async with house(nats_server, tmp_path) as one:
        expected = one.sql(f"SELECT {ROW} FROM verdicts {IN_ORDER}")
        raw = one.sql("SELECT rule, src_identity, dst_identity FROM store.verdicts AS v JOIN store.rings AS r"
                      " ON r.id = v.ring ORDER BY time, node, r.ring, position")  # fmt: skip
        before = [await one.client.jetstream().stream_info(name) for name in streams.STREAMS]
        _, err = await one.run("replay", "--session", "all.of it", "--speed", "max", "--forms", "live,batches")
        end = await one.ended()

        got = received(one.of_kind("verdicts"))
        assert [{k: row[k] for k in e if k not in NUMBERS} for row, e in zip(got, expected, strict=True)] == [
            {k: v for k, v in row.items() if k not in NUMBERS} for row in expected
        ]
        assert [{k: row[k] for k in NUMBERS} for row in got] == raw
        live = [msgspec.msgpack.decode(data) for _, data in one.of_kind("live")]
        assert [{k: row["time_ns" if k == "time" else k] for k in expected[0]} for row in live] == expected
        assert {row["replay"] for row in live} == {"all.of it"}

        # A hole in a ring's ranges would be a message that did not come.
        for ring in ("r1", "r2"):
            ranges = [
                (b.start, b.end) for _, data in one.of_kind("verdicts") if (b := envelope.decode(data)).ring == ring
            ]
            assert [0, *(past for _, past in ranges)] == [*(first for first, _ in ranges), ROWS * STRIDE]

        policies = [msgspec.msgpack.decode(data) for _, data in one.of_kind("policy")]
        assert {(p["node"], p["ring"], p["revision"]) for p in policies} == {("gw.1", "r1", 1), ("n2", "r2", 1)}
        assert policies[0]["rules"][0]["name"] == "web-to-db"
        kinds = [kind for subject, _ in one.heard if (kind := subjects.kind(subject)) != "progress"]
        assert kinds[:2] == ["policy", "policy"]

        # Told apart: by subject and by mark, all of it; and nothing was stored or kept.
        assert {MARKER.match(subject)[1] for subject, _ in one.heard} == {"all=2eof=20it"}  # type: ignore[index]
        assert {msgspec.msgpack.decode(data)["replay"] for _, data in one.heard} == {"all.of it"}
        after = [await one.client.jetstream().stream_info(name) for name in streams.STREAMS]
        assert [info.state.last_seq for info in after] == [info.state.last_seq for info in before]
        assert one.sql("SELECT count(*) AS n FROM verdicts") == [{"n": 2 * ROWS}]

        assert (end.verdicts, end.live_sent, end.live_capped, end.late, end.speed) == (2 * ROWS, 2 * ROWS, 0, 0, 0.0)
        assert (end.first, end.last) == (expected[0]["time"], expected[-1]["time"])
        assert err.splitlines()[0] == "session all.of it; to see it: ztlens observe --replay 'all.of it'"
        assert re.search(
            rf"^replayed {2 * ROWS:,} verdicts of \S+Z to \S+Z in [\d.]+ s \([\d,]+/s\), 0 late;"
            rf" live subjects: {2 * ROWS:,} sent, 0 held back$", err, re.MULTILINE,
        )  # fmt: skip


def test_no_live_subject_and_no_stream_matches_a_replay() -> None:
    """A replayed subject begins as nothing else does; and what a stream keeps begins otherwise."""
    live = subjects.live("n1", "deny", "a", "b", "tcp", 443)
    ours = [subjects.verdicts("n1"), subjects.policy("n1"), subjects.loss("n1"), live, subjects.dead("x")]
    for subject in ours:
        replayed = subjects.replay("s", subject)
        assert replayed.startswith("ztlens.replay.v1.s.") and subjects.kind(replayed) == subjects.kind(subject)
    kept = [subject for stream in streams.STREAMS.values() for subject in stream["subjects"]]
    for subject in [*kept, subjects.ALL_LIVE]:
        assert subject.split(".")[1] not in ("replay", "*", ">")


async def test_a_replayed_batch_among_live_ones_is_not_stored(nats_server: NatsServer, tmp_path: Path) -> None:
    """Whoever republishes a replay onto the live subject by mistake makes no history of it."""
    async with house(nats_server, tmp_path) as one:
        rows = batches.verdict(time=1)
        columns = {name: rows[name] for name in DTYPE.names or ()} | {"position": np.array([7], "u8")}
        data = envelope.encode_replayed(columns, node="n9", ring="r9", start=0, replay="s", due=0)
        await one.client.jetstream().publish(subjects.verdicts("n9"), data)
        await until(lambda: one.of_kind("dead"), "the dead letter")
        assert one.of_kind("dead")[0][1] == data
        assert one.sql("SELECT count(*) AS n FROM verdicts WHERE node = 'n9'") == [{"n": 0}]


async def test_observe_shows_it_and_ends_with_it(nats_server: NatsServer, tmp_path: Path) -> None:
    async with house(nats_server, tmp_path) as one:
        wanted = ["--decision", "deny", "--from-label", "app=frontend", "-o", "json"]
        expected, _ = await one.run("observe", "--since", "2026-01-01", *wanted)
        assert len(expected.splitlines()) > 100
        printed, err = await one.run("replay", "--speed", "max", *wanted)
        assert printed == expected
        assert one.heard == []  # -o publishes nothing
        assert "held back" not in err

        for _ in range(10):
            observing = await one.start("observe", "--replay", "s1", *wanted)
            lines = asyncio.ensure_future(observing.communicate())
            for _ in range(100):  # until it has subscribed: a replay it did not hear cannot end it
                await one.run("replay", "--session", "s1", "--speed", "max")
                assert not one.of_kind("live")
                if lines.done():
                    break
            shown = by_node((await lines)[0].decode())
            if shown == by_node(expected):
                break
            assert set(chain(*shown.values())) <= set(expected.splitlines())  # it joined in the middle of one
        assert shown == by_node(expected)


def by_node(lines: str) -> dict[str, list[str]]:
    """In the order of each: `observe` shows message by message, and those of two nodes overlap in time."""
    found: dict[str, list[str]] = {}
    for line in lines.splitlines():
        found.setdefault(json.loads(line)["node"], []).append(line)
    return found


async def test_the_schedule_at_ten_times(nats_server: NatsServer, tmp_path: Path) -> None:
    """By what each message says of when it was due: the clock of a busy machine has no say."""
    async with house(nats_server, tmp_path) as one:
        await one.run("replay", "--speed", "10x", "--node", "n2", "--where", "flow_id % 10 = 1")
        first = (await one.ended()).first
        given = [envelope.decode(data) for _, data in one.of_kind("verdicts")]
        assert len(given) > 20
        stamps = [int(batch.columns()["time"][0]) for batch in given]
        assert [batch.due for batch in given] == [round((stamp - first) / 10) for stamp in stamps]
        # What goes out together lies within 4 ms of the replay: 40 ms of the record.
        assert all(int(b.columns()["time"][-1]) - int(b.columns()["time"][0]) < 40_000_000 for b in given)
        assert {batch.node for batch in given} == {"n2"}


async def test_from_an_export(nats_server: NatsServer, tmp_path: Path) -> None:
    async with house(nats_server, tmp_path) as one:
        expected, _ = await one.run("observe", "--since", "2026-01-01", "-o", "json", "--port", "443")
        target = tmp_path / "export"
        one.sink.ask(lambda history: export(history, target))
        one.forget()
        printed, _ = await one.run("replay", "--from", str(target), "--speed", "max", "-o", "json", "--port", "443")
        assert printed == expected
        await one.run("replay", "--from", str(target), "--speed", "max", "--session", "x")
        assert (await one.ended()).verdicts == 2 * ROWS
        one.sink.start()


@pytest.mark.parametrize("target", [100, 100_000])
async def test_from_the_stream_when_the_store_is_gone(
    nats_server: NatsServer, tmp_path: Path, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same verdicts with the same names, each once, though a range is there twice."""
    from ztlens.replay import stream  # noqa: PLC0415

    async with house(nats_server, tmp_path) as one:
        wanted = ["--decision", "deny", "-o", "json"]
        expected, _ = await one.run("observe", "--since", "2026-01-01", *wanted)
        middle = json.loads(expected.splitlines()[50])["time"]
        late, _ = await one.run("observe", "--since", middle, *wanted)
        one.forget()
        printed, _ = await one.run("replay", "--from-stream", "--speed", "max", *wanted)
        assert printed == expected
        printed, _ = await one.run("replay", "--from-stream", "--speed", "max", "--since", middle, *wanted)
        assert printed == late
        await one.run("replay", "--from-stream", "--speed", "max")
        assert (await one.ended()).verdicts == 2 * ROWS
        assert len(received(one.of_kind("verdicts"))) == 2 * ROWS
        assert not one.sink.settings.database.exists()
        monkeypatch.setattr(stream, "TARGET", target)
        monkeypatch.setattr(stream, "LAG", 10_000_000)
        positions: dict[str, list[int]] = {}
        windows = stream.StreamWindows(one.client, "TRUE", None, None).windows()
        async for window in windows:
            for ring, position in zip(window.ring.tolist(), window.columns["position"].tolist(), strict=True):
                positions.setdefault(window.rings[ring][1], []).append(position)
        assert positions == {ring: [i * STRIDE for i in range(ROWS)] for ring in ("r1", "r2")}
        one.sink.start()


async def test_ctrl_c_ends_it_with_the_sum(nats_server: NatsServer, tmp_path: Path) -> None:
    """In the middle of a pause of hundred hours."""
    async with house(nats_server, tmp_path) as one:
        end = batches.verdict(time=START + 360_000_000_000_000)
        await one.client.jetstream().publish(
            subjects.verdicts("n2"), batches.packed(end, ROWS * STRIDE, node="n2", ring="r2")
        )
        await until(lambda: one.sql("SELECT count(*) AS n FROM verdicts") == [{"n": 2 * ROWS + 1}], "one more")
        one.heard.clear()
        process = await one.start("replay", "--speed", "100x", "--session", "long")
        await until(lambda: len(received(one.of_kind("verdicts"))) == 2 * ROWS, "all before the pause")
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 130
        assert err.decode().splitlines()[-1].startswith(f"replayed {2 * ROWS:,} verdicts of ")
        assert (await one.ended()).verdicts == 2 * ROWS
        await one.run("replay", "--speed", "100x", "--max-pause", "10ms")
        assert (await one.ended()).verdicts == 2 * ROWS + 1


async def test_bad_input_is_a_line_and_a_hint(nats_server: NatsServer, tmp_path: Path) -> None:
    async with house(nats_server, tmp_path) as one:
        for arguments, status, error in (
            (["--speed", "fast"], 2, "error: 'fast' is not a speed"),
            (["--max-pause", "long"], 2, "error: 'long' is not a duration"),
            (["--forms", "maps"], 2, "error: 'maps' are not forms of a replay"),
            (["-o", "table"], 2, "error: 'table' is not an output of `replay`"),
            (["-o", "json", "--session", "s"], 2, "error: -o prints and publishes nothing"),
            (["--from", "/nowhere", "--from-stream"], 2, "error: --from and --from-stream exclude each other"),
            (["--from", "/nowhere"], 2, "error: /nowhere"),
            (["--where", "nonsense > 1"], 2, 'error: Binder Error: Referenced column "nonsense" not found'),
            (["--since", "tomorrow"], 2, "error: 'tomorrow' is not a time"),
            (["--since", "1h", "--until", "2h"], 2, "error: --until is not later than --since"),
            (["--nats", "nats://127.0.0.1:1"], 3, "error: no NATS server answers at nats://127.0.0.1:1"),
        ):
            out, err = await one.run("replay", *arguments, status=status)
            told = err.splitlines()
            assert out == "" and len(told) == 2, err
            assert told[0].startswith(error) and told[1].startswith("hint: "), err
        out, err = await one.run("replay", "--port", "1", "-o", "json")
        assert (out, err) == ("", "replayed nothing: no recorded verdict is what was asked for\n")
        out, err = await one.run("observe", "--replay", "s", "-f", status=2)
        assert err.startswith("error: --replay excludes -f and --last")
