"""`--archive DIR`: what retention is to delete is exported first, by whole hours, and only what is safe there goes.

The export reads like any question, in a thread beside the writer. An archive that cannot be written keeps everything in
the store: retention deletes nothing more until it is writable again, and `status` says so.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sink.client import Batches
from sink.errors import SinkError
from sink.history.export import export
from sink.history.pairs import HOUR
from sink.history.query import Answer
from sink.store.store import Store

log = logging.getLogger("ztlens.sink")

PIECE = 1 << 17
"""Rows sorted at a time: about 40 MB; the sink is to stay small."""
TIMEOUT = 600.0
"""Seconds a question of the export may take: it is read as fast as it is written."""


class _Asked:
    """A store as the source of an export."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @contextmanager
    def batches(self, sql: str, parameters: Any = None) -> Iterator[Batches]:
        with Answer(self._store.cursor(), sql, parameters, TIMEOUT) as answer:
            yield Batches(answer.schema, answer.batches())

    def sql(self, sql: str, parameters: Any = None) -> pa.Table:
        with self.batches(sql, parameters) as answer:
            return pa.Table.from_batches(list(answer), schema=answer.schema)


class Archive:
    """The directory, and what of the store is known to be in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trouble = ""
        self.counters = {"exports": 0, "failed": 0, "files": 0, "rows": 0, "bytes": 0}
        self._held: dict[tuple[str, int], int] = {}

    def fill(self, store: Store, until: int) -> bool:
        """Export everything before `until` (ns since 1970, the start of an hour) that is not there yet.

        For any thread. False, with `trouble` set and counted, when that cannot be done.
        """
        try:
            done = export(_Asked(store), self.directory, until=until, piece=PIECE)
        except (SinkError, OSError, duckdb.Error, pa.ArrowException) as error:
            text = str(error.strerror or error) if isinstance(error, OSError) else str(error)
            if isinstance(error, OSError) and error.filename:
                text = f"{error.filename}: {text}"
            text = text.splitlines()[0]
            if not self.trouble:
                log.error("the archive cannot be written, so nothing is deleted: %s", text)
            self.trouble = f"archive {self.directory}: {text}; nothing is deleted until it can be written"
            self.counters["failed"] += 1
            self._held = {}
            return False
        if self.trouble:
            log.info("the archive is written again")
        self.trouble = ""
        self._held = done.seen
        for name, count in (("exports", 1), ("files", done.files), ("rows", done.rows), ("bytes", done.bytes)):
            self.counters[name] += count
        return True

    def holds(self, store: Store, table: str, before: int) -> str:
        """A condition on `time`: the hours of a table before `before` all of whose rows are in the archive.

        For the writer's thread: a row that came since the export changes the hour's count, and keeps it for next time.
        """
        found = store.connection.execute(
            f"SELECT epoch_ns(time) // {HOUR} * {HOUR} AS hour, count(*) FROM store.{table}"
            f" WHERE time < make_timestamp_ns({max(0, before // HOUR * HOUR)}) GROUP BY hour ORDER BY hour"
        ).fetchall()
        hours = [hour for hour, rows in found if self._held.get((table, hour)) == rows]
        spans: list[list[int]] = []
        for hour in hours:
            if spans and spans[-1][1] == hour:
                spans[-1][1] = hour + HOUR
            else:
                spans.append([hour, hour + HOUR])
        return (
            " OR ".join(
                f"(time >= make_timestamp_ns({first}) AND time < make_timestamp_ns({past}))" for first, past in spans
            )
            or "false"
        )
