"""Map: who speaks to whom, as a graph. A line for each decision, told apart by colour and by dash."""

import math
from typing import Any

from web import drawn, grouping
from web.draft import Change
from web.elements import Chart, Table, box, button, cell, link, panel, row, text
from web.layout import Layout, group_of, usual_key
from web.page import Page, view
from web.show import LINES, clock, endpoint, kind, short

NODES, EDGES = 500, 5000
NAMED = 120
"""Nodes up to which all are named; of more, those that are pointed at, or their tips."""
ROWS = 200
MANY = 1000
"""Edges beyond which each is one thin straight line of the worst that was decided, nothing lights up under the pointer
(each time all would be drawn anew), and the map is drawn anew each `EVERY_MANY` at most."""
EVERY, EVERY_MANY = 1.0, 5.0
"""Seconds between two looks for news, at least: `every` says which."""
LARGEST = 34.0
"""Pixels of the largest node, unless there are so many that they would hide each other and the lines."""
ROOM = 0.6
"""Of the way from one node to the next that the largest one may take."""
DRAWN_ON = 1100.0, 450.0
"""Pixels of the map on a screen of 1280; on a small one it is smaller."""
_POINTED_AT = {"focus": "adjacency", "label": {"show": True}, "lineStyle": {"opacity": 1}}
BETWEEN = "\n"
"""Between the ends in the key of an edge; no name holds it."""


@view("map", "Map")
def map_(page: Page) -> None:
    """The graph, the edge that was chosen, and all edges as a table, which says the same without seeing."""
    _Map(page)


def every(edges: int) -> float:
    """Seconds between two looks for news at a map of so many."""
    return EVERY if edges <= MANY else EVERY_MANY


class _Map:
    def __init__(self, page: Page) -> None:
        self._page = page
        self._layout = Layout()
        self._laid_out: tuple[str, str] = ("", "")
        with box("div", "controls"):
            grouping.controls(page)
            with box("div", "legend", aria_hidden="true"):
                for key, word, dash in LINES:
                    box("span", f"dash {dash} {key.replace('_', '-')}")
                    text(word)
        self._draft = drawn.strip(page)
        with panel("Map", "wide"):
            self._note = text("", "p", "note")
            self._chart = Chart(
                "Map of who speaks to whom", _options(), choose=self._chosen, height="clamp(280px, 42vw, 560px)"
            )
        self._detail = box("div")
        with panel("Edges"):
            self._table = Table(
                "Edges of the map",
                [("source", "From", ""), ("destination", "To", ""), ("allowed", "Allowed", "num"),
                 ("would", "Would be denied", "num"), ("denied", "Denied", "num"), ("packets", "Packets", "num"),
                 ("bytes", "Bytes", "num")],
                choose=self._chosen,
                empty="Nobody spoke to anybody in this time with these filters. Choose a longer time, or take one out.",
            )  # fmt: skip
        self._shown = page.shows(self._load, EVERY)
        page.shows(self._load_detail, EVERY)

    def _chosen(self, key: str) -> None:
        """An edge; of a node, its flows."""
        page = self._page
        if BETWEEN in key:
            page.set(chosen=None if page.get("chosen") == key else key)
        else:
            page.leaves(grouping.flows(page, grouping.either_end(page, key)))

    async def _load(self) -> None:
        page = self._page
        by = page.get("by", "flows")
        found = await page.ask("map", {**grouping.asked(page), "nodes": str(NODES), "edges": str(EDGES)})
        self._shown.every = every(len(found["edges"]))
        self._place(found["nodes"])
        changes = drawn.pairs(page)
        self._draft(changes, {(edge["source"], edge["destination"]) for edge in found["edges"]})
        self._chart.show(_said(found), **_series(found, self._layout, by, page.get("chosen"), changes))
        self._note.set_text(
            f"{len(found['nodes']):,} nodes, {len(found['edges']):,} edges"
            + grouping.left_out(found, "nodes", "edges")
            + ("" if found["exact"] else "; the ends of this time are told by the hour or the minute")
        )
        most = max((grouping.volume(edge, by) for edge in found["edges"]), default=1) or 1
        rows = [_edge_row(edge, by, most) for edge in grouping.tabled(found["edges"], ROWS)]
        self._table.show(rows, chosen=page.get("chosen"))

    def _place(self, nodes: list[dict[str, Any]]) -> None:
        key = usual_key([node["labels"] for node in nodes])
        kind_of = (self._page.get("group", "identity"), self._page.get("label"))
        if kind_of != self._laid_out:
            self._layout, self._laid_out = Layout(), kind_of
        self._layout.place({node["id"]: group_of(node["id"], node["labels"], key) for node in nodes})

    async def _load_detail(self) -> None:
        page, key = self._page, self._page.get("chosen")
        if BETWEEN not in key:
            self._detail.clear()
            return
        source, _, destination = key.partition(BETWEEN)
        ends = {**grouping.end(page, "from", source), **grouping.end(page, "to", destination)}
        found = await page.ask("flows", {**page.filters, **ends, **page.span.query, "limit": "10"})
        self._detail.clear()
        with (
            self._detail,
            panel(f"{grouping.shown(source)} → {grouping.shown(destination)}", "chosen-flow", "newest flows"),
        ):
            with box("div", "actions"):
                link("All its flows", grouping.flows(page, ends), "button")
                button("Close", lambda: page.set(chosen=None), "quiet")
            table = Table(
                "Newest flows of this edge",
                [("last", "Last seen (UTC)", "mono"), ("decision", "Decision", ""), ("src", "From", "mono"),
                 ("dst", "To", "mono"), ("proto", "Proto", ""), ("rule", "Rule", ""), ("packets", "Packets", "num")],
                empty="None in this time.",
            )  # fmt: skip
            table.show([_flow_row(page, flow, ends) for flow in found["flows"]])


