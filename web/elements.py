"""The few elements that views are made of. Whatever they are given is shown as text: none of them takes markup.

Colours in a chart's options are names of web/static/ztlens.css, `var(--allowed)`, so that they follow the theme.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.echart import EChart
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

STATIC = Path(__file__).with_name("static")


class Table(Element, component=STATIC / "table.js"):
    """Rows of cells. `columns`: (name, heading, kind: `num`, `mono` or empty); a name in `sorts` can be sorted by.

    `choose` gets the key of a row.
    """

    def __init__(
        self,
        label: str,
        columns: Sequence[tuple[str, str, str]],
        *,
        choose: Callable[[str], Any] | None = None,
        sorts: Sequence[str] = (),
        sort: Callable[[str], Any] | None = None,
        empty: str = "",
    ) -> None:
        super().__init__()
        self._props["label"] = label
        self._props["columns"] = [
            {"name": name, "label": heading, "kind": kind, "sorts": name in sorts} for name, heading, kind in columns
        ]
        self._props["rows"] = []
        self._props["empty"] = ""
        self._props["choosable"] = choose is not None
        self._empty = empty
        if choose is not None:
            self.on("choose", lambda event: choose(str(event.args)))
        if sort is not None:
            self.on("sort", lambda event: sort(str(event.args)))

    def show(self, rows: Sequence[dict[str, Any]], *, sort: str = "", order: str = "", chosen: str = "") -> None:
        """Rows of `row`, and by which column they are sorted."""
        self._props.update(rows=rows, sort=sort, order=order, chosen=chosen, empty=self._empty)
        self.update()


def row(key: object, cells: Sequence[object], kind: str = "") -> dict[str, Any]:
    """A row; a cell is a text, a number, or a `cell`."""
    made = [one if isinstance(one, dict) else {"text": _shown(one)} for one in cells]
    return {"key": str(key), "cells": made, "kind": kind}


def cell(text: object, *, kind: str = "", href: str = "", hint: str = "", share: float | None = None) -> dict[str, Any]:
    """A cell with a style of the sheet, an address of ours, a title, or a bar behind it (0 … 1)."""
    made: dict[str, Any] = {"text": _shown(text), "kind": kind, "hint": hint or None, "href": href or None}
    if share is not None:
        made["share"] = round(min(1.0, max(0.0, share)), 4)
    return made


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class Chart(EChart, component=STATIC / "chart.js", default_classes=""):
    """A chart of ECharts. `choose` gets the `key` of a datum that was clicked, `brushed` the indices of a range."""

    def __init__(
        self,
        label: str,
        options: dict[str, Any],
        *,
        choose: Callable[[str], Any] | None = None,
        brushed: Callable[[float, float], Any] | None = None,
        height: str = "220px",
    ) -> None:
        super().__init__(options)
        for name in ("enable-3d", "renderer", "theme"):
            self._props.pop(name, None)
        self._props["label"] = label
        self._props["brush"] = brushed is not None
        self.style(f"height: {height}")
        if choose is not None:
            self.on("choose", lambda event: choose(str(event.args)))
        if brushed is not None:
            self.on("brush", lambda event: brushed(float(event.args[0]), float(event.args[1])))

    def show(self, label: str = "", **options: Any) -> None:
        """Other options instead of those of the same name, and what it says to who does not see it."""
        self._props["options"].update(options)
        if label:
            self._props["label"] = label
        self.update()


class Field(Element, component=STATIC / "field.js"):
    """An input with its label. `typed` gets its text when Enter is pressed or it is left; `mark`: an attribute."""

    def __init__(
        self, label: str, value: str, typed: Callable[[str], Any], *, placeholder: str = "", mark: str = ""
    ) -> None:
        super().__init__()
        self._props.update(label=label, value=value, placeholder=placeholder, mark=mark)
        self.on("typed", lambda event: typed(_given(event)))

    def show(self, value: str) -> None:
        """Another text, whatever is being typed."""
        self.run_method("show", value)


class Copy(Element, component=STATIC / "copy.js"):
    """A button that copies `text`."""

    def __init__(self, label: str, text: str) -> None:
        super().__init__()
        self._props.update(label=label, text=text)

    def holds(self, text: str) -> None:
        """Another text."""
        self._props["text"] = text
        self.update()


class Shell(Element, component=STATIC / "shell.js"):
    """The browser's history, theme and keyboard; itself the button of the theme."""

    def go(self, address: str) -> None:
        """Show this address, as a new entry of the history; nothing is loaded."""
        self.run_method("go", address)

    def leave(self, address: str) -> None:
        """Open this address."""
        self.run_method("leave", address)


def box(tag: str = "div", classes: str = "", **attributes: str) -> Element:
    """An element for others to be in; `aria_label="…"` is its attribute aria-label."""
    made = ui.element(tag).classes(classes)
    for name, value in attributes.items():
        made._props[name.replace("_", "-")] = value
    return made


def text(content: object, tag: str = "span", classes: str = "", **attributes: str) -> TextElement:
    """A text."""
    made = TextElement(tag=tag, text=_shown(content)).classes(classes)
    for name, value in attributes.items():
        made._props[name.replace("_", "-")] = value
    return made


def panel(title: str, classes: str = "", note: str = "") -> Element:
    """A titled part of a view, to be entered with `with`."""
    made = box("section", f"panel {classes}", aria_label=title)
    with made, box("div", "panel-head"):
        text(title, "h2")
        if note:
            text(note, "span", "note")
    return made


def heading(of: Element) -> Element:
    """Room for buttons in the heading of a panel."""
    with next(iter(of)):
        return box("div", "actions")


def link(label: str, address: str, classes: str = "") -> TextElement:
    """A link within the page."""
    return text(label, "a", classes, href=address)


def button(label: str, clicked: Callable[[], Any], classes: str = "", **attributes: str) -> TextElement:
    """A button."""
    made = text(label, "button", classes, type="button", **attributes)
    made.on("click", lambda _: clicked(), [])
    return made


def choice(
    label: str, options: Mapping[str, str], value: str, changed: Callable[[str], Any], **attributes: str
) -> Element:
    """A select with its label: value → what is read."""
    with box("label", "field"):
        text(label, "span", "field-label")
        made = box("select", value=value, **attributes)
        with made:
            for key, shown in options.items():
                text(shown, "option", value=key)
    made.on("change", lambda event: changed(_given(event)), js_handler="(e) => emit(e.target.value)")
    return made


def _given(event: GenericEventArguments) -> str:
    return str(event.args if not isinstance(event.args, list) else event.args[0])


def put(element: Element, **properties: object) -> None:
    """Change properties of an element made here."""
    element._props.update({name.replace("_", "-"): value for name, value in properties.items()})
    element.update()
