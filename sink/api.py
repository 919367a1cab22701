"""The query API: HTTP on a Unix socket, 0600. Questions are answered while the store is being written.

    POST /api/v1/sql      {"sql": …, "parameters": […] or {…}, "format": "arrow" | "json" | "csv", "streamed": false}
    POST /api/v1/audit    sink.history.audit.Question as JSON
    POST /api/v1/suggest  sink.history.suggest.Question as JSON
    GET  /api/v1/status
    GET  /api/v1/ledger?since=<ns since 1970>

An error is {"error": one line, "hint": one line, "exit": exit status of docs/cli.md}. Arrow is an IPC stream.

An answer that breaks off after it began (time-out, too many rows) ends without the end mark of the stream or of the
connection; in Arrow the last batch has no rows, and the error as its metadata. `streamed`: read as it comes, with any
number of rows.
"""

import asyncio
import contextlib
import io
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from policy.document import MAX_BYTES
from policy.errors import PolicyError
from sink.errors import BusyError, QueryError, ReopenedError, SinkError
from sink.history import audit, output, suggest
from sink.history.ledger import ledger
from sink.history.query import Answer
from sink.priority import give_way
from sink.settings import SinkSettings
from sink.store import Store

log = logging.getLogger("ztlens.sink")

BODY_MAX = 1 << 20
AUDIT_MAX = 4 * MAX_BYTES
"""Two policies, whose line breaks and quotes JSON doubles."""
WAITING = 2.0
"""Times its own time a question waits for a reader: the one before it may take all of its own, and some to stop."""
REOPENING = 5.0
"""Seconds a question waits for a store that is being opened anew (after a full disk)."""
Progress = Callable[[int], None]
Q = TypeVar("Q")
_HTTP_STATUS: tuple[tuple[type[SinkError], int], ...] = ((QueryError, 400), (BusyError, 503), (SinkError, 500))
_TYPES = {"arrow": "application/vnd.apache.arrow.stream", "json": "application/json", "csv": "text/csv; charset=utf-8"}


class Question(msgspec.Struct):
    """The body of POST /api/v1/sql."""

    sql: str
    parameters: list[Any] | dict[str, Any] | None = None
    format: str = "json"
    streamed: bool = False


def _status_of(error: SinkError) -> int:
    return next(status for kind, status in _HTTP_STATUS if isinstance(error, kind))


def _refusal(error: SinkError) -> JSONResponse:
    document = {"error": str(error), "hint": error.hint, "exit": error.exit_status}
    return JSONResponse(document, _status_of(error))


def _decoded(body: bytes, kind: type[Q], what: str, hint: str) -> Q:
    """A question. Raises QueryError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QueryError(f"{what}: {error}", hint) from error


class _Pipe(io.RawIOBase):
    """What is written, to be taken out again."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """All written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def encoded(answer: Answer, form: str, broken: Callable[[SinkError], None] = lambda _: None) -> Iterator[bytes]:
    """The bytes of an answer, a chunk a batch. Raises SinkError when it breaks off, after `broken` was told."""

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from answer.batches()
        except SinkError as error:
            broken(error)
            raise

    if form == "arrow":
        pipe = _Pipe()
        writer = pa.ipc.new_stream(pa.PythonFile(pipe, "w"), answer.schema)
        try:
            for batch in batches():
                writer.write_batch(batch)
                yield pipe.take()
        except SinkError as error:
            none = pa.RecordBatch.from_pylist([], schema=answer.schema)
            said = {"error": str(error), "hint": error.hint, "status": str(_status_of(error))}
            writer.write_batch(none, custom_metadata=said)
            yield pipe.take()
            raise
        writer.close()
        yield pipe.take()
    elif form == "csv":
        first = True
        for batch in batches():
            yield output.csv(batch, header=first)
            first = False
        if first:
            yield output.csv(pa.RecordBatch.from_pylist([], schema=answer.schema), header=True)
    else:
        before = b"["
        for batch in batches():
            rows = output.json_rows(batch)
            if rows:
                yield before + b",\n".join(rows)
                before = b",\n"
        yield b"]\n" if before != b"[" else b"[]\n"