def _flow_row(page: Page, flow: dict[str, Any], ends: dict[str, str]) -> dict[str, Any]:
    verdict = kind(flow)
    return row(
        flow["flow"] or flow["last_seen"],
        [
            cell(clock(flow["last_seen"]), href=page.address("flows", **ends, flow=flow["flow"] or "")),
            cell(flow["decision"] if verdict == "allowed" else f"{flow['decision']}, {flow['outcome']}", kind=verdict),
            endpoint(flow["src"], flow["sport"], flow["proto"]), endpoint(flow["dst"], flow["dport"], flow["proto"]),
            flow["proto"], flow["rule"], flow["packets"],
        ],
    )  # fmt: skip


def _edge_row(edge: dict[str, Any], by: str, most: int) -> dict[str, Any]:
    share = grouping.volume(edge, by) / most
    return row(
        _key(edge),
        [
            grouping.shown(edge["source"]), grouping.shown(edge["destination"]),
            cell(short(edge["allowed"]["flows"]), kind="allowed" if edge["allowed"]["flows"] else "dim"),
            cell(short(edge["would_deny"]["flows"]), kind="would-deny" if edge["would_deny"]["flows"] else "dim"),
            cell(short(edge["denied"]["flows"]), kind="denied" if edge["denied"]["flows"] else "dim"),
            cell(short(grouping.volume(edge, "packets")), share=share if by == "packets" else None),
            cell(grouping.measured(grouping.volume(edge, "bytes"), "bytes"), share=share if by == "bytes" else None),
        ],
    )  # fmt: skip


def _options() -> dict[str, Any]:
    return {"tooltip": {}, "series": []}


def _key(edge: dict[str, Any]) -> str:
    return str(edge["source"] + BETWEEN + edge["destination"])


def _said(found: dict[str, Any]) -> str:
    nodes, edges = found["nodes"], found["edges"]
    return f"Map of {len(nodes):,} nodes and {len(edges):,} edges; {grouping.said(edges, ROWS)}"


def _series(
    found: dict[str, Any], layout: Layout, by: str, chosen: str, changes: dict[tuple[str, str], Change]
) -> dict[str, Any]:
    nodes, edges = found["nodes"], found["edges"]
    largest = max((grouping.volume(node, by) for node in nodes), default=1) or 1
    diameter = min(LARGEST, ROOM * layout.spacing([node["id"] for node in nodes], *DRAWN_ON))
    many = len(edges) > MANY
    if many:  # what is drawn later lies above
        edges = sorted(edges, key=lambda edge: (_key(edge) == chosen, grouping.worst(edge)))
    drawn_as = _line if many else _lines
    series = {
        "id": "map", "type": "graph", "layout": "none", "roam": True, "scaleLimit": {"min": 0.2, "max": 12},
        "left": 60, "right": 60, "top": 30, "bottom": 50, "nodeScaleRatio": 0.4,
        "preserveAspect": "contain",
        "edgeSymbol": ["none", "none" if many else "arrow"], "edgeSymbolSize": 7, "cursor": "pointer",
        "label": {"show": len(nodes) <= NAMED, "position": "bottom", "color": "var(--ink)", "distance": 6,
                  "textBorderColor": "var(--panel)", "textBorderWidth": 3},
        "labelLayout": {"hideOverlap": True},
        "emphasis": {"disabled": True} if many else _POINTED_AT,
        "blur": {"itemStyle": {"opacity": 0.25}, "lineStyle": {"opacity": 0.06}},
        "data": [*_halos(layout, nodes), *(_node(node, layout, by, largest, diameter) for node in nodes)],
        "links": [
            line for edge in edges
            for line in drawn_as(edge, by, largest, chosen, bool(changes)) + _changed(edge, changes)
        ],
    }  # fmt: skip
    return {"series": [series]}


