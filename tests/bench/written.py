"""Made-up traffic in a stream, and how fast a new sink stores it, whoever asks or looks on meanwhile."""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import nats

from schemas import envelope, messages, streams, subjects
from schemas.verdict import STRIDE
from tests.bench.installation import wait_until
from tests.bench.stored import BLOCK_SECONDS
from tests.support import batches, history
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings

MESSAGE = 4_000
Beside = Callable[[SinkProcess], AbstractContextManager[object]]
"""Begins what goes on beside the sink, until the context ends."""


class Written:
    """`blocks` of tests.support.history in the streams of `server`; databases go below `scratch`."""

    def __init__(self, server: NatsServer, scratch: Path) -> None:
        self._server = server
        self._scratch = scratch
        self._sent = 0

    async def fill(self, blocks: int) -> None:
        """Publish, first what names the ends."""
        client = await nats.connect(self._server.url)
        jetstream = client.jetstream()
        await streams.ensure(client, subjects.VERDICTS_STREAM)
        await streams.ensure(client, subjects.RECORDS_STREAM)
        record = history.record()
        await jetstream.publish(subjects.policy(record.node), messages.encode(record), timeout=30)
        for rows in history.RealTraffic(BLOCK_SECONDS).blocks(blocks):
            for i in range(0, len(rows), MESSAGE):
                part = rows[i : i + MESSAGE]
                payload = envelope.encode(
                    part, node="n1", ring="r1", start=self._sent * STRIDE, clock=batches.CLOCK, rev=1
                )
                await jetstream.publish(subjects.verdicts("n1"), payload, timeout=30)
                self._sent += len(part)
        await client.close()

    def rate(self, beside: Beside) -> float:
        """Rows a second that a new sink stores, from when `beside` has begun."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
            with SinkProcess(settings(Path(directory), self._server.url)) as sink, beside(sink):
                before, begun = _stored(sink), time.monotonic()
                assert before < self._sent, "all was stored before anything went on beside it"
                wait_until(lambda: _stored(sink) >= self._sent, "all rows stored", 600, 0.1)
                seconds = time.monotonic() - begun
            return (self._sent - before) / seconds


def _stored(sink: SinkProcess) -> int:
    return int(sink.ask(lambda found: found.status()["counters"]["verdicts"]["stored"]))
