"""SQL: a question in DuckDB's language over all history; its answer as a table or drawn."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from schemas import cells
from web import answers, charts, cookbook
from web.answers import Answer
from web.editor import Editor, Save
from web.elements import Chart, Copy, Table, box, button, cell, choice, heading, panel, put, row, text
from web.errors import AwayError, WebError
from web.page import Page, view
from web.span import text as rfc3339

EXAMPLE = "SELECT src_identity, dst_identity, decision, count(*) AS flows\nFROM flows GROUP BY ALL ORDER BY flows DESC"
FORMS = {"table": "Table", "bar": "Bars", "line": "Lines"}
LONGEST = 4000
"""Characters of a question: more do not fit into an address."""
WORDS = "words"
"""Along all columns that are no numbers."""
COLOURS = ("allowed", "would-deny", "accent", "denied", "dim")
DASHES = ("solid", "dashed", "dotted")
_MOMENT = re.compile(r"\$(since|until)\b")
_ZEROS = re.compile(r"\.0{9}Z$")


@view("sql", "SQL", filters=False)
def sql(page: Page) -> None:
    """The question stands in the address, and what it is drawn as."""
    _Prompt(page)


class _Prompt:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._text = page.get("sql") or EXAMPLE
        self._asked: object = None
        self._times = 0
        self._asking: asyncio.Task[Answer] | None = None
        self._answer: Answer | None = None
        self._problem: WebError | None = None
        self._drawn: object = None
        self._shown_as: object = None
        with box("div", "grid sql"):
            with panel("Question", note="DuckDB; it only reads. $since and $until are the time above."):
                self._editor = Editor("SQL question", self._text, "SQL", self._typed, self._run)
                with box("div", "actions"):
                    button("Run", lambda: self._run(self._text), "primary", title="Ctrl+Enter")
                    self._stop = button("Stop", self._stopped, "quiet")
                    self._state = text("", "span", "note", role="status")
            self._aids()
        self._result = box("div")
        self._detail = box("div")
        self._waits(False)
        page.shows(self._load, 5.0)
        page.shows(self._load_schema, 3600.0)

    # ---- asking

    def _typed(self, given: str) -> None:
        self._text = given

    def _run(self, given: str) -> None:
        """Also the same question once more."""
        self._text = given
        if len(given) > LONGEST:
            self._page.complain(
                WebError(f"The question has {len(given):,} characters, too many for an address", "`ztlens sql -f FILE`")
            )
            return
        self._times += 1
        self._page.set(sql=given.strip() or None, x=None, y=None)

    def _stopped(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    def _waits(self, waits: bool) -> None:
        self._stop.set_visibility(waits)
        self._state.set_text("asking …" if waits else "")

    async def _load(self) -> None:
        page = self._page
        asked = page.get("sql")
        moment = page.span if _MOMENT.search(asked) else None
        if self._asked == (asked, moment, self._times):
            if self._problem is not None:
                raise self._problem
            if self._answer is not None and self._drawn != self._drawing():
                self._show(asked)
            return  # news is no reason to ask again
        self._asked = None  # until it is answered: the next load asks again, if this one is stopped or the sink away
        self._answer = self._problem = self._shown_as = None
        self._result.clear()
        self._detail.clear()
        asking = (asked, moment, self._times)
        if not asked:
            self._asked = asking
            with self._result, panel("Answer"):
                text("Choose a question of the cookbook, or write one and press Ctrl+Enter.", "p", "note")
            return
        try:
            self._answer = await self._answered(asked)
        except AwayError:
            raise
        except WebError as error:
            self._asked, self._problem = asking, error
            raise
        self._asked = asking
        self._show(asked)

    async def _answered(self, asked: str) -> Answer:
        asking = self._asking = asyncio.create_task(answers.ask(self._page.source, asked, self._parameters(asked)))
        self._waits(True)
        try:
            return await asking
        except asyncio.CancelledError:
            if asking.cancelling() and not _is_cancelled():
                raise WebError("Stopped before it was answered", "Run asks again.") from None
            asking.cancel()
            raise
        finally:
            if self._asking is asking:  # a later one may be under way already
                self._waits(False)

    def _parameters(self, asked: str) -> dict[str, str]:
        """What `$since` and `$until` stand for."""
        wanted = set(_MOMENT.findall(asked))
        now = datetime.now(UTC)
        bounds = self._page.span.bounds(now)
        if not wanted or bounds is None:
            return {}
        begin, end = bounds
        given = {"since": rfc3339(begin) if begin else "1970-01-01T00:00:00Z", "until": rfc3339(end)}
        return {name: given[name] for name in wanted}

    # ---- showing

    def _drawing(self) -> tuple[str, str, tuple[str, ...]]:
        page = self._page
        return page.get("show", "table"), page.get("x"), tuple(page.query.get("y", ()))

    def _show(self, asked: str) -> None:
        answer = self._answer
        assert answer is not None
        self._drawn = self._drawing()
        form = self._drawn[0] if answer.numbers else "table"
        if self._shown_as == (answer, form):
            self._redraw(answer, form)  # what was pressed stays where it is: it may be pressed again already
            return
        self._shown_as = (answer, form)
        self._result.clear()
        self._detail.clear()
        many = f"the first {len(answer.rows):,} rows; a file has all" if answer.more else _counted(len(answer.rows))
        with self._result, panel("Answer", note=many) as whole:
            with box("div", "controls"):
                choice("Show as", FORMS if answer.numbers else {"table": "Table"}, form,
                       lambda value: self._page.set(show=None if value == "table" else value))  # fmt: skip
                if form != "table":
                    self._axes(answer)
            if form == "table":
                self._table(answer)
            else:
                self._chart_box = box("div")
                self._redraw(answer, form)
        with heading(whole):
            self._files(asked)

    def _files(self, asked: str) -> None:
        parameters = self._parameters(asked)
        question = {"sql": asked, "parameters": parameters or None, "streamed": True}  # whole, however long
        for form in ("csv", "json"):
            saved = Save(f"Save {form.upper()}", f"answer.{form}", self._failed)
            saved.answer("/api/v1/sql", json.dumps({**question, "format": form}))
        written = _MOMENT.sub(lambda name: f"TIMESTAMP '{parameters[name[1]]}'" if parameters else name[0], asked)
        begins = ["--"] if written.startswith("-") else []  # as a comment does: it is no option
        Copy("Copy as command", self._page.settings.command("sql", *begins, written))

    def _failed(self, error: str, hint: str) -> None:
        self._page.complain(WebError(error, hint))

    def _table(self, answer: Answer) -> None:
        texts = [[cells.cell(value) for value in values] for values in answer.rows]
        numeric = cells.numeric(texts, len(answer.columns))
        columns = [
            (str(i), name, "num" if number else "")
            for i, (name, number) in enumerate(zip(answer.columns, numeric, strict=True))
        ]
        table = Table("Answer", columns, choose=lambda key: self._chosen(answer, int(key)), empty="No rows.")
        rows = [row(i, [cell(one, hint=one) for one in values]) for i, values in enumerate(texts)]
        table.show(rows)

    def _chosen(self, answer: Answer, index: int) -> None:
        """A row with all it has, each line of it."""
        self._detail.clear()
        with self._detail, panel(f"Row {index + 1:,}", "chosen-flow") as whole:
            for name, value in zip(answer.columns, answer.rows[index], strict=True):
                text(name, "h3")
                whole_text = value if isinstance(value, str) else cells.cell(value)
                text("NULL" if value is None else whole_text, "pre", "source" + (" dim" if value is None else ""))
        with heading(whole):
            button("Close", self._detail.clear, "quiet")

    def _axes(self, answer: Answer) -> None:
        names = {WORDS: "All words"} | {str(i): name for i, name in enumerate(answer.columns)}
        self._along = choice("Along", names, WORDS, lambda value: self._page.set(x=value))
        with box("div", "toggles", role="group", aria_label="Columns drawn"):
            self._toggles = {i: button(answer.columns[i], self._toggled(answer, i), "chip") for i in answer.numbers}

    def _redraw(self, answer: Answer, form: str) -> None:
        """What is drawn of the same answer."""
        if form == "table":
            return
        along, ys = self._chosen_axes(answer)
        put(self._along, value=along)
        for i, toggle in self._toggles.items():
            put(toggle, aria_pressed="true" if i in ys else "false")
        self._chart_box.clear()
        with self._chart_box:
            self._chart(answer, form)

    def _toggled(self, answer: Answer, column: int) -> Callable[[], None]:
        def toggle() -> None:
            _, ys = self._chosen_axes(answer)  # as they are then
            wanted = [i for i in ys if i != column] if column in ys else [*ys, column]
            self._page.set(y=[str(i) for i in wanted])

        return toggle

    def _chosen_axes(self, answer: Answer) -> tuple[str, list[int]]:
        """Of the address, where it names columns there are; else all that are no numbers, and the first number."""
        _, x, ys = self._drawing()
        names = {str(i) for i in range(len(answer.columns))}
        given = [int(i) for i in ys if i in names and int(i) in answer.numbers]
        along = x if x in names else WORDS
        return along, given or [i for i in answer.numbers if str(i) != along][:1] or [answer.numbers[0]]

    def _chart(self, answer: Answer, form: str) -> None:
        along, ys = self._chosen_axes(answer)
        words = [i for i in range(len(answer.columns)) if i not in answer.numbers]
        names = words if along == WORDS else [int(along)]
        labels = [" ".join(_ZEROS.sub("Z", cells.cell(values[i])) for i in names) for values in answer.rows]
        series = []
        for place, i in enumerate(ys):
            colour = COLOURS[place % len(COLOURS)]
            data = [values[i] for values in answer.rows]
            name = answer.columns[i]
            if form == "line":
                drawn = charts.line(name, data, colour, DASHES[place % len(DASHES)], step=False)
                series.append(drawn | {"showSymbol": len(data) < 60})
            else:
                bar = {"type": "bar", "barMaxWidth": 40, "color": f"var(--{colour})"}
                series.append({"name": name, "data": data, **bar})
        drawn_ = ", ".join(answer.columns[i] for i in ys)
        Chart(
            f"{drawn_} along {', '.join(answer.columns[i] for i in names) or 'the rows'}",
            {
                "grid": {"left": 8, "right": 12, "top": 30, "bottom": 8, "containLabel": True},
                "legend": charts.LEGEND, "tooltip": {"trigger": "axis"}, "xAxis": charts.names(labels),
                "yAxis": charts.numbers(minInterval=0), "series": series,
            },
            height="360px",
        )  # fmt: skip

    # ---- aids

    def _aids(self) -> None:
        self._views: dict[str, dict[str, Any]] = {}
        with panel("What there is", note="a row puts its name into the question"):
            titles = ["", *cookbook.queries()]
            names = {str(i): title or "Choose a question …" for i, title in enumerate(titles)}
            with box("div", "controls"):
                choice("Cookbook", names, "0", lambda value: self._cooked(titles[int(value)]))
                self._choice = box("div")
            self._columns = Table(
                "Columns", [("name", "Column", "mono"), ("type", "Type", ""), ("doc", "Meaning", "said")],
                choose=self._editor.insert,
            )  # fmt: skip

    def _cooked(self, title: str) -> None:
        if title:
            question = cookbook.queries()[title]
            self._editor.put(question)
            self._run(question)

    async def _load_schema(self) -> None:
        if self._views:
            return
        found = await self._page.ask("schema")
        self._views = {one["name"]: one for one in found["views"]}
        words = [*self._views, *{column["name"] for one in found["views"] for column in one["columns"]}]
        self._editor.offer(words)
        with self._choice:
            choice("View", {name: name for name in self._views}, next(iter(self._views), ""), self._browse)
        self._browse(next(iter(self._views), ""))

    def _browse(self, name: str) -> None:
        columns = self._views.get(name, {"columns": []})["columns"]
        rows = [row(one["name"], [one["name"], one["type"], cell(one["doc"], hint=one["doc"])]) for one in columns]
        self._columns.show(rows)


def _counted(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _is_cancelled() -> bool:
    """Whether the load itself is no longer wanted."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
