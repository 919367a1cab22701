"""What the charts of all views share: quiet axes, a small legend. Colours are names of web/static/ztlens.css."""

import math
from typing import Any

_LABEL = {"color": "var(--dim)", "fontSize": 10, "hideOverlap": True}
_LINE = {"lineStyle": {"color": "var(--line)"}}
LEGEND: dict[str, Any] = {
    "top": 0, "right": 0, "itemWidth": 20, "itemHeight": 8, "textStyle": {"color": "var(--dim)", "fontSize": 11},
}  # fmt: skip


def names(values: list[str]) -> dict[str, Any]:
    """An axis of words."""
    return {"type": "category", "data": values, "axisTick": {"show": False}, "axisLine": _LINE, "axisLabel": _LABEL}


def moments(**more: Any) -> dict[str, Any]:
    """An axis of time."""
    return {"type": "time", "axisLine": _LINE, "axisLabel": _LABEL, **more}


def numbers(**more: Any) -> dict[str, Any]:
    """An axis of whole numbers."""
    return {"type": "value", "minInterval": 1, "axisLabel": _LABEL, "splitLine": _LINE, **more}


def line(name: str, data: list[Any], colour: str, dash: str = "solid", **more: Any) -> dict[str, Any]:
    """A line in steps; dash and colour both tell it from others."""
    return {
        "name": name, "type": "line", "step": "end", "data": data, "color": f"var(--{colour})", "showSymbol": False,
        "lineStyle": {"width": 2, "type": dash}, **more,
    }  # fmt: skip


def pattern(key: str) -> dict[str, Any]:
    """Of a bar for this key of a Split, on its colour: nothing, hatching, or dots."""
    light = {"color": "rgba(255, 255, 255, 0.55)", "rotation": -math.pi / 4}
    if key == "would_deny":
        return {"decal": {"symbol": "rect", "dashArrayX": [1, 0], "dashArrayY": [2, 3], **light}}
    if key == "denied":
        return {"decal": {"symbol": "circle", "symbolSize": 0.9, "dashArrayX": [[2, 2]], "dashArrayY": [2, 2], **light}}
    return {}
