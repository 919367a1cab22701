"""Live verdicts end to end: published to a real nats-server, stored by a sink process, told to viewers."""

import asyncio
import functools
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from schemas import messages, streams, subjects
from schemas.verdict import STRIDE
from tests.support import batches, served
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings, wait_for

N, AT_ONCE, VIEWERS = 900, 300, 20
ROWS = batches.traffic(N, seed=9).rows


def follow(socket: Path, query: dict[str, str], out: list[Any], ready: threading.Barrier) -> None:
    """Read verdicts until the sink ends."""
    transport = httpx.HTTPTransport(uds=str(socket))
    with (
        httpx.Client(transport=transport, base_url="http://sink", timeout=60) as http,
        http.stream("GET", "/api/v1/verdicts/live", params=query) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == ": ztlens"
        ready.wait(60)
        for line in lines:
            if line.startswith("data: "):
                out += json.loads(line[6:])


def _told(outs: list[list[Any]], least: list[int]) -> bool:
    return all(len(out) >= least[i % 2] for i, out in enumerate(outs))


@pytest.fixture
async def published(tmp_path: Path) -> Any:
    with NatsServer(tmp_path / "nats") as server:
        client = await nats.connect(server.url)
        await streams.ensure(client, subjects.VERDICTS_STREAM)
        await streams.ensure(client, subjects.RECORDS_STREAM)
        yield server, client
        await client.close()


async def test_twenty_viewers_are_told_what_they_asked_for(tmp_path: Path, published: Any) -> None:
    server, client = published
    wanted = sorted(served.records(ROWS), key=lambda v: v["position"])
    words: list[dict[str, str]] = [{}, {"decision": "deny"}]
    kept = [wanted, [v for v in wanted if v["decision"] == "deny"]]
    with SinkProcess(settings(tmp_path, server.url)) as sink:
        outs: list[list[Any]] = [[] for _ in range(VIEWERS)]
        ready = threading.Barrier(VIEWERS + 1)
        threads = [
            threading.Thread(target=follow, args=(sink.settings.socket, words[i % 2], outs[i], ready), daemon=True)
            for i in range(VIEWERS)
        ]
        for thread in threads:
            thread.start()
        record = batches.policy_record()
        await client.jetstream().publish(subjects.policy("n1"), messages.encode(record))
        ready.wait(60)
        for i, data in enumerate(batches.cut(ROWS, AT_ONCE)):
            await client.jetstream().publish(subjects.verdicts("n1"), data)
            least = [sum(v["position"] < (i + 1) * AT_ONCE * STRIDE for v in each) for each in kept]
            told = functools.partial(_told, outs, least)
            await asyncio.to_thread(wait_for, told, "all are told")  # else more at once than a viewer is sent
        assert await asyncio.to_thread(sink.end) == 0
        assert "ERROR" not in sink.log(), "streams end with the sink, and none is cut off"
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        for i, out in enumerate(outs):
            assert sorted(out, key=lambda v: v["position"]) == kept[i % 2]
