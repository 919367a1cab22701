"""Questions to a long history: audits, the common questions, the writer beside readers.

The history is made up (tests/support/history.py says how) by the sink's own store, in its commits, rolled up and folded
as a sink does. Questions are asked of a running sink over its socket, as the commands do.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import nats
import uvloop

from schemas import envelope, streams, subjects
from schemas.present import address_text
from schemas.verdict import STRIDE
from sink.client import History
from sink.errors import SinkError
from sink.history.audit import Question, Text
from tests.bench.figures import Figure, Options
from tests.bench.installation import wait_until
from tests.bench.processes import memory
from tests.bench.stored import build
from tests.support import batches, history
from tests.support.naive_policy import NaivePolicy, Tuple
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings

MESSAGE = 4_000
BLOCK_SECONDS = 8640.0
"""A day of ten blocks: 116 events a second."""
NOBODY = "nats://127.0.0.1:9"
"""A sink that only answers."""
RULES = 1_000
BUSY = "SELECT src_identity, dst_identity, sum(packets) AS packets FROM verdicts GROUP BY ALL ORDER BY 3 DESC LIMIT 20"
"""What a reader asks who never rests."""
RATE = "rows/s"


class Bench:
    """See the module."""

    NAME = "history"
    WHAT = "questions to a long history, and the writer beside readers"
    FIGURES = (
        Figure("audit, small", "10 M verdicts under a policy of 1,000 rules", "s", at_most=3.0),
        Figure("audit, large", "100 M verdicts, the same", "s", at_most=30.0),
        Figure("audit peak", "the most the sink ever held meanwhile", "MiB", at_most=4096.0),
        Figure("audit, in a loop", "the same rules one by one in Python, per verdict of 10 M", "s"),
        Figure("violations", "by rule and hour over the large history, warm", "ms", at_most=500.0),
        Figure("one host", "what it did in the last hour of the large history", "ms", at_most=20.0),
        Figure("observe", "a page of 50 since a moment in the midst of it", "ms", at_most=100.0),
        Figure("writer", "JetStream to DuckDB, nobody asks", RATE),
        Figure("beside one", "and one reader never rests", RATE, peer="writer", ratio_at_least=0.8),
        Figure("beside four", "and four never rest", RATE, peer="writer", ratio_at_least=0.5),
    )

    def __init__(self, options: Options) -> None:
        self._small, self._large = (1, 2) if options.quick else (10, 100)
        self._stream = (1 if options.quick else 4) * history.BLOCK
        self.notes: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        for name, blocks in (("large", self._large), ("small", self._small)):
            self._build(name, blocks)
        self._server = self._stack.enter_context(NatsServer(self._scratch / "nats"))
        uvloop.run(self._fill())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _build(self, name: str, blocks: int) -> None:
        traffic = history.RealTraffic(BLOCK_SECONDS).blocks(blocks)
        built = build(settings(self._scratch / name, NOBODY), traffic, history.record())
        self.notes.append(
            f"{name}: {built.verdicts:,} verdicts of {built.tuples:,} distinct tuples in"
            f" {blocks * BLOCK_SECONDS / 3600:g} h, stored in {built.stored_seconds:.0f} s, rolled up in"
            f" {built.rolled_seconds:.0f} s"
        )

    async def _fill(self) -> None:
        """A stream of the same traffic, for the writer."""
        client = await nats.connect(self._server.url)
        jetstream = client.jetstream()
        await streams.ensure(client, subjects.VERDICTS_STREAM)
        await streams.ensure(client, subjects.RECORDS_STREAM)
        self._sent = 0
        for rows in history.RealTraffic(BLOCK_SECONDS).blocks(self._stream // history.BLOCK):
            for i in range(0, len(rows), MESSAGE):
                part = rows[i : i + MESSAGE]
                payload = envelope.encode(
                    part, node="n1", ring="r1", start=self._sent * STRIDE, clock=batches.CLOCK, rev=1
                )
                await jetstream.publish(subjects.verdicts("n1"), payload, timeout=30)
                self._sent += len(part)
        await client.close()

    # ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────

    def measure(self) -> dict[str, float]:
        question = Question(candidate=Text(history.policy(RULES)))
        with self._asking("small") as sink:
            small = _seconds(lambda: sink.ask(lambda found: found.audit(question)))
        with self._asking("large") as sink:
            large = _seconds(lambda: sink.ask(lambda found: found.audit(question)))
            peak = memory(sink.process.pid).peak if sink.process else 0.0
            asked = {name: 1000 * _warm(partial(sink.ask, ask)) for name, ask in self._questions(sink).items()}
        return {
            "audit, small": small, "audit, large": large, "audit peak": peak, "audit, in a loop": self._loop(),
            **asked, "writer": self._write(0), "beside one": self._write(1), "beside four": self._write(4),
        }  # fmt: skip

    @contextmanager
    def _asking(self, name: str) -> Iterator[SinkProcess]:
        with SinkProcess(settings(self._scratch / name, NOBODY, memory_limit="1GB")) as sink:
            yield sink

    def _questions(self, sink: SinkProcess) -> dict[str, Callable[[History], object]]:
        newest = sink.value("SELECT epoch_ns(max(time)) FROM store.verdicts")
        oldest = sink.value("SELECT epoch_ns(min(time)) FROM store.verdicts")
        hour, midst = newest - 3600 * 10**9, (newest + oldest) // 2
        host = sink.value(f"SELECT src FROM verdicts WHERE time >= make_timestamp_ns({hour}) LIMIT 1")
        violations = """SELECT rule, time_bucket(INTERVAL 1 HOUR, time::TIMESTAMP) AS hour, sum(flows) AS flows,
            sum(packets) AS packets FROM violations_1h GROUP BY ALL ORDER BY hour, rule"""
        last_hour = f"""SELECT * FROM verdicts WHERE time >= make_timestamp_ns({hour}) AND family = 4
            AND (src_addr = ip('{host}') OR dst_addr = ip('{host}')) ORDER BY time"""
        return {
            "violations": lambda found: found.sql(violations),
            "one host": lambda found: found.sql(last_hour),
            "observe": lambda found: found.recent(
                f"time >= make_timestamp_ns({midst}) AND time < make_timestamp_ns({midst + 600 * 10**9})", limit=50
            ),
        }

    def _write(self, readers: int) -> float:
        """Rows a second of a new sink that reads the stream, while readers ask without rest."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory:
            with SinkProcess(settings(Path(directory), self._server.url)) as sink:
                begun, stop = time.monotonic(), threading.Event()
                threads = [threading.Thread(target=_ask_on, args=(sink, stop)) for _ in range(readers)]
                for thread in threads:
                    thread.start()
                wait_until(lambda: sink.ask(_stored) >= self._sent, "all rows stored", 600, 0.1)
                seconds = time.monotonic() - begun
                stop.set()
                for thread in threads:
                    thread.join()
            return self._sent / seconds

    def _loop(self) -> float:
        """Rules one by one, for some verdicts; as long as it would take for all of the small history."""
        naive, rows = NaivePolicy(history.policy(RULES)), next(history.RealTraffic(60.0).blocks(1, 3_000))
        some = [
            Tuple(address_text(row["src"].tobytes(), int(row["family"])) or "",
                  address_text(row["dst"].tobytes(), int(row["family"])) or "", int(row["proto"]), int(row["dport"]))
            for row in rows[:100]
        ]  # fmt: skip
        seconds = _seconds(lambda: [naive.judge(packet) for packet in some])
        return seconds / len(some) * self._small * history.BLOCK


def _stored(found: History) -> int:
    return int(found.status()["counters"]["verdicts"]["stored"])


def _ask_on(sink: SinkProcess, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            sink.ask(lambda found: found.sql(BUSY))
        except SinkError:  # busy: asked again
            time.sleep(0.05)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _warm(work: Callable[[], object]) -> float:
    """The median of five, after one that warms."""
    work()
    return sorted(_seconds(work) for _ in range(5))[2]
