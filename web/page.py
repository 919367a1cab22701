"""What a view is given: its address, the time it shows, answers of the sink, and when to look again.

A view is a function in web/views that makes elements and says what fills them:

    @view("matrix", "Matrix")
    def matrix(page: Page) -> None:
        chart = Chart(…)

        async def load() -> None:
            found = await page.ask("matrix", {"group": page.get("group", "identity"), **page.asked})
            chart.show(…)

        page.shows(load)

`load` runs at once, whenever the address changes, and in a live view when something new was stored. What it raises as
WebError is shown, and the view goes on by itself.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

from schemas.filters import Filters
from web.errors import AwayError, RefusedError, WebError
from web.live import Beat, Live
from web.settings import WebSettings
from web.source import Query, Source
from web.span import Span

log = logging.getLogger("ztlens.web")

Load = Callable[[], Awaitable[None]]
WORDS = tuple(field.name for field in fields(Filters) if field.name not in ("event", "direction", "since", "until"))
"""Filters: the options of `ztlens observe`, which are the API's parameters too."""
FIRST = 0.5
"""Seconds that a page waits for its first answers before it goes to the browser without them."""
AGAIN = 2.0
"""Seconds until what could not be answered is asked for again."""
VIEWS: dict[str, "View"] = {}
"""Name → view, in the order of the header."""


@dataclass(frozen=True)
class View:
    """`name`: in the address. `filters`: whether the words of `observe` apply to it."""

    name: str
    title: str
    make: Callable[["Page"], None]
    filters: bool

    @property
    def path(self) -> str:
        """The first view is the page's own address."""
        return "/" if next(iter(VIEWS)) == self.name else f"/{self.name}"


def view(
    name: str, title: str, *, filters: bool = True
) -> Callable[[Callable[["Page"], None]], Callable[["Page"], None]]:
    """Register a view; the order of registration is that of the header."""

    def register(make: Callable[["Page"], None]) -> Callable[["Page"], None]:
        VIEWS[name] = View(name, title, make, filters)
        return make

    return register


class Shown:
    """A `load` that runs when it should, never twice at a time.

    For news it runs at most each `every` seconds, and rests as long as it took: a slow answer is not asked for all the
    time. After an answer that did not come it tries again.
    """

    def __init__(self, page: "Page", load: Load, every: float) -> None:
        self._page, self._load, self.every = page, load, every
        self._task: asyncio.Task[None] | None = None
        self._next = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._stale = False
        self.held = False
        """What is shown is more than a load for news would show: it stays until the address changes."""

    def now(self) -> None:
        """The address changed: what is under way is of no use."""
        self.stop()
        self.held = False
        self._start()

    async def done(self) -> None:
        """When no load is under way."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def hold(self) -> None:
        """What is shown stays, and what is under way ends."""
        self.stop()
        self.held = True

    def news(self) -> None:
        """There may be something new."""
        if self.held:
            return
        if self._task is not None and not self._task.done():
            self._stale = True
            return
        wait = self._next - time.monotonic()
        if wait <= 0:
            self._start()
        else:
            self._start_in(wait)

    def _start_in(self, seconds: float) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(seconds, self._start)

    def _start(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._stale = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        problem: WebError | None = None
        begun = time.monotonic()
        try:
            await self._load()
        except WebError as error:
            problem = error
        except Exception as error:
            log.exception("view %s", self._page.view.name)
            problem = WebError(f"This view failed: {type(error).__name__}", "The log of `ztlens web` says where.")
        self._page.tell(self, problem)
        ended = time.monotonic()
        self._next = max(begun + self.every, 2 * ended - begun)
        if problem is not None and not (isinstance(problem, RefusedError) and problem.status < 500):
            self._start_in(AGAIN)
        elif self._stale:
            self._start_in(max(0.0, self._next - ended))

    def stop(self) -> None:
        """No more."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._task is not None:
            self._task.cancel()
            self._task = None


