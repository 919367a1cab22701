"""What people who look see, and what they cost: the page's questions to a long history, and twenty viewers.

Questions go to a running sink over its socket, as the page does, with what its views ask for (their own constants);
each of them is the first page of its view, and so is what it is told.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import uvloop

from tests.bench.asking import asking, document
from tests.bench.figures import Figure, Options
from tests.bench.installation import wait_until
from tests.bench.seen import seen
from tests.bench.stored import Kept, traffic
from tests.bench.written import Written
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings
from web import timeline
from web.views import flows, matrix, overview
from web.views import map as map_

VIEWERS = 20
TIMES = 5
"""A question is asked so often, after once that warms; the median counts. Each time for one flow less a page, so that
what was read ahead for the time before is of no use."""
NOBODY = "nats://127.0.0.1:9"
VIEW, NEXT = 1000.0, 200.0
MAP = {"nodes": map_.NODES, "edges": map_.EDGES}
MATRIX = {"rows": matrix.ROWS, "columns": matrix.COLUMNS}
QUESTIONS: dict[str, tuple[str, dict[str, Any], float]] = {
    "overview": ("overview", {"since": "0", "top": overview.TOP}, VIEW),
    "histogram": ("histogram", {"buckets": timeline.BUCKETS}, VIEW),
    "flows": ("flows", {}, VIEW),
    "flows, next": ("flows", {}, NEXT),
    "flows by bytes": ("flows", {"sort": "bytes"}, VIEW),
    "flows by bytes, next": ("flows", {"sort": "bytes"}, NEXT),
    "flows by bytes, 11th": ("flows", {"sort": "bytes"}, VIEW),
    "denied flows": ("flows", {"decision": "deny"}, VIEW),
    "flows, filtered": ("flows", {"identity": "clients-7", "port": "443/tcp"}, VIEW),
    "map": ("map", MAP, VIEW),
    "map by network": ("map", {**MAP, "group": "network"}, VIEW),
    "map by address": ("map", {**MAP, "group": "address"}, VIEW),
    "map by label": ("map", {**MAP, "group": "label", "label": "team"}, VIEW),
    "matrix": ("matrix", MATRIX, VIEW),
    "matrix by port": ("matrix", {**MATRIX, "ports": "true"}, VIEW),
    "policy": ("policy", {}, VIEW),
}
"""Figure → path, parameters, ms at most; of the first page, or of the one its last word tells."""
PAGES = {"next": 1, "11th": 10}
"""Pages before it. Ten by bytes are read together: the eleventh waits for that as the first does."""
MS, RATE = "ms", "rows/s"


class Bench:
    """See the module."""

    NAME = "viewers"
    WHAT = "the page's questions to 10 M verdicts, and what viewers see and cost"
    FIGURES = (
        *(Figure(name, f"{path} of all history", MS, at_most=most) for name, (path, _, most) in QUESTIONS.items()),
        Figure("denied, seen p50", "packet on the wire → event at a viewer", MS),
        Figure("denied, seen p99", "packet on the wire → event at a viewer", MS, at_most=500.0),
        Figure("denied, painted p50", "packet on the wire → its row painted in the view Flows", MS),
        Figure("denied, painted p99", "packet on the wire → its row painted in the view Flows", MS, at_most=500.0),
        Figure("denied, in overview p50", "packet on the wire → counted in what Overview paints", MS),
        Figure("denied, in overview p99", f"the same; it looks each {overview.EVERY:g} s at most", MS),
        Figure("first view", "navigation → denied pairs of the overview painted, nothing cached", MS, at_most=VIEW),
        Figure("alive", "navigation → the same drawn by the page's scripts", MS),
        Figure("writer", "JetStream to DuckDB, nobody looks", RATE),
        Figure("beside viewers", f"and {VIEWERS} follow, each with a view of its own open", RATE, peer="writer",
               ratio_at_least=0.8),
    )  # fmt: skip

    def __init__(self, options: Options) -> None:
        self._options = options
        self._packets = 10 if options.quick else 40
        self.notes: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        self._kept: Kept = traffic(self._options.keep or self._scratch, 1 if self._options.quick else 10)
        self.notes.append(f"questions to {self._kept.built.verdicts:,} verdicts")
        self._written = Written(self._stack.enter_context(NatsServer(self._scratch / "nats")), self._scratch)
        uvloop.run(self._written.fill(2 if self._options.quick else 8))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        return {**self._questions(), **self._seen(), **self._cost()}

    def _questions(self) -> dict[str, float]:
        """Median ms of each."""
        out = {}
        with SinkProcess(settings(self._kept.directory, NOBODY)) as sink, asking(sink.settings.socket) as http:
            for name, (path, query, _) in QUESTIONS.items():
                before = PAGES.get(name.rpartition(", ")[2], 0)
                limits = range(flows.LIMIT, flows.LIMIT - TIMES - 1, -1)
                times = [_milliseconds(http, path, query | {"limit": limit}, before) for limit in limits]
                out[name] = statistics.median(times[1:])
        return out

    def _seen(self) -> dict[str, float]:
        """Of a whole ztlens: how late a denied packet's event is at a viewer, and in a browser; first views."""
        late, first = seen(self._packets, TIMES)
        return {
            **{f"denied, {what} p{p}": float(np.percentile(ms, p)) for what, ms in late.items() for p in (50, 99)},
            "first view": statistics.median(painted for painted, _ in first),
            "alive": statistics.median(alive for _, alive in first),
        }

    def _cost(self) -> dict[str, float]:
        """Rows a second stored, whoever views."""
        alone = self._written.rate(lambda _: nullcontext())
        command = [sys.executable, "-m", "tests.bench.viewing", str(VIEWERS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            beside = self._written.rate(lambda sink: self._viewing(sink, process))
        return {"writer": alone, "beside viewers": beside}

    @contextmanager
    def _viewing(self, sink: SinkProcess, process: "subprocess.Popen[str]") -> Iterator[None]:
        """All view, until the end."""
        assert process.stdin is not None
        process.stdin.write(f"{sink.settings.socket}\n")
        process.stdin.flush()
        wait_until(lambda: sink.ask(_viewers) > VIEWERS, "all follow, and the page", 60)
        try:
            yield
        finally:
            told, _ = process.communicate("", timeout=60)
        self.notes.append(f"{VIEWERS} viewers: {told.strip()}")


def _viewers(found: Any) -> int:
    return int(found.status()["questions"]["viewers"])


def _milliseconds(http: httpx.Client, path: str, query: dict[str, Any], before: int) -> float:
    """Of an answer made anew: one that is shared serves for a second. `before`: pages that are read before it."""
    given = query if path == "flows" else {name: value for name, value in query.items() if name != "limit"}
    time.sleep(1.1)
    for _ in range(before):
        given = given | {"cursor": document(http, path, given)["next"]}
    begun = time.monotonic()
    document(http, path, given)
    return 1000 * (time.monotonic() - begun)
