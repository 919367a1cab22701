"""Matrix: sources by destinations; the shade of a cell is its volume, its colour the worst that was decided in it."""

import math
from typing import Any

from web import charts, drawn, grouping
from web.elements import Chart, Table, box, choice, panel, row, text
from web.page import Page, view
from web.show import LINES, MARKS, service, short

ROWS, COLUMNS = 100, 100
EVERY = 2.0
"""Seconds between two looks for news, at least."""
TABLED = 200
"""Rows of the table."""
BETWEEN = "\n"
"""Between source, destination and port in the key of a cell; no name holds it."""
UPRIGHT, TURNED = 90, 18
"""Pixels of a column at least: its name must fit."""


@view("matrix", "Matrix")
def matrix(page: Page) -> None:
    """The heat map; a cell that is chosen leads to its flows."""

    def chosen(key: str) -> None:
        source, destination, port = key.split(BETWEEN)
        ends = {**grouping.end(page, "from", source), **grouping.end(page, "to", destination)}
        page.leaves(grouping.flows(page, {**ends, **({"port": port} if port else {})}))

    with box("div", "controls"):
        grouping.controls(page)
        choice("Columns", {"": "Destinations", "true": "Destinations by port"}, page.get("ports"),
               lambda value: page.set(ports=value or None))  # fmt: skip
        with box("div", "legend", aria_hidden="true"):
            for key, word, _ in LINES:
                box("span", f"patch {key.replace('_', '-')}")
                text(f"{MARKS.get(key, '')} {word}")
    draft = drawn.strip(page)
    with panel("Matrix", "wide"):
        note = text("", "p", "note")
        with box("div", "scrolled", role="region", aria_label="The matrix", tabindex="0"):
            chart = Chart("Matrix of sources and destinations", _options(), choose=chosen, height="420px")
    with panel("Cells"):
        table = Table(
            "Cells of the matrix",
            [("source", "From", ""), ("destination", "To", ""), ("port", "Port", "mono"), ("said", "Decided", ""),
             ("volume", "Volume", "num")],
            choose=chosen,
            empty="Nobody spoke to anybody in this time with these filters. Choose a longer time, or take one out.",
        )  # fmt: skip

    async def load() -> None:
        ports = page.get("ports") == "true"
        found = await page.ask("matrix", {
            **grouping.asked(page), "rows": str(ROWS), "columns": str(COLUMNS), "ports": "true" if ports else "false",
        })  # fmt: skip
        by = page.get("by", "flows")
        sources, columns = found["sources"], found["destinations"]
        width = 120 + len(columns) * (TURNED if _turned(columns) else UPRIGHT)
        chart.style(f"height: {max(220, 90 + 22 * len(sources))}px; min-width: {width}px")
        said = f"Matrix of {len(sources):,} sources and {len(columns):,} destinations"
        changes = drawn.changes(page, found)
        ends = {(sources[one["source"]], columns[one["destination"]]["id"]) for one in found["cells"]}
        draft(drawn.pairs(page), ends)
        chart.show(f"{said}; {grouping.said(found['cells'], TABLED)}", **_series(found, by, changes))
        note.set_text(f"{len(found['cells']):,} pairs" + grouping.left_out(found, "ends", "pairs"))
        table.show([_row(one, found, by, changes) for one in grouping.tabled(found["cells"], TABLED)])

    page.shows(load, EVERY)


def _name(column: dict[str, Any]) -> str:
    return f"{grouping.shown(column['id'])} {_service(column)}".strip()


def _service(column: dict[str, Any]) -> str:
    return "" if column["port"] is None else service(column["port"], column["proto"])


def _key(one: dict[str, Any], found: dict[str, Any]) -> str:
    column = found["destinations"][one["destination"]]
    port = "" if column["port"] is None else f"{column['port']}/{column['proto']}"
    return BETWEEN.join((found["sources"][one["source"]], column["id"], port))


def _row(one: dict[str, Any], found: dict[str, Any], by: str, changes: drawn.Cells) -> dict[str, Any]:
    column = found["destinations"][one["destination"]]
    changed = [f"{word}: {count:,} flows" for word, count, _, _ in drawn.told(changes.get(_place(one)))]
    return row(
        _key(one, found),
        [
            grouping.shown(found["sources"][one["source"]]), grouping.shown(column["id"]),
            _service(column) or "any",
            ", ".join([*grouping.told(one, by), *changed]), grouping.measured(grouping.volume(one, by), by),
        ],
    )  # fmt: skip


def _options() -> dict[str, Any]:
    return {"tooltip": {}, "series": []}


def _turned(columns: list[dict[str, Any]]) -> bool:
    """Whether the names of columns stand aslant."""
    return len(columns) > 8


def _place(one: dict[str, Any]) -> tuple[int, int]:
    return one["source"], one["destination"]


def _series(found: dict[str, Any], by: str, changes: drawn.Cells) -> dict[str, Any]:
    sources, columns = found["sources"], found["destinations"]
    largest = max((grouping.volume(one, by) for one in found["cells"]), default=1) or 1
    data, faint = [], 0.35 if changes else 1
    for one in found["cells"]:
        count = grouping.volume(one, by)
        worst = LINES[grouping.worst(one)][0]
        pair = f"{grouping.shown(sources[one['source']])} → {_name(columns[one['destination']])}"
        changed = drawn.told(changes.get(_place(one)))
        style = f"var(--{changed[0][2]})" if changed else "var(--ink)"
        edge = {"color": "var(--panel)", "opacity": 1, "borderColor": style, "borderWidth": 3} if changed else {}
        data.append({
            "value": [one["destination"], one["source"], count], "key": _key(one, found),
            "tip": [pair, *grouping.told(one, by), *(f"{word}: {count:,} flows" for word, count, _, _ in changed)],
            "label": {
                "show": bool(changed) or worst in MARKS, "color": style, "fontWeight": "bold",
                "formatter": " ".join(f"{sign}{short(count)}" for _, count, _, sign in changed) or MARKS.get(worst, ""),
            },
            "itemStyle": {
                "color": f"var(--{worst.replace('_', '-')})",
                "opacity": round(faint * (0.2 + 0.8 * math.log1p(count) / math.log1p(largest)), 2), **edge,
            },
        })  # fmt: skip
    names = [grouping.shown(name) for name in sources]
    longest = min(180, 8 + 7 * max((len(name) for name in names), default=4))
    label = {"color": "var(--dim)", "fontSize": 11, "width": 170, "overflow": "truncate", "interval": 0}
    turned = {"rotate": 50} if _turned(columns) else {}
    return {
        "grid": {"left": longest, "right": 16, "top": 8, "bottom": 80 if turned else 28},
        "xAxis": {**charts.names([_name(column) for column in columns]), "axisLabel": {**label, **turned}},
        "yAxis": {**charts.names(names), "inverse": True, "axisLabel": label},
        "series": [{
            "id": "cells", "type": "heatmap", "data": data, "cursor": "pointer",
            "itemStyle": {"borderColor": "var(--panel)", "borderWidth": 1.5, "borderRadius": 2},
            "emphasis": {"itemStyle": {"borderColor": "var(--ink)"}},
        }],
    }  # fmt: skip
