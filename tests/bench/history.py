"""Questions to a long history: audits, the common questions, the writer beside readers.

The history is made up (tests/support/history.py says how) by the sink's own store, in its commits, rolled up and folded
as a sink does. Questions are asked of a running sink over its socket, as the commands do.
"""

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import uvloop

from policy.units import Generality
from schemas import times
from schemas.filters import Filters
from schemas.present import address_text
from sink.client import History
from sink.errors import SinkError
from sink.history.audit import Document, Question, Text
from sink.history.suggest import Question as Suggest
from tests.bench.figures import Figure, Options
from tests.bench.processes import memory
from tests.bench.stored import BLOCK_SECONDS, Kept, traffic
from tests.bench.written import Written
from tests.support import history
from tests.support.naive_policy import NaivePolicy, Tuple
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings
from ztlens.verdicts import recorded

HOUR = 3600 * 10**9
NOBODY = "nats://127.0.0.1:9"
"""A sink that only answers."""
HALF = 50_000_000
"""Verdicts of the hours that violations are asked of; of a smaller history all."""
SUGGESTED = 250_000
"""Verdicts of the hours a policy is suggested of."""
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
        Figure("suggest", "a policy of the last 250,000 verdicts and its proof", "s"),
        Figure("violations", "by rule and hour over 50 M verdicts, warm", "ms", at_most=500.0),
        Figure("one host", "the large history's last hour, as `observe --ip` asks for it", "ms", at_most=20.0),
        Figure("one host, SQL", "the same of the view `verdicts`", "ms"),
        Figure("observe", "a page of 50 since a moment in the midst of it", "ms", at_most=100.0),
        Figure("writer", "JetStream to DuckDB, nobody asks", RATE),
        Figure("beside one", "and one reader never rests", RATE, peer="writer", ratio_at_least=0.8),
        Figure("beside four", "and four never rest", RATE, peer="writer", ratio_at_least=0.5),
    )

    def __init__(self, options: Options) -> None:
        self._small, self._large = (1, 2) if options.quick else (10, 100)
        self._keep = options.keep
        self._stream = 1 if options.quick else 4
        self.notes: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        self._kept = {"large": self._history(self._large), "small": self._history(self._small)}
        self._written = Written(self._stack.enter_context(NatsServer(self._scratch / "nats")), self._scratch)
        uvloop.run(self._written.fill(self._stream))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _history(self, blocks: int) -> Kept:
        kept = traffic(self._keep or self._scratch, blocks)
        built = kept.built
        self.notes.append(
            f"{built.verdicts:,} verdicts of {built.tuples:,} distinct tuples in {blocks * BLOCK_SECONDS / 3600:g} h,"
            f" stored in {built.stored_seconds:.0f} s, rolled up in {built.rolled_seconds:.0f} s"
        )
        return kept

    # ── a run ───────────────────────────────────────────────────────────────────────────────────────────────────

    def measure(self) -> dict[str, float]:
        with self._asking("small") as sink:
            small = _seconds(lambda: self._audit("small", sink))
            suggest = _seconds(lambda: self._suggest(sink))
        with self._asking("large") as sink:
            large = _seconds(lambda: self._audit("large", sink))
            peak = memory(sink.process.pid).peak if sink.process else 0.0
            asked = {name: 1000 * _warm(partial(sink.ask, ask)) for name, ask in self._questions(sink).items()}
        return {
            "audit, small": small, "audit, large": large, "audit peak": peak, "audit, in a loop": self._loop(),
            "suggest": suggest, **asked,
            "writer": self._written.rate(partial(_readers, 0)),
            "beside one": self._written.rate(partial(_readers, 1)),
            "beside four": self._written.rate(partial(_readers, 4)),
        }  # fmt: skip

    def _audit(self, name: str, sink: SinkProcess) -> None:
        """Ask, and see that the answer is right to the byte."""
        question = Question(candidate=Text(history.policy()))
        document: Document = sink.ask(lambda found: found.audit(question))
        lists = {key: document[key] for key in ("newly_denied", "newly_allowed")}
        lists["unchanged"] = [document["unchanged"]]
        found = {
            key: [sum(entry[count] for entry in entries) for count in ("flows", "packets", "bytes")]
            for key, entries in lists.items()
        }
        assert found == self._kept[name].fates, f"{found} instead of {self._kept[name].fates}"
        assert not document["uncertain"], f"{len(document['uncertain'])} entries are uncertain"

    def _suggest(self, sink: SinkProcess) -> None:
        newest = sink.value("SELECT epoch_ns(max(time)) FROM store.verdicts")
        since = newest - math.ceil(SUGGESTED / history.BLOCK * BLOCK_SECONDS * 1e9)
        document: Document = sink.ask(lambda found: found.suggest(Suggest(since=since, generality=Generality.NETWORK)))
        assert document["policy"], "no policy was suggested"
        assert not document["audit"]["newly_denied"], "the policy denies what was recorded"

    @contextmanager
    def _asking(self, name: str) -> Iterator[SinkProcess]:
        with SinkProcess(settings(self._kept[name].directory, NOBODY, memory_limit="1GB")) as sink:
            yield sink

    def _questions(self, sink: SinkProcess) -> dict[str, Callable[[History], object]]:
        newest = sink.value("SELECT epoch_ns(max(time)) FROM store.verdicts")
        oldest = sink.value("SELECT epoch_ns(min(time)) FROM store.verdicts")
        hour, midst = newest - HOUR, (newest + oldest) // 2
        half = oldest // HOUR + math.ceil(HALF / self._kept["large"].built.verdicts * (newest - oldest) / HOUR)
        host = sink.value(f"SELECT src FROM verdicts WHERE time >= make_timestamp_ns({hour}) AND family = 4 LIMIT 1")
        of_host = Filters(ip=(host,), since=times.rfc3339(hour))
        violations = f"""SELECT rule, time_bucket(INTERVAL 1 HOUR, time::TIMESTAMP) AS hour, sum(flows) AS flows,
            sum(packets) AS packets FROM violations_1h WHERE time < make_timestamp_ns({half * HOUR})
            GROUP BY ALL ORDER BY hour, rule"""
        last_hour = f"""SELECT * FROM verdicts WHERE time >= make_timestamp_ns({hour}) AND family = 4
            AND ip('{host}') IN (src_addr, dst_addr) ORDER BY time"""
        return {
            "violations": lambda found: found.sql(violations),
            "one host": lambda found: list(recorded(found, of_host, None)),
            "one host, SQL": lambda found: found.sql(last_hour),
            "observe": lambda found: found.recent(since=midst, until=midst + 600 * 10**9, limit=50),
        }

    def _loop(self) -> float:
        """Rules one by one, for some verdicts; as long as it would take for all of the small history."""
        naive, rows = NaivePolicy(history.policy()), next(history.RealTraffic(60.0).blocks(1, 3_000))
        some = [
            Tuple(address_text(row["src"].tobytes(), int(row["family"])) or "",
                  address_text(row["dst"].tobytes(), int(row["family"])) or "", int(row["proto"]), int(row["dport"]))
            for row in rows[:10]
        ]  # fmt: skip
        seconds = _seconds(lambda: [naive.judge(packet) for packet in some])
        return seconds / len(some) * self._small * history.BLOCK


@contextmanager
def _readers(count: int, sink: SinkProcess) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=_ask_on, args=(sink, stop)) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


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
