"""A list that the sink gives page by page: the first page at each load, a further one whenever somebody wants more."""

from collections.abc import Awaitable, Callable
from typing import Any

from web.errors import WebError
from web.page import Page

MOST = 1000
"""Rows that are read again by themselves, or looked through for one."""
Row = dict[str, Any]
Show = Callable[[], Awaitable[None] | None]


class Paged:
    """`rows` of the API's list at `path`, as `asked` says when they are asked for; `show` shows them.

    `enough`: whether these rows do, or further pages are to be read at once. From the second page on they stay as they
    are until the address changes: what is new would push away what is being read.
    """

    def __init__(
        self, page: Page, path: str, asked: Callable[[], dict[str, Any]], show: Show, *, every: float,
        enough: Callable[[list[Row]], bool] = lambda _: True,
    ) -> None:  # fmt: skip
        self.rows: list[Row] = []
        self.next: str | None = None
        """The cursor of the next page; None: that was all."""
        self._page, self._path, self._asked, self._show = page, path, asked, show
        self._enough = enough
        self._question: dict[str, Any] | None = None
        self._reading = False
        self._loading = page.shows(self._load, every)

    async def _load(self) -> None:
        question = self._asked()
        again = len(self.rows) if question == self._question else 0
        rows, cursor = await self._read(question)
        pages = 1
        while cursor is not None and len(rows) < MOST and (len(rows) < again or not self._enough(rows)):
            more, cursor = await self._read({**question, "cursor": cursor})
            rows += more
            pages += 1
        self.rows, self.next, self._question = rows, cursor, question
        self._loading.held = pages > 1
        await self._showing()

    async def _showing(self) -> None:
        waits = self._show()
        if waits is not None:
            await waits

    async def _read(self, question: dict[str, Any]) -> tuple[list[Row], str | None]:
        found = await self._page.ask(self._path, question)
        return found[self._path.rpartition("/")[2]], found["next"]

    async def more(self) -> None:
        """The next page. Not while one is under way, or the list is about to be another."""
        question, cursor = self._question, self.next
        if self._reading or cursor is None or question is None or question != self._asked():
            return
        self._reading = True
        self._loading.hold()
        self._page.complain(None)
        try:
            rows, after = await self._read({**question, "cursor": cursor})
            if question == self._asked() and cursor == self.next:
                self.rows, self.next = [*self.rows, *rows], after
                await self._showing()
        except WebError as error:
            self._page.complain(error)
            self._loading.now()
        finally:
            self._reading = False
