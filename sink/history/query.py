"""One question, read-only in depth: one statement, SELECT or EXPLAIN, in a read-only transaction.

Files, network and settings are closed by the database's configuration (`sink.store.database`); what looks like a SELECT
but writes (a DELETE in a CTE) is stopped by the transaction.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

from sink.errors import BusyError, QueryError, ReopenedError, SinkError

BATCH_ROWS = 65_536
_READ = {"SELECT", "EXPLAIN"}
_CLOSED = frozenset({
    "enable_logging", "disable_logging", "truncate_duckdb_logs", "write_log", "query", "query_table",
    "json_execute_serialized_sql", "checkpoint", "force_checkpoint",
})  # fmt: skip
"""Functions that act though a SELECT calls them (logging even opens a file), and those that would call them by text."""
_WORD = re.compile(
    r"""[exEX]?'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|"(?:[^"]|"")*"|(?!--|/\*)(?:(?!--|/\*)[^\s])+""", re.DOTALL
)
Parameters = list[Any] | dict[str, Any] | None


def explained(error: duckdb.Error, timeout: float) -> SinkError:
    """DuckDB's error as one line and a hint."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, duckdb.InterruptException):
        return BusyError(f"the question took longer than {timeout:g} s", "narrow it: a time range, a LIMIT")
    if isinstance(error, duckdb.OutOfMemoryException):
        return BusyError("the question needs more memory than it may have", "narrow it: a time range, fewer groups")
    if isinstance(error, duckdb.PermissionException):
        return QueryError(text, "questions read the store and nothing else")
    if "read-only mode" in text:
        return QueryError("the question would change the store", "questions only read")
    if isinstance(
        error, (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.ConnectionException)
    ):
        return SinkError(text, "see the sink's log")
    hint = next((line for line in lines[1:] if line.startswith("Did you mean")), "")
    return QueryError(text, hint or "`SELECT * FROM duckdb_views()` and `DESCRIBE verdicts` show what there is")


def check(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of a question. Raises QueryError for what is more, or is none; duckdb.Error."""
    statements = cursor.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(f"one statement a question, not {len(statements)}", "ask them one after the other")
    kind = _kind(statements[0])
    if kind not in _READ:
        raise QueryError(f"{kind} is not a question", "only SELECT and EXPLAIN: questions read, nothing else")
    lower = sql.lower()
    if kind == "EXPLAIN" or any(name in lower for name in _CLOSED):  # else no word needs a look: that takes ms
        words = _words(sql)
        closed = _CLOSED.intersection(word.strip('"').lower() for word in words)
        if closed:
            raise QueryError(f"{min(closed)} is not a question", "questions read the store and nothing else")
        if kind == "EXPLAIN":
            _check_explained(cursor, words)
    return statements[0]


def _kind(statement: duckdb.Statement) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # DuckDB 2 knows more kinds than its Python package has names for
        return "this"


def _words(sql: str) -> list[str]:
    """The tokens of `sql`. DuckDB tells where each begins; what follows it up to the next may be comments."""
    text = sql.encode()
    starts = [start for start, _ in duckdb.tokenize(sql)] + [len(text)]
    words = [text[a:b].decode().strip() for a, b in pairwise(starts)]
    return [found[0] for word in words if (found := _WORD.match(word))]


def _check_explained(cursor: duckdb.DuckDBPyConnection, words: list[str]) -> None:
    """EXPLAIN ANALYZE does what it explains: a SELECT, or it is no question."""
    rest = words[1:]
    if rest and rest[0].lower() in ("analyze", "analyse"):
        rest = rest[1:]
    if rest[:1] == ["("] and rest[1].lower() in ("format", "analyze", "analyse"):
        rest = rest[rest.index(")") + 1 :]
    inner = cursor.extract_statements(" ".join(rest))
    if len(inner) != 1 or _kind(inner[0]) != "SELECT":
        raise QueryError("EXPLAIN of anything but a SELECT is not a question", "questions read, nothing else")


def run(cursor: duckdb.DuckDBPyConnection, statement: duckdb.Statement | str, parameters: Parameters = None) -> Any:
    """What has a `description` and gives the rows as they come: DuckDB 2 would collect them all after `execute`,
    beside its memory limit, and DuckDB 1 those of a `sql` with parameters."""
    if duckdb.__version__ < "2":
        return cursor.execute(statement, parameters or [])
    return cursor.sql(statement, params=parameters or None)


