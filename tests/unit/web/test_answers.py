"""Answers to SQL as they come from a sink: whole, longer than what is shown, broken off with a reason and without."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from web import answers
from web.errors import RefusedError
from web.source import Source


class Sink(Source):
    """Gives the same bytes to every question."""

    def __init__(self, content: bytes) -> None:
        super().__init__(Path("/nowhere"))
        self.asked: list[Any] = []
        self._content = content

    async def raw(self, path: str, body: Any, *, patience: float = 0.0) -> bytes:
        self.asked.append((path, body))
        return self._content


def stream(*columns: pa.Array, said: dict[str, str] | None = None, names: tuple[str, ...] = ("a", "a")) -> bytes:
    """An IPC stream of one batch, and of the end that says why it is one."""
    batch = pa.RecordBatch.from_arrays(list(columns), names=names[: len(columns)])
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
        if said:
            writer.write_batch(batch.slice(0, 0), custom_metadata=said)
    return bytes(out.getvalue())


async def test_columns_keep_their_places_and_types() -> None:
    sink = Sink(stream(pa.array([1, None]), pa.array(["x", "<b>"])))
    found = await answers.ask(sink, "SELECT 1", {})
    assert found == answers.Answer(("a", "a"), (0,), ((1, "x"), (None, "<b>")), more=False)
    assert sink.asked == [("sql", {"sql": "SELECT 1", "parameters": None, "format": "arrow", "limit": 501})]


async def test_more_than_is_shown() -> None:
    found = await answers.ask(Sink(stream(pa.array(range(501)))), "SELECT 1", {})
    assert (len(found.rows), found.more) == (500, True)
    found = await answers.ask(Sink(stream(pa.array(range(500)))), "SELECT 1", {})
    assert (len(found.rows), found.more) == (500, False)


async def test_the_reason_for_an_end_that_is_too_early() -> None:
    said = {"error": "the question took longer than 30 s", "hint": "narrow it", "status": "503"}
    with pytest.raises(RefusedError, match=r"longer than 30 s") as caught:
        await answers.ask(Sink(stream(pa.array([1]), said=said)), "SELECT 1", {})
    assert (caught.value.hint, caught.value.status) == ("narrow it", 503)


@pytest.mark.parametrize("kept", [0, 7, 200, -20])
async def test_an_answer_without_its_end(kept: int) -> None:
    whole = stream(pa.array(range(500)))
    with pytest.raises(RefusedError, match=r"^The answer broke off$"):
        await answers.ask(Sink(whole[:kept]), "SELECT 1", {})