class _Streamed(StreamingResponse):
    """A streamed answer; `done` is called once, whatever becomes of it."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, done: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self._finish = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._finish()


class Api:
    """Answers over `store`; `status` gives the document of GET /api/v1/status."""

    def __init__(self, store: Store, settings: SinkSettings, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._store = store
        self._settings = settings
        self._status = status
        self._free = asyncio.Semaphore(settings.readers)
        self._threads = ThreadPoolExecutor(settings.readers + 1, thread_name_prefix="reader", initializer=give_way)
        self.counters = {"questions": 0, "answered": 0, "refused": 0, "busy": 0, "broken": 0}
        self.app = Starlette(
            routes=[
                Route("/api/v1/sql", self.sql, methods=["POST"]),
                Route("/api/v1/audit", self.audit, methods=["POST"]),
                Route("/api/v1/suggest", self.suggest, methods=["POST"]),
                Route("/api/v1/status", self.status),
                Route("/api/v1/ledger", self.ledger),
            ]
        )

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def sql(self, request: Request) -> Response:
        """One question. The reader is held until the answer's last byte is sent."""
        self.counters["questions"] += 1
        try:
            question = await self._question(request)
            await self._reader()
        except SinkError as error:
            self.counters["refused"] += 1
            return _refusal(error)
        try:
            answer = await self._run(self._ask, question)
        except BaseException as error:
            self._free.release()
            if not isinstance(error, SinkError):
                raise
            self.counters["refused"] += 1
            return _refusal(error)
        return _Streamed(self._stream(answer, question.format), _TYPES[question.format], lambda: self._done(answer))

    def _done(self, answer: Answer) -> None:
        """Also when the client left before the first byte: the thread at work stops, the reader is free again."""
        self._threads.submit(answer.close)
        self._free.release()

    async def _reader(self) -> None:
        """Wait for a free one, and take it. Raises BusyError."""
        try:
            await asyncio.wait_for(self._free.acquire(), WAITING * self._settings.query_timeout)
        except TimeoutError:
            self.counters["busy"] += 1
            raise BusyError(
                f"{self._settings.readers} questions are being answered already", "ask again in a moment"
            ) from None

    async def _body(self, request: Request, longest: int) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > longest:
                raise QueryError(f"the question is longer than {longest} bytes", "shorten it")
        return bytes(body)

    async def _question(self, request: Request) -> Question:
        body = await self._body(request, BODY_MAX)
        try:
            question = msgspec.json.decode(body, type=Question)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise QueryError(f"not a question: {error}", 'send {"sql": "SELECT …", "format": "json"}') from error
        if question.format not in _TYPES:
            raise QueryError(f"format {question.format!r}", f"one of {', '.join(_TYPES)}")
        return question

    def _ask(self, question: Question) -> Answer:
        """Asked again, for a while, if the store is being opened anew: who asked need not know."""
        until = time.monotonic() + REOPENING
        while True:
            try:
                return Answer(
                    self._store.cursor(), question.sql, question.parameters, self._settings.query_timeout,
                    rows=0 if question.streamed else self._settings.answer_rows,
                )  # fmt: skip
            except ReopenedError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)

    async def _stream(self, answer: Answer, form: str) -> AsyncIterator[bytes]:
        chunks = encoded(answer, form, self._broken)
        while (chunk := await self._run(next, chunks, None)) is not None:
            yield chunk
        self.counters["answered"] += 1

    def _broken(self, error: SinkError) -> None:
        self.counters["broken"] += 1
        log.warning("an answer broke off: %s", error)

    async def audit(self, request: Request) -> Response:
        """An audit's document."""
        return await self._judged(request, self._audit)

    async def suggest(self, request: Request) -> Response:
        """A suggestion's document."""
        return await self._judged(request, self._suggest)

    async def _judged(self, request: Request, answer: Callable[[bytes, Progress], dict[str, Any]]) -> Response:
        """What takes long. It holds a reader, and ends when who asked has left."""
        self.counters["questions"] += 1
        left = threading.Event()
        try:
            body = await self._body(request, AUDIT_MAX)
            await self._reader()
            try:
                work = asyncio.ensure_future(self._run(self._explained, answer, body, left))
                while not (await asyncio.wait([work], timeout=1.0))[0]:
                    if await request.is_disconnected():
                        left.set()
                document = await work
            finally:
                left.set()
                self._free.release()
        except SinkError as error:
            self.counters["refused"] += 1
            return _refusal(error)
        self.counters["answered"] += 1
        return JSONResponse(document)

    def _explained(
        self, answer: Callable[[bytes, Progress], dict[str, Any]], body: bytes, left: threading.Event
    ) -> dict[str, Any]:
        """Raises SinkError."""

        def progress(_: int) -> None:
            if left.is_set():
                raise BusyError("who asked has left", "ask again")

        try:
            return answer(body, progress)
        except PolicyError as error:
            raise QueryError(str(error), error.hint) from error

    def _audit(self, body: bytes, progress: Progress) -> dict[str, Any]:
        question = _decoded(body, audit.Question, "not an audit", 'send {"candidate": {"text": …}}')
        return audit.audit(self._store.cursor(), question, self._settings.audit_timeout, progress)

    def _suggest(self, body: bytes, progress: Progress) -> dict[str, Any]:
        question = _decoded(body, suggest.Question, "not a question of a suggestion", 'send {"generality": "service"}')
        return suggest.suggested(self._store.cursor(), question, self._settings.audit_timeout, progress)

    async def status(self, request: Request) -> Response:
        """The sink's counters, lag and database."""
        return JSONResponse(await self._status())

    async def ledger(self, request: Request) -> Response:
        """The ledger's document."""
        given = request.query_params.get("since")
        try:
            since = int(given) if given else None
        except ValueError:
            return _refusal(QueryError(f"since={given!r}", "ns since 1970 UTC"))
        try:
            return JSONResponse(await self._run(self._ledger, since))
        except SinkError as error:
            return _refusal(error)

    def _ledger(self, since: int | None) -> dict[str, Any]:
        cursor = self._store.cursor()
        try:
            return ledger(cursor, since)
        finally:
            cursor.close()

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def bind(path: Path) -> socket.socket:
    """A listening Unix socket, 0600 from its first moment. Raises SinkError when somebody listens there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SinkError(f"{path} is no socket", "move it away, or choose another --run-dir")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()  # left behind by a killed sink
            else:
                raise SinkError(f"another sink listens on {path}", "stop it, or choose another instance")
    server = socket.socket(socket.AF_UNIX)
    try:
        # fchmod before bind gives the file its mode at once; umask is the process's, not this thread's alone.
        os.fchmod(server.fileno(), 0o600)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(128)
    except OSError as error:
        server.close()
        raise SinkError(
            f"cannot listen on {path}: {error.strerror}", "check the directory and its permissions"
        ) from error
    return server


class Server(uvicorn.Server):
    """uvicorn that leaves signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield


class _NotOurs(logging.Filter):
    """An answer that broke off was logged in one line already."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], SinkError))


def server(app: ASGIApp) -> Server:
    """To be run with `serve(sockets=[bind(path)])`; stop it by `should_exit`."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_NotOurs())
    return Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2))