class Answer:
    """The rows of a question, in batches, as they come. Close it, or use it as a context.

    A UHUGEINT (an address as a number) is given as its digits: Arrow has no such number. `schema` is of the batches;
    its names are all different, as DuckDB itself would name the columns of a table made of the question.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        sql: str,
        parameters: Parameters = None,
        timeout: float = 30.0,
        *,
        begun: bool = False,
        rows: int = 0,
        limit: int = 0,
    ) -> None:
        """Run `sql` on `cursor`, which the answer owns from now on; `begun`: in its transaction. Raises SinkError.

        `rows` is how many it may have, 0: any number; `limit`: after so many it ends, 0: where it ends itself.
        """
        self._cursor = cursor
        self._timeout = timeout
        self._most, self._limit, self._count = rows, limit, 0
        self._working = threading.Lock()
        self._closed = False
        self._late = False
        self._timer = threading.Timer(timeout, self._give_up)
        self._timer.daemon = True
        try:
            statement = check(cursor, sql)
            if not begun:
                cursor.execute("BEGIN TRANSACTION READ ONLY")
            self._timer.start()
            found = run(cursor, statement, parameters)
            self._numbers = [i for i, column in enumerate(found.description) if str(column[1]) == "UHUGEINT"]
            self._reader: pa.RecordBatchReader = found.to_arrow_reader(BATCH_ROWS)
            self.schema = self._named(self._reader.schema)
            self._first = self._next()
        except duckdb.Error as error:
            self.close()
            raise self._explained(error) from error
        except (OSError, pa.ArrowException) as error:
            self.close()
            raise self._broken(error) from error
        except BaseException:
            self.close()
            raise

    def _named(self, schema: pa.Schema) -> pa.Schema:
        for i in self._numbers:
            schema = schema.set(i, schema.field(i).with_type(pa.string()))
        named = [field.with_name(name) for field, name in zip(schema, _unique(schema.names), strict=True)]
        return pa.schema(named, schema.metadata)

    def _next(self) -> pa.RecordBatch | None:
        with self._working:
            if self._closed or (self._limit and self._count >= self._limit):
                return None
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return None
        if self._limit:
            batch = batch.slice(0, self._limit - self._count)
        self._count += batch.num_rows
        if self._most and self._count > self._most:
            raise QueryError(
                f"the answer has more than {self._most} rows (the sink's answer_rows)", "add a LIMIT, or sum up"
            )
        columns = batch.columns
        for i in self._numbers:
            columns[i] = _digits(columns[i])
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _broken(self, error: Exception) -> SinkError:
        """Arrow hands on DuckDB's errors as text."""
        text = str(error)
        kinds = {"INTERRUPT": duckdb.InterruptException, "Interrupted": duckdb.InterruptException,
                 "Out of Memory": duckdb.OutOfMemoryException}  # fmt: skip
        for word, kind in kinds.items():
            if word in text:
                return self._explained(kind(text))
        return self._explained(duckdb.InvalidInputException(text))

    def _explained(self, error: duckdb.Error) -> SinkError:
        """Interrupted by anything but the timer, or cut off: the store closed its connections to open the file anew."""
        if isinstance(error, (duckdb.InterruptException, duckdb.ConnectionException)) and not self._late:
            return ReopenedError()
        return explained(error, self._timeout)

    def _give_up(self) -> None:
        self._late = True
        with suppress(duckdb.Error):  # closed a moment ago
            self._cursor.interrupt()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows; blocks while DuckDB works. Raises SinkError."""
        batch, self._first = self._first, None
        while batch is not None:
            yield batch
            try:
                batch = self._next()
            except duckdb.Error as error:
                raise self._explained(error) from error
            except (OSError, pa.ArrowException) as error:
                raise self._broken(error) from error

    def close(self) -> None:
        """Stop the work, wherever it is being done, and end the transaction. Idempotent; waits for the work to stop."""
        self._timer.cancel()
        self._closed = True
        with suppress(duckdb.Error):
            self._cursor.interrupt()
        with self._working, suppress(duckdb.Error):
            self._cursor.close()

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unique(names: list[str]) -> list[str]:
    """`a`, `a_1`, `a_2` for what is `a` three times, upper or lower case: DuckDB's own way, so that an answer kept as
    Parquet has the names that `CREATE TABLE … AS` gives."""
    count: dict[str, int] = {}
    out = []
    for name in names:
        unique = name
        while unique.lower() in count:
            unique = f"{name}_{count[name.lower()]}"
            count[name.lower()] += 1
        count[unique.lower()] = 1
        out.append(unique)
    return out


def _digits(column: pa.Array) -> pa.Array:
    """UHUGEINT comes as decimal128, right in its bits alone: read these as unsigned and write the digits."""
    raw = column.buffers()[1]
    start = column.offset * 16
    data = memoryview(raw)[start : start + len(column) * 16] if raw else b""
    numbers = [str(int.from_bytes(data[i : i + 16], "little")) for i in range(0, len(data), 16)]
    if column.null_count:
        valid = column.is_valid().to_pylist()
        return pa.array([number if ok else None for number, ok in zip(numbers, valid, strict=True)], pa.string())
    return pa.array(numbers, pa.string())
