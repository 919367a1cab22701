"""The frame of every view: navigation, the time, filters, and what is wrong."""

from collections.abc import Callable
from datetime import UTC, datetime

from nicegui import context

from web import words
from web.elements import Field, Shell, box, button, choice, link, put, text
from web.errors import WebError
from web.page import VIEWS, Page
from web.span import CHOICES, Span
from web.timeline import timeline

EXAMPLE = 'to_identity=database port=5432/tcp rule=default where="packets > 10"'
DECISIONS = {"": "All decisions", "allow": "Allowed", "deny": "Denied"}


def frame(page: Page) -> None:
    """Everything around the view, then the view."""
    layout = context.client.layout
    with layout, box("header", "top") as header:
        text("Skip to the content", "a", "skip", href="#main")
        link("ztlens", page.address("overview"), "brand")
        _navigation(page)
        box("span", "grow")
        state = text("", classes="state", role="status")
        shell = Shell()
    header.move(target_index=0)
    page.goes, page.leaves = shell.go, shell.leave
    _state(page, state)
    context.client.content.props("id=main tabindex=-1").classes("view view-" + page.view.name)
    with context.client.content:
        text(page.view.title, "h1", "hidden")
        with box("div", "controls"):
            _time(page)
            if page.view.filters:
                _filter(page)
        timeline(page)
        _problem(page)
        page.view.make(page)


def _navigation(page: Page) -> None:
    with box("nav", "views", aria_label="Views"):
        links = []
        for number, view in enumerate(VIEWS.values(), 1):
            made = link(view.title, page.address(view.name), "")
            put(made, title=f"Key {number}", **({"aria_current": "page"} if view is page.view else {}))
            links.append((made, view))

    def moved() -> None:
        for made, view in links:
            kept = page.filters if view.filters else {}
            put(made, href=page.address(view.name, **kept))

    moved()
    page.moved.append(moved)


def _state(page: Page, state: object) -> None:
    """Whether what is shown moves, and whether anybody answers."""

    def tell() -> None:
        word, kind = ("sink away", "bad") if page.live.away else ("live", "good") if page.span.live else ("past", "")
        state.set_text(word)  # type: ignore[attr-defined]
        state.classes(replace=f"state {kind}")  # type: ignore[attr-defined]

    tell()
    page.moved.append(tell)
    page.problems.append(tell)


def _time(page: Page) -> None:
    with box("div", "time", role="group", aria_label="Time"):
        choices = {"": "A range", **CHOICES}

        def chosen(since: str) -> None:
            if since:
                page.show_span(Span(since))

        def turned() -> None:
            """Live, or what is shown now, standing still."""
            if page.span.live:
                found = page.span.bounds(datetime.now(UTC))
                begin, end = found if found else (None, datetime.now(UTC))
                page.show_span(Span.between(begin, end))
            else:
                page.show_span(Span())

        select = choice("Time", choices, "", chosen, data_key_time="")
        live = button("Pause", turned, "quiet", data_key_live="", title="Key l")
        button("◂", lambda: page.show_span(page.span.moved(-1, datetime.now(UTC))), "quiet", aria_label="Earlier")
        button("▸", lambda: page.show_span(page.span.moved(1, datetime.now(UTC))), "quiet", aria_label="Later")
        button("−", lambda: page.show_span(page.span.wider(datetime.now(UTC))), "quiet", aria_label="Wider")
        since = Field("From", page.span.since, lambda value: _typed(page, "since", value)).classes("moment")
        until = Field("To", page.span.until, lambda value: _typed(page, "until", value), placeholder="now")
        until.classes("moment")

    def moved() -> None:
        put(select, value=page.span.since if page.span.live and page.span.since in CHOICES else "")
        live.set_text("Pause" if page.span.live else "Live")
        since.show(page.span.since)
        until.show(page.span.until)

    moved()
    page.moved.append(moved)


def _typed(page: Page, which: str, value: str) -> None:
    value = value.strip()
    page.show_span(Span(value or "all", page.span.until) if which == "since" else Span(page.span.since, value))


def _filter(page: Page) -> None:
    """The words of `observe`: a line to type them, and each that is in force, to be taken out."""

    def added(value: str) -> None:
        try:
            found = words.parsed(value)
        except WebError as error:
            page.complain(error)
            return
        typing.show("")
        page.set(**{name: [*page.query.get(name, []), *values] for name, values in found.items()})

    with box("div", "filter", role="search", aria_label="Filter"):
        decision = choice("Decision", DECISIONS, page.get("decision"), lambda value: page.set(decision=value or None))
        typing = Field("Filter  ( / )", "", added, placeholder=EXAMPLE, mark="data-key-filter").classes("wide")
        chips = box("div", "chips")

    def without(name: str, value: str) -> Callable[[], None]:
        return lambda: page.set(**{name: [one for one in page.query.get(name, []) if one != value]})

    def moved() -> None:
        put(decision, value=page.get("decision"))
        chips.clear()
        with chips:
            for name, values in page.filters.items():
                for value in values if name != "decision" or len(values) > 1 else ():
                    button(f"{name}={value} ×", without(name, value), "chip", aria_label=f"Take out {name}={value}")

    moved()
    page.moved.append(moved)


def _problem(page: Page) -> None:
    strip = box("div", "problem", role="alert")
    with strip:
        what = text("", "strong")
        hint = text("", "span")
    strip.set_visibility(False)

    def tell() -> None:
        problem = page.problem
        strip.set_visibility(problem is not None)
        if problem is not None:
            what.set_text(str(problem))
            hint.set_text(problem.hint)

    page.problems.append(tell)
