"""`History`: how everybody else asks the store, the same whether a sink serves it or the file is opened here."""

import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import httpx
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from schemas import answers
from sink.errors import BusyError, QueryError, SinkError
from sink.history import ends
from sink.history.exported import Exported
from sink.history.ledger import ledger, rfc3339
from sink.history.query import Answer, Parameters
from sink.history.recent import Place, recent
from sink.store.database import open_reader

if TYPE_CHECKING:
    from sink.history import suggest
    from sink.history.audit import Document, Question

_WHOLE = pa.decimal128(38, 0)
_LARGEST = (1 << 63) - 1
_ERRORS: dict[int, type[SinkError]] = {400: QueryError, 503: BusyError}


@dataclass(frozen=True)
class Batches:
    """An answer as it comes: its schema, known before the first batch, and its batches."""

    schema: pa.Schema
    rows: Iterator[pa.RecordBatch]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.rows


class _Source(Protocol):
    def batches(self, sql: str, parameters: Parameters, streamed: bool) -> AbstractContextManager["Batches"]: ...
    def status(self) -> dict[str, Any]: ...
    def ledger(self, since: int | None) -> dict[str, Any]: ...
    def audit(self, question: "Question") -> "Document": ...
    def suggest(self, question: "suggest.Question") -> "Document": ...
    def close(self) -> None: ...


class _Socket:
    """A sink's API."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        # No TLS on a Unix socket: loading the certificates for it takes ten times as long as most questions.
        transport = httpx.HTTPTransport(uds=str(path), verify=False)
        self._http = httpx.Client(transport=transport, base_url="http://sink", timeout=timeout, trust_env=False)

    @contextmanager
    def _answer(self, method: str, url: str, **how: Any) -> Iterator[httpx.Response]:
        """An answer of status 200, to be read inside the context, where errors of reading are SinkErrors too."""
        try:
            with self._http.stream(method, url, **how) as answer:
                if answer.status_code != 200:
                    answer.read()
                    self._refused(answer)
                yield answer
        except (httpx.ConnectError, FileNotFoundError) as error:
            raise SinkError(
                f"no sink answers on {self._path}", "start one with `ztlens up` or `ztlens sink`"
            ) from error
        except httpx.TimeoutException as error:
            raise BusyError(f"the sink on {self._path} does not answer", "see its log") from error
        except httpx.HTTPError as error:
            raise _broken_off() from error

    def _refused(self, answer: httpx.Response) -> None:
        try:
            given = answer.json()
            kind = _ERRORS.get(answer.status_code, SinkError)
            raise kind(given["error"], given["hint"])
        except (ValueError, KeyError, TypeError) as error:
            raise SinkError(f"the sink answered with HTTP status {answer.status_code}", "see its log") from error

    def _document(self, url: str, **query: Any) -> dict[str, Any]:
        with self._answer("GET", url, params=query) as answer:
            out: dict[str, Any] = json.loads(answer.read())
            return out

    @contextmanager
    def batches(self, sql: str, parameters: Parameters, streamed: bool) -> Iterator[Batches]:
        question = {"sql": sql, "parameters": parameters, "format": "arrow", "streamed": streamed}
        body = json.dumps(question, default=str)
        with self._answer("POST", "/api/v1/sql", content=body) as answer:
            read = _stream(answer.iter_bytes())
            yield Batches(next(read), read)

    def status(self) -> dict[str, Any]:
        return self._document("/api/v1/status")

    def ledger(self, since: int | None) -> dict[str, Any]:
        return self._document("/api/v1/ledger", **({} if since is None else {"since": since}))

    def audit(self, question: "Question") -> "Document":
        return self._asked("/api/v1/audit", question)

    def suggest(self, question: "suggest.Question") -> "Document":
        return self._asked("/api/v1/suggest", question)

    def _asked(self, url: str, question: msgspec.Struct) -> "Document":
        patience = httpx.Timeout(10.0, read=None)  # the sink knows how long it may take
        body = msgspec.json.encode(question)
        with self._answer("POST", url, content=body, timeout=patience) as answer:
            out: dict[str, Any] = json.loads(answer.read())
            return out

    def close(self) -> None:
        self._http.close()


def _broken_off() -> BusyError:
    return BusyError("the sink broke the answer off", "narrow the question: a time range, a LIMIT")


def _stream(chunks: Iterator[bytes]) -> Iterator[Any]:
    """The schema, then the batches of an IPC stream. Raises SinkError for one that ends early."""
    try:
        yield from answers.stream(pa.PythonFile(io.BufferedReader(_Chunks(chunks), 1 << 20), "r"))
    except answers.BrokenOffError as error:
        raise _ERRORS.get(error.status, SinkError)(str(error), error.hint) from error
    except (pa.ArrowException, OSError) as error:
        raise _broken_off() from error


class _Chunks(io.RawIOBase):
    """Pieces of bytes as a file to read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n


