"""How late people see it: from the packet to a live subscriber, and to a row that a query returns.

Everything runs as `ztlens up` starts it; 1,000 flows with `sample = 1`, so that every packet is an event. An event
carries the precise clock of its packet; the receiver's clock is the same machine's. A row counts as seen when the
answer that holds it has arrived, so pauses between questions are in the figure.
"""

import asyncio
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any, Self

import msgspec
import nats
import numpy as np
import uvloop

from schemas import subjects
from sink.client import History
from tests.bench.figures import Figure, Options
from tests.bench.installation import Installation, wait_until
from tests.bench.processes import memory

RATE, FLOWS = 10_000, 1_000
ASK_EVERY = 0.02  # seconds between questions
MS = "ms"


class _Seen(msgspec.Struct):
    """What of a live verdict is wanted."""

    time_ns: int


class Bench:
    """See the module."""

    NAME = "chain"
    WHAT = f"latency through the whole chain at {RATE:,} events/s"
    FIGURES = (
        Figure("subscriber p50", "packet → live subscriber", MS),
        Figure("subscriber p99", "packet → live subscriber", MS, at_most=50.0),
        Figure("subscriber share", "live verdicts received of packets sent", "%"),
        Figure("row p50", "packet → row in an answer", MS),
        Figure("row p99", "packet → row in an answer", MS, at_most=1000.0),
        Figure("collector RSS", "of the collector after this load, beside the ring", "MiB", at_most=120.0),
        Figure("collector peak", "the most it ever held, the ring included", "MiB"),
    )

    def __init__(self, options: Options) -> None:
        self.notes: list[str] = []
        self._loader, self._seconds = options.loader, 5.0 if options.quick else 20.0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._up = self._stack.enter_context(Installation(sample="1", rules=1000, loader=self._loader))
        self._sent = 0
        self.notes.append(
            f"{self._seconds:g} s each; row: asked every {ASK_EVERY * 1000:g} ms, the last 10 rows of 100"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        self._warm_up()
        live = uvloop.run(self._subscribe())
        rows = self._ask()
        held = memory(self._up.pids["collector"])
        return {
            "subscriber p50": float(np.percentile(live, 50)), "subscriber p99": float(np.percentile(live, 99)),
            "subscriber share": 100 * len(live) / (RATE * self._seconds),
            "row p50": float(np.percentile(rows, 50)), "row p99": float(np.percentile(rows, 99)),
            "collector RSS": held.own, "collector peak": held.peak,
        }  # fmt: skip

    def _send(self, seconds: float) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.bench.sender", self._up.outside, self._up.wire]
        self._sent += int(RATE * seconds)
        return subprocess.Popen(
            [*command, str(RATE), str(seconds), str(FLOWS)], stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def _warm_up(self) -> None:
        sender = self._send(1.0)
        assert sender.wait(30) == 0, "the sender failed"
        self._wait_stored()

    def _wait_stored(self) -> None:
        """Every packet sent so far is a row: its event was a `new` or a `sample`."""
        with History.over_socket(self._up.run_dir / "sink.sock") as history:
            query = "SELECT count(*) AS n FROM store.verdicts"
            wait_until(lambda: history.sql(query)["n"][0].as_py() >= self._sent, f"{self._sent} rows stored", 60, 0.2)

    async def _subscribe(self) -> np.ndarray:
        """ms of each live verdict."""
        arrived: list[tuple[int, bytes]] = []

        async def take(message: Any) -> None:
            arrived.append((time.time_ns(), message.data))

        client = await nats.connect(self._up.url)
        await client.subscribe(subjects.ALL_LIVE, cb=take)
        await client.flush()
        sender = self._send(self._seconds)
        await asyncio.to_thread(sender.wait, self._seconds + 30)
        await asyncio.sleep(1.0)  # what is under way
        await client.close()
        assert sender.returncode == 0 and arrived, "the sender failed, or nothing arrived"
        decoder = msgspec.msgpack.Decoder(_Seen)
        return np.array([at - decoder.decode(data).time_ns for at, data in arrived]) / 1e6

    def _ask(self) -> np.ndarray:
        """ms of each row: asked for behind the last one seen, over and over."""
        self._wait_stored()
        late: list[np.ndarray] = []
        with History.over_socket(self._up.run_dir / "sink.sock") as history:
            known = int(history.sql("SELECT max(position) AS p FROM store.verdicts")["p"][0].as_py())
            sender, seen, asked = self._send(self._seconds), 0, 0
            wanted = int(RATE * self._seconds)
            end = time.monotonic() + self._seconds + 30
            while seen < wanted and time.monotonic() < end:
                table = history.sql(
                    f"SELECT position, epoch_ns(time) AS t FROM verdicts WHERE position > {known} ORDER BY position"
                )
                now = time.time_ns()
                asked += 1
                if table.num_rows:
                    known = int(table["position"][-1].as_py())
                    seen += table.num_rows
                    late.append((now - table["t"].to_numpy()) / 1e6)
                time.sleep(ASK_EVERY)
            assert sender.wait(30) == 0 and seen >= wanted, f"{wanted} packets sent, {seen} rows seen"
        self.notes[0] = f"{self._seconds:g} s each; {asked} questions for rows, {ASK_EVERY * 1000:g} ms between two"
        return np.concatenate(late)
