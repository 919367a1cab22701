"""Verdicts to viewers as they are stored: each commit is looked at once for all, in SQL, and only for viewers' sake.

A commit's rows are there as an Arrow table already. Of viewers with the same words the first asks, all get the answer.
Looking takes at most a sixth of the time: what comes faster, what is more than a viewer is sent at a time, and what a
viewer does not read in time is left out, counted, and told to it. History has it all.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from sink.api.readers import again
from sink.errors import BusyError, SinkError
from sink.history import output
from sink.history.reading import Reading
from sink.history.records import VERDICT
from sink.history.views import verdicts_of
from sink.priority import give_way
from sink.store import Store

log = logging.getLogger("ztlens.sink")

VIEWERS = 100
AT_ONCE = 500
"""Verdicts a viewer is sent of one look."""
QUEUE = 16
"""Looks that wait for a viewer to read them."""
BACKLOG = 500_000
"""Verdicts that wait to be looked at."""
REST = 5.0
"""Times as much time as a look took of a CPU nothing is looked at after it …"""
REST_MOST = 5.0
"""… but no more seconds than this."""
PATIENCE = 5.0
"""Seconds that one viewer's words may take for one look."""
BEAT = 15.0
"""Seconds of quiet after which a comment is sent, to find out who has left."""
_SHOWN = ", ".join(VERDICT)


class Viewer:
    """One who follows. `words` is the predicate over the view `verdicts`."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.left_out: dict[str, int] = {}
        """Reason → verdicts, not told yet."""
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)

    def give(self, rows: bytes, count: int) -> int:
        """Some verdicts, as a JSON array; how many of them were left out."""
        try:
            self._queue.put_nowait(_event("verdicts", rows))
        except asyncio.QueueFull:
            self.leave_out("slow", count)
            return count
        return 0

    def leave_out(self, reason: str, count: int) -> None:
        """Verdicts that it does not get."""
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count

    def end(self, last: bytes | None = None) -> None:
        """No more, after `last`."""
        while True:
            with contextlib.suppress(asyncio.QueueFull):
                if last is not None:
                    self._queue.put_nowait(last)
                    last = None
                self._queue.put_nowait(None)
                return
            self._queue.get_nowait()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, until the sink ends it."""
        yield b": ztlens\n\n"
        while True:
            try:
                event = await asyncio.wait_for(self._queue.get(), BEAT)
            except TimeoutError:
                event = b": \n\n"
            if event is None:
                return
            if self.left_out:
                dropped, self.left_out = self.left_out, {}
                for reason, count in dropped.items():
                    yield _event("dropped", msgspec.json.encode({"count": count, "reason": reason}))
            yield event


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


class _Found(NamedTuple):
    """Verdicts as a JSON array, how many they are, how many more there were, and why those are left out."""

    rows: bytes
    told: int
    more: int
    why: str