class _Database:
    """A database of this process: a file no sink owns, or one in memory. Closes only what it opened."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path | None, timeout: float) -> None:
        self._connection = connection
        self._path = path
        self._timeout = timeout

    @contextmanager
    def batches(self, sql: str, parameters: Parameters, streamed: bool) -> Iterator[Batches]:
        with Answer(self._connection.cursor(), sql, parameters, self._timeout) as answer:
            yield Batches(answer.schema, answer.batches())

    def status(self) -> dict[str, Any]:
        count = self._connection.cursor().execute("SELECT count(*), epoch_ns(max(time)) FROM store.verdicts").fetchone()
        rows, newest = count or (0, None)
        size = self._path.stat().st_size if self._path else 0
        return {
            "running": False,
            "database": {"path": str(self._path or ""), "bytes": size, "rows": rows, "newest": rfc3339(newest)},
        }

    def ledger(self, since: int | None) -> dict[str, Any]:
        return ledger(self._connection.cursor(), since)

    def audit(self, question: "Question") -> "Document":
        from sink.history.audit import audit  # noqa: PLC0415 (the policy engine: most questions need none)

        return audit(self._connection.cursor(), question, self._timeout)

    def suggest(self, question: "suggest.Question") -> "Document":
        from sink.history.suggest import suggested  # noqa: PLC0415

        return suggested(self._connection.cursor(), question, self._timeout)

    def close(self) -> None:
        if self._path:
            self._connection.close()


class _Export(_Database):
    """An exported directory."""

    def __init__(self, directory: Path, timeout: float) -> None:
        self._exported = Exported(directory)
        super().__init__(self._exported.connection, None, timeout)

    def status(self) -> dict[str, Any]:
        manifest = self._exported.manifest
        size = sum(file.bytes for file in manifest.files)
        held = super().status()["database"]
        return {"running": False, "database": held | {"path": str(self._exported.directory), "bytes": size}}

    def close(self) -> None:
        self._exported.close()


class History:
    """Questions to the store. Close it, or use it as a context. Every method raises SinkError."""

    def __init__(self, source: _Source) -> None:
        self._source = source

    @classmethod
    def over_socket(cls, path: Path, timeout: float = 120.0) -> "History":
        """Ask the sink that listens on `path`."""
        return cls(_Socket(path, timeout))

    @classmethod
    def on_file(cls, path: Path, timeout: float = 600.0) -> "History":
        """Open the file read-only. Raises SinkError when it is missing, in use or of another version."""
        return cls(_Database(open_reader(path), path, timeout))

    @classmethod
    def on_store(cls, store: Any, timeout: float = 30.0) -> "History":
        """Ask a Store of this process, such as `memory_store()`."""
        return cls(_Database(store.connection, None, timeout))

    @classmethod
    def on_export(cls, directory: Path, timeout: float = 600.0) -> "History":
        """Read what `ztlens export` or `--archive` wrote. Raises ExportError (exit status 2)."""
        return cls(_Export(directory, timeout))

    @classmethod
    def find(cls, run_dir: Path, database: Path) -> "History":
        """The sink of `run_dir` if one answers, else the file. Raises SinkError (exit status 3) if there is neither."""
        socket = run_dir / "sink.sock"
        if socket.exists():
            served = cls.over_socket(socket)
            with suppress(SinkError):
                served.status()
                return served
            served.close()
        return cls.on_file(database)

    def sql(self, sql: str, parameters: Parameters = None) -> pa.Table:
        """The answer. Sums (DuckDB's HUGEINT) come as int64 where they fit, `src_addr` and `dst_addr` as digits."""
        with self._source.batches(sql, parameters, False) as answer:
            return _narrow(pa.Table.from_batches(list(answer), schema=answer.schema))

    def batches(self, sql: str, parameters: Parameters = None) -> AbstractContextManager[Batches]:
        """The answer batch by batch, in memory bounded whatever it is long: `with history.batches(…) as rows:`.

        Types are DuckDB's own: nothing is narrowed. A sink gives an answer its `query_timeout`, so read on.
        """
        return self._source.batches(sql, parameters, True)

    def recent(
        self,
        where: str = "true",
        parameters: Parameters = None,
        *,
        since: int | None = None,
        until: int | None = None,
        before: Place | None = None,
        limit: int = 20,
        rows: str = ends.TABLE,
    ) -> pa.Table:
        """A page of verdicts: the last `limit` rows of the view in [since, until), ns since 1970 UTC, that satisfy
        the predicate `where` and stand before the place `before`; oldest first. See sink.history.recent, for `rows`
        sink.history.ends."""
        return recent(self.sql, where, parameters, since=since, until=until, before=before, limit=limit, rows=rows)

    def status(self) -> dict[str, Any]:
        """What the sink says of itself; of a file `running` is False and `database` what it holds."""
        return self._source.status()

    def ledger(self, since: int | None = None) -> dict[str, Any]:
        """The document of `ztlens ledger -o json`; `since` in ns since 1970 UTC."""
        return self._source.ledger(since)

    def audit(self, question: "Question") -> "Document":
        """The document of `ztlens audit -o json`. Raises PolicyError, too; a sink's is a QueryError."""
        return self._source.audit(question)

    def suggest(self, question: "suggest.Question") -> "Document":
        """The document of `ztlens policy suggest -o json`. Raises PolicyError, too; a sink's is a QueryError."""
        return self._source.suggest(question)

    def close(self) -> None:
        """Let go of socket or file."""
        self._source.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _narrow(table: pa.Table) -> pa.Table:
    """Whole decimals of 38 digits (DuckDB's sums) as int64 where every value fits."""
    for i, field in enumerate(table.schema):
        if field.type != _WHOLE:
            continue
        column = table.column(i)
        bounds = pc.min_max(column).as_py()
        if bounds["max"] is None or (bounds["max"] <= _LARGEST and bounds["min"] >= -_LARGEST):
            table = table.set_column(i, field.with_type(pa.int64()), column.cast(pa.int64()))
    return table
