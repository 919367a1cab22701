"""What is painted before the page's scripts have come: its elements as HTML, with what is known by then.

A browser that was never here needs most of a second until Vue draws the same elements, and Shell takes this away. Until
then buttons are dead and fields take nothing that would be lost; links are links. All text is escaped here, as there it
is text nodes.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from web.elements import Copy, Field, Shell, Table

_TAGS = {"q-layout": "div", "q-page-container": "div", "q-page": "main"}
_CLASSES = {"q-page": ["q-page"]}


def painted(layout: Element) -> str:
    """HTML of `layout` and all in it."""
    return _tag("div", {"id": "first"}, [_html(layout)])


def _html(element: Element) -> str:
    if isinstance(element, Table):
        return _table(element._props)
    given = {"class": " ".join([*_CLASSES.get(element.tag, []), *element._classes])}
    given["style"] = "".join(f"{name}:{value};" for name, value in element._style.items())
    if isinstance(element, Field):
        label = _tag("span", {"class": "field-label"}, [escape(element._props["label"])])
        typed = _tag("input", {name: element._props[name] for name in ("value", "placeholder")})
        return _tag("label", {**given, "class": f"field {given['class']}", "inert": ""}, [label, typed])
    if isinstance(element, Copy):
        return _tag("button", {"class": "copy"}, [escape(element._props["label"])])
    if isinstance(element, Shell):
        return _tag("button", {"class": "quiet"}, ["◐"])
    tag = _TAGS.get(element.tag, element.tag)
    if "-" in tag:  # drawn by a script alone: its room, which the sheet leaves out when it is empty
        return _tag("div", given, ["&nbsp;"])
    children = [_html(child) for child in element.default_slot.children]
    if isinstance(element, TextElement):
        children.insert(0, escape(element.text))
    if (
        tag == "option"
        and element.parent_slot
        and element.parent_slot.parent._props.get("value") == element._props["value"]
    ):
        given["selected"] = ""
    if tag == "select":
        given["inert"] = ""
    return _tag(tag, {**element._props, **given}, children)


def _table(props: Mapping[str, Any]) -> str:
    """As web/static/table.js draws it."""
    columns = props["columns"]
    head = [_tag("th", {"scope": "col", "class": column["kind"]}, [_heading(column, props)]) for column in columns]
    body = [
        _tag("tr", {"data-key": row["key"], "class": row["kind"]}, map(_cell, row["cells"], columns))
        for row in props["rows"]
    ]
    if not body and props["empty"]:
        body = [_tag("tr", {"class": "empty"}, [_tag("td", {"colspan": len(columns)}, [escape(props["empty"])])])]
    rows = [_tag("thead", {}, [_tag("tr", {}, head)]), _tag("tbody", {}, body)]
    return _tag(
        "div", {"class": "table-wrap", "role": "region", "aria-label": props["label"]}, [_tag("table", {}, rows)]
    )


def _heading(column: Mapping[str, Any], props: Mapping[str, Any]) -> str:
    label = escape(column["label"])
    if not column["sorts"]:
        return label
    arrow = (" ▴" if props["order"] == "asc" else " ▾") if column["name"] == props.get("sort") else ""
    return _tag("button", {"type": "button"}, [label, arrow])


def _cell(cell: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    href = cell.get("href")
    parts = [_tag("a" if href else "span", {"href": href}, [escape(cell["text"])])]
    if "share" in cell:
        parts.insert(0, _tag("span", {"class": "share", "style": f"width:{cell['share'] * 100}%"}))
    return _tag("td", {"class": f"{column['kind']} {cell.get('kind', '')}", "title": cell.get("hint")}, parts)


def _tag(name: str, attributes: Mapping[str, Any], children: Iterable[str] = ()) -> str:
    """Without the attributes that are None, False, or an empty class or style."""
    shown = "".join(
        f' {key}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False and (value != "" or key not in ("class", "style"))
    )
    return f"<{name}{shown}>" + ("" if name == "input" else "".join(children) + f"</{name}>")
