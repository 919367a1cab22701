"""What Prometheus reads of a sink (the catalogue is schemas/metrics.py).

`run` is a task beside the sink's own: it takes the status every few seconds, and figures of the history less often, in
a thread that gives way. A scrape runs in a thread of its own and reads what was taken: it waits for nobody.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.exposition import Endpoint, Page, histogram
from schemas.metrics import NODE_TOLD, NODES_MOST
from sink.errors import SinkError
from sink.history import figures
from sink.priority import give_way
from sink.store import rollup

if TYPE_CHECKING:
    from sink.service import Sink

log = logging.getLogger("ztlens.sink")

REFRESH = 5.0
"""Seconds between two looks at the status."""
FIGURES_EVERY = 15.0
"""Seconds between two looks at the history, …"""
FIGURES_SHARE = 0.05
"""… which may take no more of the time than this."""


@dataclass
class Figures:
    """Of the history at one moment; `taken` by time.monotonic()."""

    taken: float
    books: dict[str, figures.Books]
    idle: dict[str, dict[str, int]]


@dataclass
class Ranges:
    """Of a node's rings: events."""

    gaps: int = 0
    waiting: int = 0  # stored and not summed up


@dataclass
class Seen:
    """At one look."""

    status: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, Ranges] = field(default_factory=dict)