class Page:
    """One open page. `query`: the address's parameters, without those of the time."""

    def __init__(
        self, view: View, parameters: Sequence[tuple[str, str]], source: Source, live: Live, settings: WebSettings
    ) -> None:
        self.view = view
        self.source = source
        self.live = live
        self.settings = settings
        self.query: dict[str, list[str]] = {}
        for name, value in parameters:
            if value:
                self.query.setdefault(name, []).append(value)
        since, until = (self.query.pop(name, [""])[0] for name in ("since", "until"))
        self.span = Span(since or Span.since, until)
        self.moved: list[Callable[[], None]] = []
        """Called when the address has changed, before anything is loaded."""
        self.problems: list[Callable[[], None]] = []
        """Called when `problem` is another."""
        self.goes: Callable[[str], None] = lambda _: None
        """Makes the browser show an address, as a new entry of its history."""
        self.leaves: Callable[[str], None] = lambda _: None
        """Makes the browser open an address."""
        self._shown: list[Shown] = []
        self._problems: dict[Shown | None, WebError] = {}
        live.listen(self._beat)

    async def first(self) -> None:
        """Until all that is shown has been asked for once, but not for long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(shown.done() for shown in self._shown)), FIRST)

    def get(self, name: str, otherwise: str = "") -> str:
        """A parameter of the address."""
        return self.query.get(name, [otherwise])[0]

    @property
    def filters(self) -> dict[str, list[str]]:
        """The words of `observe` that the address has."""
        return {name: self.query[name] for name in WORDS if name in self.query}

    @property
    def asked(self) -> dict[str, str | Sequence[str]]:
        """Filters and span, as parameters of the API."""
        return {**self.filters, **self.span.query}

    async def ask(self, path: str, query: Query | None = None) -> Any:
        """The sink's answer. Raises WebError."""
        return await self.source.ask(path, query)

    def shows(self, load: Load, every: float = 1.0) -> Shown:
        """`load` fills what this view shows; for news at most each `every` seconds."""
        shown = Shown(self, load, every)
        self._shown.append(shown)
        shown.now()
        return shown

    def address(self, view: str = "", **changes: str | list[str] | None) -> str:
        """The address of a view: the same time, and of the same view the same parameters but for `changes`.

        With `view`, only `changes`, and the draft. None or empty: without that parameter.
        """
        kept = {"draft": self.get("draft")} if view else self.query
        given: dict[str, Any] = {**kept, **changes}
        time_ = {"since": "" if self.span.since == Span.since else self.span.since, "until": self.span.until}
        query = [(name, value) for name, value in {**time_, **given}.items() if value]
        path = VIEWS[view or self.view.name].path
        return path + (f"?{urlencode(query, doseq=True)}" if query else "")

    def set(self, **changes: str | list[str] | None) -> None:
        """Change parameters of the address."""
        for name, value in changes.items():
            if value:
                self.query[name] = [value] if isinstance(value, str) else value
            else:
                self.query.pop(name, None)
        self._go()

    def show_span(self, span: Span) -> None:
        """Another time."""
        self.span = span
        self._go()

    def _go(self) -> None:
        self._problems.pop(None, None)
        self.goes(self.address())
        for moved in self.moved:
            moved()
        self.again()

    def again(self) -> None:
        """Ask anew."""
        for shown in self._shown:
            shown.now()

    def _beat(self, beat: Beat) -> None:
        if beat == "back" and isinstance(self._problems.get(None), AwayError):
            del self._problems[None]
        if beat in ("back", "away"):
            self._told()
        if beat == "back":
            self.again()
        elif beat in ("news", "time") and self.span.live:
            for shown in self._shown:
                shown.news()

    def tell(self, shown: Shown, problem: WebError | None) -> None:
        """What became of a load."""
        if problem is None:
            self._problems.pop(shown, None)
        else:
            self._problems[shown] = problem
        self._told()

    def complain(self, problem: WebError | None) -> None:
        """Tell it until the address changes, or the next one comes; None: what was told is over."""
        self._problems.pop(None, None)
        if problem is not None:
            self._problems = {None: problem, **self._problems}
        self._told()

    def _told(self) -> None:
        for told in self.problems:
            told()

    @property
    def problem(self) -> WebError | None:
        """What is to be told, if anything."""
        if self.live.away:
            return AwayError("The sink does not answer", "What is shown is the last known; it goes on by itself.")
        return next(iter(self._problems.values()), None)

    def close(self) -> None:
        """Nobody looks any more."""
        self.live.leave(self._beat)
        for shown in self._shown:
            shown.stop()
