"""A question of several statements: one read-only transaction, one time limit, errors of one kind."""

import threading
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

from sink.errors import QueryError, ReopenedError, SinkError
from sink.history import output, query
from sink.history.query import Parameters

ROWS = 200_000
"""An answer of a statement that is read whole may have so many."""


class Reading:
    """Use it as a context; errors of DuckDB leave it as SinkErrors. It owns `cursor`, and closes it at its end.

    `theirs`: who asks has written some of the SQL, so that what is wrong with it is bad input; else our own fault.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, timeout: float = 30.0, *, theirs: bool = False) -> None:
        self.cursor = cursor
        self._theirs = theirs
        self._timeout = timeout
        self._late = False
        self._timer = threading.Timer(timeout, self._give_up)
        self._timer.daemon = True

    def _give_up(self) -> None:
        self._late = True
        self.stop()

    def stop(self) -> None:
        """End what is being done. From any thread."""
        with suppress(duckdb.Error):
            self.cursor.interrupt()

    def table(self, sql: str, parameters: Parameters = None) -> pa.Table:
        """The answer of one SELECT, ROWS at most. Raises QueryError for what is more than one, or no question."""
        found = query.run(self.cursor, query.check(self.cursor, sql), parameters).to_arrow_reader(query.BATCH_ROWS)
        batches, count = [], 0
        for batch in found:
            batches.append(batch)
            count += batch.num_rows
            if count > ROWS:
                raise QueryError(f"the answer has more than {ROWS} rows", "narrow it: a time range, filters")
        return pa.Table.from_batches(batches, schema=found.schema)

    def records(self, sql: str, parameters: Parameters = None) -> list[dict[str, Any]]:
        """The same as a dict a row, times as text."""
        return [row for batch in self.table(sql, parameters).to_batches() for row in output.records(batch)]

    def rows(self, sql: str, parameters: Parameters = None) -> list[tuple[Any, ...]]:
        """The same as tuples."""
        columns = [column.to_pylist() for column in self.table(sql, parameters).columns]
        return list(zip(*columns, strict=True))

    def keep(self, name: str, sql: str) -> None:
        """Make the temporary table `name` of the answer of one SELECT."""
        query.check(self.cursor, sql)
        self.cursor.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {sql}")

    def __enter__(self) -> "Reading":
        self._timer.start()
        try:
            self.cursor.execute("BEGIN TRANSACTION READ ONLY")
        except duckdb.Error as error:
            self._end()
            raise self._explained(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if trace is not None:
            traceback.clear_frames(trace)  # who keeps the error does not keep what had been read by then
        if isinstance(error, duckdb.Error):
            raise self._explained(error) from error
        if isinstance(error, (OSError, pa.ArrowException)):  # Arrow hands on DuckDB's errors as text
            kinds = {"INTERRUPT": duckdb.InterruptException, "Interrupted": duckdb.InterruptException,
                     "Out of Memory": duckdb.OutOfMemoryException}  # fmt: skip
            meant = next((made for word, made in kinds.items() if word in str(error)), duckdb.InvalidInputException)
            raise self._explained(meant(str(error))) from error

    def _explained(self, error: duckdb.Error) -> SinkError:
        """Interrupted by anything but the timer, or cut off: the store was opened anew, or who asked has left."""
        if isinstance(error, (duckdb.InterruptException, duckdb.ConnectionException)) and not self._late:
            return ReopenedError()
        found = query.explained(error, self._timeout)
        if isinstance(found, QueryError) and not self._theirs:
            return SinkError(f"what the sink asks of itself failed: {found}", "report it")
        return found

    def _end(self) -> None:
        self._timer.cancel()
        with suppress(duckdb.Error):
            self.cursor.close()