class Metrics:
    """Of one sink. `listen` and `begin` before it reads anything, then `run`."""

    def __init__(self, sink: "Sink") -> None:
        self._sink = sink
        self._began = time.monotonic()
        self._seconds = histogram("ztlens_query_seconds")
        self._endpoint = Endpoint(self._fill, self._seconds)
        self._results: Counter[str] = Counter({"answered": 0, "refused": 0, "broken": 0})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="figures", initializer=give_way)
        self._pairs: dict[str, np.ndarray] = {}
        self._new_pairs: Counter[str] = Counter()
        self._figures: Figures | None = None
        self._seen: Seen | None = None

    def listen(self, address: str) -> None:
        """Answer scrapes at HOST:PORT. Raises SinkError."""
        try:
            self._endpoint.listen(address)
        except OSError as error:
            raise SinkError(
                f"metrics: cannot listen on {address}: {error.strerror or error}", "name another one with --metrics"
            ) from error

    async def begin(self) -> None:
        """What was denied before now is not new."""
        with contextlib.suppress(SinkError, duckdb.Error):
            self._pairs = await self._ask(figures.denied_pairs)

    async def run(self) -> None:
        """Look, for ever."""
        due, said = 0.0, ""
        while True:
            began = time.monotonic()
            try:
                self._seen = await self._look()
                if began >= due:
                    await self._take_figures()
            except Exception as error:  # what only tells must not end what stores
                line = (str(error) or type(error).__name__).splitlines()[0]
                if line != said:
                    log.warning("metrics: %s", line)
                said = line
            if began >= due:
                due = time.monotonic() + max(FIGURES_EVERY, (time.monotonic() - began) / FIGURES_SHARE)
            await asyncio.sleep(REFRESH)

    async def _ask(self, work: Any) -> Any:
        def asked() -> Any:
            with self._sink.store.cursor() as cursor:
                return work(cursor)

        return await asyncio.get_running_loop().run_in_executor(self._thread, asked)

    async def _look(self) -> Seen:
        status = await self._sink.status()
        ranges: dict[str, Ranges] = await self._sink.write(self._ranges)
        return Seen(status, ranges)

    def _ranges(self) -> dict[str, Ranges]:
        """In the writer's thread, whose they are."""
        found: dict[str, Ranges] = {}
        for ring in self._sink.store.state.rings.values():
            of_node = found.setdefault(ring.node, Ranges())
            of_node.gaps += sum(past - first for first, past in ring.gaps) // ring.stride
            of_node.waiting += sum(past - first for first, past in rollup.waiting(ring)) // ring.stride
        return found

    async def _take_figures(self) -> None:
        """Raises SinkError, duckdb.Error."""
        running = [name for name, node in self._nodes().items() if node["state"] != "closed"]
        books = await self._ask(figures.books)
        idle = await self._ask(lambda cursor: figures.idle_rules(cursor, running))
        pairs = await self._ask(figures.denied_pairs)
        for node, now in pairs.items():
            self._new_pairs[node] += figures.new_pairs(self._pairs.get(node, now[:0]), now)
        self._pairs = pairs
        for node, of_node in self._known().items():
            if of_node["heard_seconds"] >= NODE_TOLD:
                self._new_pairs.pop(node, None)  # should it come back, its old ones are not new again
        self._figures = Figures(time.monotonic(), books, idle)

    def _known(self) -> dict[str, dict[str, Any]]:
        return self._seen.status["nodes"] if self._seen is not None else {}

    def _nodes(self) -> dict[str, dict[str, Any]]:
        """Those heard of within NODE_TOLD, the last ones, at most NODES_MOST."""
        recent = [item for item in self._known().items() if item[1]["heard_seconds"] < NODE_TOLD]
        return dict(sorted(recent, key=lambda item: item[1]["heard_seconds"])[:NODES_MOST])

    def close(self) -> None:
        """The end."""
        self._endpoint.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ── questions ───────────────────────────────────────────────────────────────────────────────────────────────

    def measured(self, app: Starlette) -> ASGIApp:
        """`app`, its answers counted and timed by the first word of their path."""
        kinds = {parts[3] for route in app.routes if len(parts := getattr(route, "path", "").split("/")) > 3}

        async def timed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began, status, whole, endless = time.monotonic(), 0, False, False

            async def sent(message: Message) -> None:
                nonlocal status, whole, endless
                if message["type"] == "http.response.start":
                    status = message["status"]
                    endless = (b"content-type", b"text/event-stream") in [
                        (name, value.partition(b";")[0]) for name, value in message.get("headers", [])
                    ]
                elif message["type"] == "http.response.body":
                    whole = not message.get("more_body", False)
                await send(message)

            try:
                await app(scope, receive, sent)
            finally:
                if not endless:
                    word = (scope["path"].split("/") + [""] * 4)[3]
                    self._seconds.labels(word if word in kinds else "other").observe(time.monotonic() - began)
                    self._results["refused" if status >= 400 else "answered" if whole else "broken"] += 1

        return timed

    # ── a scrape ────────────────────────────────────────────────────────────────────────────────────────────────

    def _fill(self, page: Page) -> None:
        for result, n in self._results.copy().items():
            page.put("ztlens_queries_total", n, result)
        counters = self._sink.store.counters
        for reason, n in counters.again.copy().items():
            page.put("ztlens_queries_again_total", n, reason)
        for of, stage in (
            ("messages", counters.messages), ("verdicts", counters.verdicts), ("records", counters.records)
        ):  # fmt: skip
            page.put("ztlens_sink_received_total", stage.received, of)
            page.put("ztlens_sink_stored_total", stage.stored, of)
            page.put("ztlens_sink_failed_total", stage.failed, of)
            for reason, n in stage.dropped.copy().items():
                page.put("ztlens_sink_dropped_total", n, of, reason)
        page.put("ztlens_lost_events_total", counters.gaps, "store", "gap")
        now, commit, taken = time.monotonic(), self._sink.last_commit, self._figures
        page.put("ztlens_commit_age_seconds", now - (self._began if commit is None else commit))
        page.put("ztlens_figures_age_seconds", now - (self._began if taken is None else taken.taken))
        if self._seen is not None:
            self._of_status(page, self._seen)
        if taken is not None:
            self._of_history(page, taken)

    def _of_status(self, page: Page, seen: Seen) -> None:
        status = seen.status
        page.put("ztlens_nats_connected", status["nats"]["connected"])
        for stream, entry in status["streams"].items():
            if "lag" in entry:
                page.put("ztlens_stream_lag_messages", entry["lag"], stream)
                page.put("ztlens_stream_lag_ratio", entry["lag_ratio"], stream)
        page.put("ztlens_database_bytes", status["database"]["bytes"], "database")
        page.put("ztlens_database_bytes", status["database"]["wal_bytes"], "wal")
        for node, of_node in self._nodes().items():
            page.put("ztlens_node_silent", of_node["state"] == "silent", node)
            page.put("ztlens_node_heard_seconds", of_node["heard_seconds"], node)
            ranges = seen.ranges.get(node, Ranges())
            page.put("ztlens_gap_events", ranges.gaps, node)
            page.put("ztlens_rollup_lag_events", ranges.waiting, node)

    def _of_history(self, page: Page, of: Figures) -> None:
        now = time.time_ns()
        for node in self._nodes():
            page.put("ztlens_denied_pairs_total", self._new_pairs[node], node)
            books = of.books.get(node)
            if books is not None:
                page.put("ztlens_ledger_balanced", books.balanced, node)
                for account, n in books.packets.items():
                    page.put("ztlens_ledger_packets", n, node, account)
                for account, n in books.events.items():
                    page.put("ztlens_ledger_events", n, node, account)
            for rule, last in of.idle.get(node, {}).items():
                page.put("ztlens_rule_idle_seconds", max(0.0, (now - last) / 1e9), node, rule)
