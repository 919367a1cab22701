"""`ztlens observe -f`: batches from a real nats-server, asked as history is asked, each verdict once."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import duckdb
import nats
import numpy as np
import pytest
from nats.aio.client import Client

from schemas import messages, streams, subjects
from schemas.codes import Decision, Outcome, RuleId
from schemas.filters import Filters, predicate
from schemas.verdict import STRIDE
from tests.support import batches
from tests.support.nats import NatsServer
from tests.support.until import PATIENCE, until
from ztlens import live
from ztlens.errors import Missing
from ztlens.parts import ztlens_command
from ztlens.verdicts import Row


def rows(n: int, first_flow: int = 1, **fields: Any) -> np.ndarray:
    return np.concatenate([batches.verdict(flow_id=first_flow + i, **fields) for i in range(n)])


DENIED = {"decision": Decision.DENY, "outcome": Outcome.DROPPED, "rule": RuleId.FIRST + 1}


async def connected(server: NatsServer) -> Client:
    client = await nats.connect(server.url)
    for name in streams.STREAMS:
        await streams.ensure(client, name)
    return client


async def test_names_filters_and_order(nats_server: NatsServer) -> None:
    client = await connected(nats_server)
    await client.jetstream().publish(subjects.policy("n1"), messages.encode(batches.policy_record("start")))
    seen: list[Row] = []
    ready = asyncio.Event()

    async def before() -> list[Row]:
        ready.set()
        return []

    asked = predicate(Filters(decision=("deny",), to_identity=("database",), from_label=("app=frontend",)))
    task = asyncio.ensure_future(live.follow(nats_server.url, asked, seen.extend, before))
    await asyncio.wait_for(ready.wait(), PATIENCE)
    # The subscription is there before anything recorded is asked for, so nothing published now can be missed.
    mixed = np.concatenate([rows(2), rows(2, 11, time=batches.START + 9, **DENIED), rows(1, 21, **DENIED)])
    await client.publish(subjects.verdicts("n1"), batches.packed(mixed))
    await client.publish(subjects.verdicts("n1"), b"not a batch")
    await client.publish(subjects.verdicts("n1"), batches.packed(mixed))  # a retry: the same range again
    await client.publish(subjects.verdicts("n1"), batches.packed(rows(1, 31, revision=2, **DENIED), 5 * STRIDE))
    second = batches.policy_record(revision=2, rules=[messages.RuleInfo(65, "renamed", "deny")])
    await client.publish(subjects.policy("n1"), messages.encode(second))
    await client.publish(subjects.verdicts("n1"), batches.packed(rows(1, 41, revision=2, **DENIED), 6 * STRIDE))
    await until(lambda: any(row["flow_id"] == 41 for row in seen), "the last verdict")
    assert [row["flow_id"] for row in seen if row["revision"] == 1] == [21, 11, 12]
    assert {row["rule"] for row in seen if row["revision"] == 1} == {"rest"}
    assert [row["rule"] for row in seen if row["flow_id"] == 41] == ["renamed"]
    assert {(row["src_identity"], row["node"]) for row in seen} == {("frontend", "n1")}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()


async def test_what_was_recorded_is_not_shown_again(nats_server: NatsServer) -> None:
    client = await connected(nats_server)
    seen: list[Row] = []

    async def before() -> list[Row]:
        # Published after the subscription and already recorded: it comes both ways.
        await client.publish(subjects.verdicts("n1"), batches.packed(rows(3)))
        await client.flush()
        return [{"ring": "r1", "position": i * STRIDE, "flow_id": i + 1} for i in range(2)]

    task = asyncio.ensure_future(live.follow(nats_server.url, "TRUE", seen.extend, before))
    await until(lambda: len(seen) >= 3, "all three")
    assert [row["flow_id"] for row in seen] == [1, 2, 3]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()


async def test_a_fresh_database_knows_the_names(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FRESH_AFTER", 3)
    follower = live.Follower("TRUE")
    assert follower.take([(subjects.policy("n1"), messages.encode(batches.policy_record()))]) == []
    seen = []
    for i in range(6):
        seen += follower.take([(subjects.verdicts("n1"), batches.packed(rows(2, 2 * i), 2 * i * STRIDE))])
    assert [row["flow_id"] for row in seen] == list(range(12))
    assert {(row["rule"], row["src_identity"]) for row in seen} == {("web-to-db", "frontend")}


async def test_nats_that_goes_away_comes_back(nats_server: NatsServer, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Row] = []
    task = asyncio.ensure_future(live.follow(nats_server.url, "TRUE", seen.extend))
    client = await connected(nats_server)

    async def published() -> bool:
        await client.publish(subjects.verdicts("n1"), batches.packed(rows(1, len(seen) + 1), len(seen) * STRIDE))
        await client.flush()
        return len(seen) >= 1

    await until(published, "a verdict")
    await client.close()
    nats_server.kill()
    await until(lambda: "NATS is away" in capfd.readouterr().err, "the news that NATS is away")
    nats_server.start()
    client = await connected(nats_server)
    before = len(seen)

    async def again() -> bool:
        await client.publish(subjects.verdicts("n1"), batches.packed(rows(1, 99), (before + 7) * STRIDE))
        await client.flush()
        return len(seen) > before

    await until(again, "a verdict after the outage")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()


async def test_bad_predicates_and_servers_are_told_at_once(nats_server: NatsServer) -> None:
    with pytest.raises(duckdb.Error, match="nonsense"):
        await live.follow(nats_server.url, "nonsense > 1", list)
    nats_server.kill()
    with pytest.raises(Missing, match="no NATS server answers"):
        await live.follow(nats_server.url, "TRUE", list)


async def test_by_the_command_line(nats_server: NatsServer, tmp_path: Path) -> None:
    client = await connected(nats_server)
    await client.jetstream().publish(subjects.policy("n1"), messages.encode(batches.policy_record("start")))
    process = await asyncio.create_subprocess_exec(
        *ztlens_command("observe", "-f", "-o", "json", "--decision", "deny", "--nats", nats_server.url,
                        "--state", str(tmp_path), "--run-dir", str(tmp_path)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    line = asyncio.ensure_future(process.stdout.readline())
    n = 0
    while not line.done():  # until it has subscribed
        await client.publish(subjects.verdicts("n1"), batches.packed(rows(1, n + 1, **DENIED), n * STRIDE))
        n += 1
        await asyncio.wait([line], timeout=0.05)
        assert n < 5000
    found = json.loads(line.result())
    assert (found["decision"], found["outcome"], found["rule"]) == ("deny", "dropped", "rest")
    for i in range(200):  # more than the pipe holds: Ctrl-C works while nobody reads, too
        await client.publish(subjects.verdicts("n1"), batches.packed(rows(1, n + i + 1, **DENIED), (n + i) * STRIDE))
    await client.flush()
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 130
    assert await process.stderr.read() == b""
    await client.close()
