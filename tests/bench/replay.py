"""`ztlens replay` from a database file, through a real nats-server, to a subscriber of its batches.

The history is made up like real (tests/support/batches.py), two nodes at the same times. At 1x a verdict's error is how
far its arrival, counted from the first one's, is from its stamp, counted from the first one's: what the subscriber and
the server add is in it. At max the rate is that of the verdicts between the first message and the last, and all that
were asked for must have come.
"""

import asyncio
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import nats
import numpy as np
import uvloop
from nats.aio.msg import Msg

from schemas import envelope, messages, streams, subjects
from schemas.verdict import STRIDE
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.bench.figures import Figure, Options
from tests.bench.installation import ZTLENS
from tests.support.batches import CLOCK, START, packed, policy_record, traffic
from tests.support.nats import NatsServer

BLOCK, MESSAGE, NODES = 500_000, 4_000, ("one", "two")
BLOCK_SECONDS = 100.0
"""5,000 verdicts a second and node."""
SESSION = "bench"


class Bench:
    """See the module."""

    NAME = "replay"
    WHAT = "recorded verdicts to a subscriber: spacing at 1x, verdicts/s at max"
    FIGURES = (
        Figure("1x error p50", "arrival against stamp, 10,000 verdicts a second", "ms"),
        Figure("1x error p99", "the same", "ms", at_most=10.0),
        Figure("1x error max", "the same", "ms", at_most=10.0),
        Figure("max", "batches, the default", "verdicts/s", at_least=0.5e6),
        Figure("max, stream", "the same from JetStream, without the database", "verdicts/s"),
        Figure("max, maps", "with the single maps that live_cap allows", "verdicts/s"),
    )

    def __init__(self, options: Options) -> None:
        self._blocks = 1 if options.quick else 5
        self._seconds = 5 if options.quick else 20
        total = self._blocks * BLOCK * len(NODES)
        self.notes = [f"{total:,} verdicts of two nodes; {self._seconds} s of them at 1x"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        self._server = self._stack.enter_context(NatsServer(self._scratch / "nats"))
        settings = SinkSettings(
            database=self._scratch / "ztlens.duckdb", nats_url="", run_dir=self._scratch / "run", keep_age=0.0
        )
        store = Store.open(settings)
        uvloop.run(self._fill(store))
        store.close()
        return self

    async def _fill(self, store: Store) -> None:
        """The same into the database and into the stream."""
        client = await nats.connect(self._server.url)
        for name in (subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM):
            await streams.ensure(client, name)
        publish = client.jetstream(timeout=30).publish
        records = [policy_record(node=node, ring=node) for node in NODES]
        store.append(Commit(records=list(records)))
        for record in records:
            await publish(subjects.policy(record.node), messages.encode(record))
        rows = traffic(BLOCK + 2, seconds=BLOCK_SECONDS).rows[:BLOCK].copy()
        for block in range(self._blocks):
            for at in range(0, BLOCK, MESSAGE):
                part, start = rows[at : at + MESSAGE], (block * BLOCK + at) * STRIDE
                given = {node: packed(part, start, node=node, ring=node) for node in NODES}
                store.append(Commit(batches=[prepare(envelope.decode(data)) for data in given.values()]))
                for node, data in given.items():
                    await publish(subjects.verdicts(node), data)
            rows["time"] += np.uint64(BLOCK_SECONDS * 1e9)
        await client.close()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        since = CLOCK + START + 3_000_000_000
        span = ["--since", _moment(since), "--until", _moment(since + self._seconds * 10**9)]
        arrivals = uvloop.run(self._received("--speed", "1x", *span))
        stamps = np.concatenate([stamps for _, stamps in arrivals]).astype("i8")
        came = np.repeat([at for at, _ in arrivals], [len(stamps) for _, stamps in arrivals])
        error = np.abs((came - came[0]) - (stamps - stamps[0])) / 1e6
        p50, p99 = np.percentile(error, (50, 99))
        return {
            "1x error p50": float(p50), "1x error p99": float(p99), "1x error max": float(error.max()),
            "max": self._rate(), "max, stream": self._rate("--from-stream"),
            "max, maps": self._rate("--forms", "batches,live"),
        }  # fmt: skip

    def _rate(self, *arguments: str) -> float:
        arrivals = uvloop.run(self._received("--speed", "max", *arguments))
        counted = sum(len(stamps) for _, stamps in arrivals)
        assert counted == self._blocks * BLOCK * len(NODES), f"{counted} came"
        (first, head), (last, _) = arrivals[0], arrivals[-1]
        return (counted - len(head)) / (last - first) * 1e9

    async def _received(self, *arguments: str) -> list[tuple[int, np.ndarray]]:
        """When each batch came (ns, monotonic), and its stamps."""
        came: list[tuple[int, bytes]] = []
        client = await nats.connect(self._server.url)

        async def take(message: Msg) -> None:
            came.append((time.monotonic_ns(), message.data))

        await client.subscribe(subjects.replay(SESSION, subjects.ALL_VERDICTS), cb=take, pending_bytes_limit=2**31)
        await client.flush()
        process = await asyncio.create_subprocess_exec(
            str(ZTLENS), "replay", "--session", SESSION, *arguments, "--nats", self._server.url,
            "--database", str(self._scratch / "ztlens.duckdb"), "--run-dir", str(self._scratch / "run"),
            env=os.environ | {"ZTLENS_CONFIG": os.devnull}, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        await client.flush()
        await client.close()
        return [(at, (b := envelope.decode(data)).columns()["time"] + np.uint64(b.clock)) for at, data in came]


def _moment(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns')}"[:26] + "Z"
