"""Pages of a list: one after the other, never of another question, and not lost when something else changes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.until import until
from web.errors import AwayError, RefusedError
from web.live import Live
from web.page import Page, View
from web.paged import Paged
from web.settings import WebSettings
from web.source import Query, Source


class Rows(Source):
    """A sink with 30 rows a word, ten a page. `pause`: answers wait for it."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))
        self.asked: list[Any] = []
        self.pause = asyncio.Event()
        self.pause.set()
        self.error: Exception | None = None

    async def ask(self, path: str, query: Query | None = None) -> Any:
        question = dict(query or {})
        self.asked.append(question)
        await self.pause.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        word, at = question["word"], int(str(question.get("cursor", "0")))
        rows = [{"name": f"{word}{i}"} for i in range(at, at + 10)]
        return {"rows": rows, "next": str(at + 10) if at < 20 else None}


class Listed:
    """A page that lists `a/rows` by the word in its address, and the names that it shows."""

    def __init__(self, wanted: str = "") -> None:
        self.source = Rows()
        settings = WebSettings(socket=Path("s"), run_dir=Path("r"), state=Path("t"))
        view = View("list", "List", lambda _: None, filters=True)
        self.page = Page(view, [("word", "a")], self.source, Live(Path("s")), settings)
        self.names: list[str] = []
        self.paged = Paged(
            self.page, "a/rows", lambda: {"word": self.page.get("word")}, self._show, every=0,
            enough=lambda rows: not wanted or any(row["name"] == wanted for row in rows),
        )  # fmt: skip

    def _show(self) -> None:
        self.names = [row["name"] for row in self.paged.rows]

    async def shows(self, word: str, count: int) -> None:
        await until(lambda: self.names == [f"{word}{i}" for i in range(count)], f"{count} of {word}")


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Page, "address", lambda self: "/")


async def test_more_comes_below_and_what_is_new_no_longer_pushes_it_away() -> None:
    listed = Listed()
    await listed.shows("a", 10)
    listed.page._beat("news")
    await until(lambda: len(listed.source.asked) == 2, "another look")
    await listed.paged.more()
    await listed.shows("a", 20)
    listed.page._beat("news")
    await listed.paged.more()
    await listed.shows("a", 30)
    assert listed.paged.next is None
    await listed.paged.more()
    assert [one.get("cursor") for one in listed.source.asked] == [None, None, "10", "20"]


async def test_all_that_was_read_is_there_when_something_else_of_the_address_changes() -> None:
    listed = Listed()
    await listed.shows("a", 10)
    await listed.paged.more()
    listed.names = []
    listed.page.set(chosen="a15")
    await listed.shows("a", 20)
    listed.page._beat("news")
    await asyncio.sleep(0)
    assert len(listed.source.asked) == 4, "it stays as it is"
    listed.page.set(word="b")
    await listed.shows("b", 10)


async def test_a_page_of_another_question_is_not_shown() -> None:
    listed = Listed()
    await listed.shows("a", 10)
    listed.source.pause.clear()
    more = asyncio.create_task(listed.paged.more())
    await until(lambda: len(listed.source.asked) == 2, "the question for more")
    listed.page.set(word="b")
    await until(lambda: len(listed.source.asked) == 3, "the other question")
    await listed.paged.more()  # of which nothing is there yet
    assert len(listed.source.asked) == 3
    listed.source.pause.set()
    await more
    await listed.shows("b", 10)


async def test_one_more_at_a_time() -> None:
    listed = Listed()
    await listed.shows("a", 10)
    listed.source.pause.clear()
    both = asyncio.gather(listed.paged.more(), listed.paged.more())
    await until(lambda: len(listed.source.asked) == 2, "the question for more")
    listed.source.pause.set()
    await both
    await listed.shows("a", 20)


@pytest.mark.parametrize("error", [RefusedError("four questions", "ask again", 503), AwayError("no sink")])
async def test_more_that_fails_is_told_and_the_list_goes_on(error: Exception) -> None:
    listed = Listed()
    await listed.shows("a", 10)
    listed.source.error = error
    await listed.paged.more()
    assert listed.page.problem is error
    await until(lambda: len(listed.source.asked) == 3, "the list anew")
    listed.page._beat("back")
    assert listed.page.problem is (None if isinstance(error, AwayError) else error)
    await listed.shows("a", 10)
    await listed.paged.more()
    await listed.shows("a", 20)
    assert listed.page.problem is None


async def test_a_row_that_is_wanted_is_looked_for_on_further_pages() -> None:
    listed = Listed("a25")
    await listed.shows("a", 30)
    listed = Listed("nowhere")
    await listed.shows("a", 30)
