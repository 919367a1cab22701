"""What people who look see, and what they cost: the page's questions to a long history, and twenty viewers.

Questions go to a running sink over its socket, as the page's do; each of them is the first page of its view, and so is
what it is told. A denied packet is sent over a veth pair through `ztlens up`; it is seen when the viewer has the event.
"""

import asyncio
import json
import socket
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

from schemas import times
from tests.bench.figures import Figure, Options
from tests.bench.installation import Installation, wait_until
from tests.bench.policies import DENIED_PORT
from tests.bench.stored import Kept, traffic
from tests.bench.written import Written
from tests.support.kernel import udp_frame
from tests.support.nats import NatsServer
from tests.support.netns import call_in
from tests.support.pages import Browser, Published
from tests.support.sinks import SinkProcess, settings

VIEWERS = 20
LIMIT = 100
"""Flows of a page; one less each time, so that what was read ahead for the time before is of no use."""
TIMES = 5
"""A question is asked so often, after once that warms; the median counts."""
PAUSE = 0.7
"""Seconds between two denied packets."""
NOBODY = "nats://127.0.0.1:9"
VIEW, NEXT = 1000.0, 200.0
QUESTIONS: dict[str, tuple[str, dict[str, Any], float]] = {
    "overview": ("overview", {"since": "0"}, VIEW),
    "histogram": ("histogram", {}, VIEW),
    "flows": ("flows", {}, VIEW),
    "flows, next": ("flows", {}, NEXT),
    "flows by bytes": ("flows", {"sort": "bytes"}, VIEW),
    "flows by bytes, next": ("flows", {"sort": "bytes"}, NEXT),
    "flows by bytes, 11th": ("flows", {"sort": "bytes"}, VIEW),
    "denied flows": ("flows", {"decision": "deny"}, VIEW),
    "map": ("map", {}, VIEW),
    "map by network": ("map", {"group": "network"}, VIEW),
    "matrix": ("matrix", {}, VIEW),
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
        Figure("first view", "navigation → denied pairs of the overview painted, nothing cached", MS, at_most=VIEW),
        Figure("alive", "navigation → the same drawn by the page's scripts", MS),
        Figure("writer", "JetStream to DuckDB, nobody looks", RATE),
        Figure("beside viewers", f"and {VIEWERS} follow and ask each second", RATE, peer="writer", ratio_at_least=0.8),
    )

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
        uvloop.run(self._written.fill(2 if self._options.quick else 4))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        return {
            **self._questions(), **self._seen(),
            "writer": self._written.rate(lambda _: nullcontext()),
            "beside viewers": self._written.rate(self._viewing),
        }  # fmt: skip

    def _questions(self) -> dict[str, float]:
        """Median ms of each."""
        out = {}
        with SinkProcess(settings(self._kept.directory, NOBODY)) as sink, _asking(sink.settings.socket) as http:
            for name, (path, query, _) in QUESTIONS.items():
                before = PAGES.get(name.rpartition(", ")[2], 0)
                times = [_milliseconds(http, path, query | {"limit": LIMIT - i}, before) for i in range(TIMES + 1)]
                out[name] = statistics.median(times[1:])
        return out

    def _seen(self) -> dict[str, float]:
        """Of a whole ztlens: how late a denied packet's event is at a viewer, its row in a browser; first views."""
        with Installation(sample="1", web="127.0.0.1:0") as up:
            wire = call_in(up.outside, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            with wire, _asking(up.run_dir / "sink.sock") as http:
                wire.bind((up.wire, 0))
                late = {"seen": self._denied(http, wire), "painted": asyncio.run(self._shown(up.page, http, wire))}
            first = [asyncio.run(_painted(up.page)) for _ in range(TIMES)]
        return {
            **{f"denied, {what} p{p}": float(np.percentile(ms, p)) for what, ms in late.items() for p in (50, 99)},
            "first view": statistics.median(painted for painted, _ in first),
            "alive": statistics.median(alive for _, alive in first),
        }

    def _denied(self, http: httpx.Client, wire: socket.socket) -> list[float]:
        """ms from each denied packet's moment in the datapath to its event at a viewer."""
        late: list[float] = []
        with http.stream("GET", "verdicts/live", params={"decision": "deny"}) as answer:
            lines = answer.iter_lines()
            wait_until(lambda: next(lines) == ": ztlens", "the viewer follows", 10)
            for i in range(self._packets):
                time.sleep(PAUSE)
                wire.send(_frame(1024 + i))
                data = next(line for line in lines if line.startswith("data: "))
                now = time.time_ns()
                late += [(now - _nanoseconds(row["time"])) / 1e6 for row in json.loads(data[6:])]
        return late

    async def _shown(self, page: Published, http: httpx.Client, wire: socket.socket) -> list[float]:
        """ms from each denied packet's moment in the datapath to the frame with its row in the view Flows."""
        async with Browser(page) as browser:
            tab = await browser.open("/flows?decision=deny")
            await tab.evaluate(_WATCH)
            for i in range(self._packets):
                await asyncio.sleep(PAUSE)
                wire.send(_frame(2048 + i))
            await tab.wait_for_function(f"Object.keys(window.painted).length === {self._packets}")
            painted: dict[str, float] = await tab.evaluate("window.painted")
        flows = _document(http, "flows", {"decision": "deny", "limit": "1000"})["flows"]
        begun = {flow["flow"]: _nanoseconds(flow["first_seen"]) / 1e6 for flow in flows}
        return [moment - begun[flow] for flow, moment in painted.items()]

    @contextmanager
    def _viewing(self, sink: SinkProcess) -> Iterator[None]:
        command = [sys.executable, "-m", "tests.bench.viewing", str(sink.settings.socket), str(VIEWERS)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: sink.ask(_viewers) == VIEWERS, "all follow", 60)
        try:
            yield
        finally:
            told, _ = process.communicate("", timeout=60)
        self.notes.append(f"{VIEWERS} viewers: {told.strip()}")


async def _painted(page: Published) -> tuple[float, float]:
    """In a browser that was never there, ms from the navigation to the frame after the first row, and until it is
    alive: drawn by its scripts."""
    async with Browser(page) as browser:
        tab = await browser.tab()
        await tab.add_init_script(_PAINTED)
        await tab.goto(page.origin, wait_until="commit")
        await tab.wait_for_function("window.rows && window.alive")
        return float(await tab.evaluate("window.rows")), float(await tab.evaluate("window.alive"))


_WATCH = """() => {
    const rows = () => [...document.querySelectorAll("tbody tr[data-key]")].map((row) => row.dataset.key);
    const known = new Set(rows());
    window.painted = {};
    new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => {
        for (const key of rows())
            if (!known.has(key)) known.add(key), (window.painted[key] = performance.timeOrigin + performance.now());
    }))).observe(document.body, { childList: true, subtree: true });
}"""
"""Notes when each new row was painted, in ms since 1970."""
_PAINTED = """(() => {
    const painted = (name, selector) => requestAnimationFrame(function look() {
        if (document.querySelector(selector)) setTimeout(() => (window[name] = performance.now()));
        else requestAnimationFrame(look);
    });
    painted("rows", "tbody tr[data-key]");
    painted("alive", "#app tbody tr[data-key]");
})()"""
"""Notes the ends of the frames, in ms since the navigation. The page looks itself: who asks it waits for scripts."""


def _frame(sport: int) -> bytes:
    return udp_frame("10.1.0.1", sport, "10.2.0.1", DENIED_PORT, bytes(18))


def _nanoseconds(moment: str) -> int:
    return times.nanoseconds(times.moment(moment))


def _viewers(found: Any) -> int:
    return int(found.status()["questions"]["viewers"])


@contextmanager
def _asking(path: Path) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://sink/api/v1/", timeout=60) as http:
        yield http


def _document(http: httpx.Client, path: str, query: dict[str, Any]) -> Any:
    answer = http.get(path, params=query)
    assert answer.status_code == 200, f"{path}: {answer.text[:200]}"
    return answer.json()


def _milliseconds(http: httpx.Client, path: str, query: dict[str, Any], before: int) -> float:
    """Of an answer made anew: one that is shared serves for a second. `before`: pages that are read before it."""
    given = query if path == "flows" else {name: value for name, value in query.items() if name != "limit"}
    time.sleep(1.1)
    for _ in range(before):
        given = given | {"cursor": _document(http, path, given)["next"]}
    begun = time.monotonic()
    _document(http, path, given)
    return 1000 * (time.monotonic() - begun)