def _halos(layout: Layout, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The name of each group that has more than one node, above it."""
    out = []
    for disc in layout.groups([node["id"] for node in nodes]):
        out.append({
            "id": f"group {disc.name}", "name": disc.name, "x": disc.x, "y": round(disc.y - disc.radius, 1),
            "symbolSize": 1, "silent": True, "itemStyle": {"color": "transparent"}, "tooltip": {"show": False},
            "label": {"show": True, "position": "top", "color": "var(--dim)", "fontSize": 11},
        })  # fmt: skip
    return out


def _node(node: dict[str, Any], layout: Layout, by: str, largest: int, diameter: float) -> dict[str, Any]:
    x, y = layout.places[node["id"]]
    bad = "denied" if node["denied"]["flows"] else "would-deny" if node["would_deny"]["flows"] else "allowed"
    labels = ", ".join(f"{key}={value}" for key, value in sorted(node["labels"].items()))
    return {
        "id": node["id"], "key": node["id"], "name": grouping.shown(node["id"]), "x": x, "y": y,
        "symbolSize": round(diameter * (0.25 + 0.75 * math.sqrt(grouping.volume(node, by) / largest)), 1),
        "itemStyle": {"color": "var(--panel)", "borderColor": f"var(--{bad})", "borderWidth": min(2.5, diameter / 6)},
        "tip": [grouping.shown(node["id"]), *([labels] if labels else []), *grouping.told(node, by)],
    }  # fmt: skip


def _lines(edge: dict[str, Any], by: str, largest: int, chosen: str, faint: bool) -> list[dict[str, Any]]:
    key = _key(edge)
    out = []
    for bend, (decision, word, dash) in enumerate(LINES):
        count = edge[decision][by] or (edge[decision]["flows"] and 1)
        if not count:
            continue
        width = 1 + 5 * math.log1p(count) / math.log1p(largest)
        out.append({
            "source": edge["source"], "target": edge["destination"], "key": key,
            "lineStyle": {
                "color": f"var(--{decision.replace('_', '-')})", "type": dash, "width": round(width, 1),
                "opacity": 1 if key == chosen else 0.2 if faint else 0.65, "curveness": 0.12 + 0.12 * bend,
            },
            "tip": [f"{grouping.shown(edge['source'])} → {grouping.shown(edge['destination'])}",
                    *grouping.told(edge, by), f"this line: {word}"],
        })  # fmt: skip
    return out


def _line(edge: dict[str, Any], by: str, largest: int, chosen: str, faint: bool) -> list[dict[str, Any]]:
    """One of many: the worst that was decided, drawn as cheaply as can be. What was allowed is the background."""
    worst = grouping.worst(edge)
    decision, _, dash = LINES[worst]
    key = _key(edge)
    width = (1.0 if worst else 0.5) + 1.5 * math.log1p(grouping.volume(edge, by)) / math.log1p(largest)
    style = {
        "color": f"var(--{decision.replace('_', '-')})", "width": 4 if key == chosen else round(width, 1),
        "opacity": 1 if key == chosen else 0.15 if faint else 0.9 if worst else 0.25, "type": dash,
    }  # fmt: skip
    pair = f"{grouping.shown(edge['source'])} → {grouping.shown(edge['destination'])}"
    return [{
        "source": edge["source"], "target": edge["destination"], "key": key, "lineStyle": style,
        "tip": [pair, *grouping.told(edge, by)],
    }]  # fmt: skip


def _changed(edge: dict[str, Any], changes: dict[tuple[str, str], Change]) -> list[dict[str, Any]]:
    """What a draft would change of this edge, above all that was decided."""
    change = changes.get((edge["source"], edge["destination"]))
    return [
        {
            "source": edge["source"], "target": edge["destination"],
            "key": _key(edge), "symbolSize": 12,
            "lineStyle": {
                "color": f"var(--{style})", "type": [12, 5] if sign == "−" else "solid", "width": 5, "opacity": 1,
                "curveness": 0.3 + 0.12 * bend,
            },
            "tip": [f"{grouping.shown(edge['source'])} → {grouping.shown(edge['destination'])}",
                    f"{word}: {count:,} flows"],
        }
        for bend, (word, count, style, sign) in enumerate(drawn.told(change))
    ]  # fmt: skip
