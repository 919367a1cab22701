"""From JetStream to DuckDB: rows a second, bytes a row on disk, and what the sink holds meanwhile.

The stream is filled first, with made-up traffic like real (tests/support/batches.py: flows with growing totals, an
eighth denied, a tenth IPv6), 4,000 verdicts a message. Then `ztlens sink` starts on an empty database, and the clock
runs from its first answer until all is stored. The peer is what one would write first: a row an INSERT.
"""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import duckdb
import nats
import numpy as np
import uvloop

from schemas import envelope, streams, subjects
from schemas.verdict import DTYPE, STRIDE
from sink.client import History
from sink.errors import SinkError
from tests.bench.figures import Figure, Options
from tests.bench.installation import ZTLENS, wait_until
from tests.bench.processes import cpu_seconds, memory
from tests.support.batches import CLOCK, traffic
from tests.support.nats import NatsServer

MESSAGE, BLOCK = 4_000, 1_000_000
BLOCK_SECONDS = 20.0  # of traffic: 50,000 events a second
RATE = "rows/s"


class Bench:
    """See the module."""

    NAME = "store"
    WHAT = "rows/s from JetStream into DuckDB by one sink"
    FIGURES = (
        Figure("INSERT a row", "DuckDB, a row an INSERT, 300 a transaction", RATE),
        Figure("sink", "stored and committed, ranges deduplicated", RATE, at_least=0.5e6, peer="INSERT a row"),
        Figure("sink CPU", "of the sink's process, per row", "ns/row"),
        Figure("disk", "the database file after the sink has ended", "bytes/row", at_most=40.0),
        Figure("sink peak", "the most the sink's process ever held", "MiB", at_most=600.0),
    )

    def __init__(self, options: Options) -> None:
        self._rows = BLOCK if options.quick else 10 * BLOCK
        self.notes: list[str] = [f"{self._rows:,} rows a run, {MESSAGE:,} a message"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        self._server = self._stack.enter_context(NatsServer(self._scratch / "nats"))
        uvloop.run(self._fill())
        self._run = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def _fill(self) -> None:
        """Put all rows into the stream, once: every run reads it from the start with a database of its own."""
        client = await nats.connect(self._server.url)
        jetstream = client.jetstream()
        await streams.ensure(client, subjects.VERDICTS_STREAM)
        await streams.ensure(client, subjects.RECORDS_STREAM)
        rows = traffic(BLOCK + 2, seconds=BLOCK_SECONDS).rows[:BLOCK].copy()  # a multiple of its three events a flow
        flows = int(rows["flow_id"].max() & np.uint64(0xFFFFFFFFFFFF)) + 1
        slots = asyncio.Semaphore(16)

        async def publish(at: int, payload: bytes) -> None:
            async with slots:
                message_id = {"Nats-Msg-Id": str(at)}
                await jetstream.publish(subjects.verdicts("bench"), payload, timeout=30, headers=message_id)

        for block in range(0, self._rows, BLOCK):
            tasks = []
            for at in range(0, BLOCK, MESSAGE):
                payload = envelope.encode(
                    rows[at : at + MESSAGE], node="bench", ring="bench", start=(block + at) * STRIDE, clock=CLOCK, rev=1
                )
                tasks.append(asyncio.create_task(publish(block + at, payload)))
                if len(tasks) % 16 == 0:
                    await asyncio.gather(*tasks)
            await asyncio.gather(*tasks)
            rows["time"] += np.uint64(BLOCK_SECONDS * 1e9)
            rows["flow_id"] += np.uint64(flows)
        await client.close()

    def measure(self) -> dict[str, float]:
        self._run += 1
        return self._sink(self._scratch / f"run{self._run}") | {"INSERT a row": self._row_by_row()}

    def _sink(self, directory: Path) -> dict[str, float]:
        directory.mkdir()
        database, socket = directory / "ztlens.duckdb", directory / "run" / "sink.sock"
        values = {
            "nats": self._server.url, "database": str(database), "state": str(directory), "node": "bench",
            "run_dir": str(directory / "run"), "instance": f"bench-{os.getpid()}",
        }  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ZTLENS_")}
        environment |= {f"ZTLENS_{name.upper()}": value for name, value in values.items()}
        config = directory / "none.toml"
        config.touch()
        log = directory / "sink.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(ZTLENS), "sink", "--config", str(config)], stdout=output, stderr=output, env=environment
            )
        try:
            wait_until(socket.exists, f"sink: {log.read_text()[-300:]}", 30, 0.01)
            begun = time.monotonic()
            with History.over_socket(socket) as history:
                wait_until(lambda: self._stored(history) >= self._rows, f"{self._rows} rows stored", 300, 0.1)
                seconds = time.monotonic() - begun
                n = history.sql("SELECT count(*) AS n FROM store.verdicts")["n"][0].as_py()
                assert n == self._rows, f"{self._rows} rows sent, {n} stored"
            peak, cpu = memory(process.pid).peak, cpu_seconds(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        assert process.returncode == 0, f"the sink ended with {process.returncode}: {log.read_text()[-300:]}"
        size = sum(file.stat().st_size for file in directory.glob("ztlens.duckdb*") if file.is_file())
        database.unlink()
        return {
            "sink": self._rows / seconds, "sink CPU": cpu / self._rows * 1e9, "disk": size / self._rows,
            "sink peak": peak,
        }  # fmt: skip

    def _stored(self, history: History) -> int:
        try:
            return int(history.status()["counters"]["verdicts"]["stored"])
        except SinkError:  # it is just starting
            return 0

    def _row_by_row(self) -> float:
        """A few are enough to see it."""
        rows, names = traffic(300).rows, DTYPE.names or ()
        plain = [
            (int(row["time"]), int(row["flow_id"]), row["src"].tobytes(), row["dst"].tobytes(),
             *(int(row[name]) for name in names[4:]))
            for row in rows
        ]  # fmt: skip
        columns = ", ".join(f"{name} {'BLOB' if name in ('src', 'dst') else 'UBIGINT'}" for name in names)
        marks = ", ".join("?" * len(names))
        with duckdb.connect(str(self._scratch / f"peer{self._run}.duckdb")) as connection:
            connection.execute(f"CREATE TABLE verdicts ({columns})")
            begun = time.monotonic()
            connection.execute("BEGIN")
            for row in plain:
                connection.execute(f"INSERT INTO verdicts VALUES ({marks})", row)
            connection.execute("COMMIT")
            return len(plain) / (time.monotonic() - begun)
