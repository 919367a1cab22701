"""Answers of any length as bytes that leave as they come: Arrow, CSV, JSON.

An answer that breaks off after it began (time-out, too many rows) ends without the end mark of the stream or of the
connection; in Arrow the last batch has no rows, and the error as its metadata.
"""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pyarrow as pa
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sink.api.refusing import status_of
from sink.errors import SinkError
from sink.history import output
from sink.history.query import Answer

TYPES = {"arrow": "application/vnd.apache.arrow.stream", "json": "application/json", "csv": "text/csv; charset=utf-8"}


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
            said = {"error": str(error), "hint": error.hint, "status": str(status_of(error))}
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


class Streamed(StreamingResponse):
    """A streamed answer; `done` is called once, whatever becomes of it."""

    def __init__(self, content: AsyncIterator[bytes], media_type: str, done: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self._finish = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._finish()