class Live:
    """All viewers of a store. Its methods are the event loop's, but for `_stored`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._viewers: set[Viewer] = set()
        self._waiting: list[pa.Table] = []
        self._rows = 0
        self._came = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live", initializer=give_way)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sent = self._left_out = 0

    @property
    def counters(self) -> dict[str, int]:
        """Viewers now, verdicts sent to them, and left out, of all time."""
        return {"viewers": len(self._viewers), "live_sent": self._sent, "live_left_out": self._left_out}

    def join(self, words: str) -> Viewer:
        """A viewer more. Raises BusyError."""
        if len(self._viewers) >= VIEWERS:
            raise BusyError(f"{VIEWERS} viewers follow already", "close one of them")
        viewer = Viewer(words)
        self._viewers.add(viewer)
        if self._looking is None:
            self._loop = asyncio.get_running_loop()
            self._looking = asyncio.create_task(self._look())
            self._store.listener = self._stored
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """It is gone. With the last one nothing is looked at any more."""
        self._viewers.discard(viewer)
        if not self._viewers:
            self._store.listener = None
            if self._looking is not None:
                self._looking.cancel()
            self._looking, self._waiting, self._rows = None, [], 0

    def _stored(self, rows: pa.Table) -> None:
        """The writer's thread has committed these."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._take, rows)

    def _take(self, rows: pa.Table) -> None:
        if not self._viewers:
            return
        self._waiting.append(rows)
        self._rows += rows.num_rows
        while self._rows > BACKLOG and len(self._waiting) > 1:
            late = self._waiting.pop(0).num_rows
            self._rows -= late
            for viewer in self._viewers:
                viewer.leave_out("busy", late)
            self._left_out += late * len(self._viewers)
        self._came.set()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            self._came.clear()
            waiting, self._waiting, self._rows = self._waiting, [], 0
            by_words: dict[str, list[Viewer]] = {}
            for viewer in self._viewers:
                by_words.setdefault(viewer.words, []).append(viewer)
            if not waiting or not by_words:
                continue
            found, seconds = await loop.run_in_executor(self._thread, self._asked, waiting, list(by_words))
            for words, answer in found.items():
                self._give(by_words[words], answer)
            await asyncio.sleep(min(REST_MOST, REST * seconds))

    def _give(self, viewers: list[Viewer], answer: _Found | SinkError) -> None:
        for viewer in viewers:
            if isinstance(answer, SinkError):
                said = {"error": str(answer), "hint": answer.hint, "exit": answer.exit_status}
                viewer.end(_event("error", msgspec.json.encode(said)))
                continue
            rows, count, more, why = answer
            viewer.leave_out(why, more)
            lost = viewer.give(rows, count) if count else 0
            self._sent += count - lost
            self._left_out += more + lost

    def _asked(self, waiting: list[pa.Table], words: list[str]) -> tuple[dict[str, _Found | SinkError], float]:
        """What was found for each predicate; and the seconds of a CPU that it took: on a busy machine a thread that
        gives way waits for most of its time."""
        begun = time.thread_time()
        out: dict[str, _Found | SinkError] = {}
        for each in words:

            def once(each: str = each) -> _Found:
                rows = pa.concat_tables(waiting)
                with Reading(self._store.cursor(), PATIENCE, theirs=True) as reading:
                    return _matching(reading, rows, each)

            try:
                out[each] = again(self._store, once)
            except SinkError as error:
                out[each] = error
            except Exception:  # of memory, or nobody foresaw it: who follows goes on with the next look
                log.exception("live verdicts that could not be looked at are left out")
                begun -= REST_MOST  # not one after the other
                out[each] = _Found(b"[]", 0, sum(rows.num_rows for rows in waiting), "failed")
        return out, time.thread_time() - begun

    def close(self) -> None:
        """Every stream ends."""
        for viewer in self._viewers:
            viewer.end()
        self._store.listener = None
        if self._looking is not None:
            self._looking.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _matching(reading: Reading, rows: pa.Table, words: str) -> _Found:
    reading.cursor.register("live_rows", rows)
    view = verdicts_of("live_rows", ", CASE WHEN v.flow_id <> 0 THEN v.ring || '-' || v.flow_id END AS flow")
    found = reading.table(
        f"""SELECT * FROM (SELECT flow, {_SHOWN} FROM ({view}) WHERE {words} LIMIT {AT_ONCE + 1})
        ORDER BY time, node, ring, position"""
    )
    count = found.num_rows
    if count > AT_ONCE:
        found, count = found.slice(0, AT_ONCE), rows.num_rows
        if words != "TRUE":
            kept = verdicts_of("live_rows", spoken=words)
            ((count,),) = reading.rows(f"SELECT count(*) FROM ({kept}) WHERE {words}")
    told: list[Any] = [row for batch in found.to_batches() for row in output.json_rows(batch)]
    return _Found(b"[" + b",".join(told) + b"]", len(told), count - len(told), "rate")
