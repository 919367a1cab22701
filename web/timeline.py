"""The histogram above every view: verdict counts over the time around what is shown; a range drawn on it is shown."""

from datetime import UTC, datetime, timedelta
from typing import Any

from web import charts
from web.elements import Chart
from web.page import Page
from web.show import LINES
from web.span import Span, text

BUCKETS = 150
EVERY = 3.0
"""Seconds between two looks for news."""


def timeline(page: Page) -> None:
    """Make it."""
    shown: dict[str, Any] = {"times": [], "width": 1}

    def brushed(first: float, last: float) -> None:
        times = shown["times"]
        if times:
            begin, end = (times[max(0, min(len(times) - 1, round(at)))] for at in (first, last))
            page.show_span(Span(text(begin), text(end + timedelta(seconds=shown["width"]))))

    chart = Chart("Flows over time", options(), brushed=brushed, height="64px")
    chart.classes("timeline")

    async def load() -> None:
        now = datetime.now(UTC)
        around = page.span.around(now)
        found = await page.ask("histogram", {**page.filters, **around.query, "buckets": str(BUCKETS)})
        times = [datetime.fromisoformat(time) for time in found["times"]]
        shown.update(times=times, width=found["width"])
        marks = _marked(times, found["width"], page.span.bounds(now))
        series = [
            {
                "name": word, "type": "bar", "stack": "all", "data": found[key]["flows"], "barCategoryGap": "12%",
                "itemStyle": {"color": f"var(--{key.replace('_', '-')})", **charts.pattern(key)}, "cursor": "crosshair",
                **({"markArea": marks} if key == "allowed" and marks else {}),
            }
            for key, word, _ in LINES
        ]  # fmt: skip
        total = {word: sum(found[key]["flows"]) for key, word, _ in LINES}
        said = "Flows over time: " + ", ".join(f"{count:,} {word}" for word, count in total.items())
        days = len(times) > 1 and times[-1] - times[0] > timedelta(hours=20)
        labels = [time.strftime("%m-%d %H:%M" if days else "%H:%M:%S") for time in times]
        chart.show(said, series=series, xAxis=charts.names(labels))

    page.shows(load, EVERY)


def options() -> dict[str, Any]:
    """An empty histogram."""
    return {
        "grid": {"left": 4, "right": 4, "top": 2, "bottom": 18},
        "xAxis": charts.names([]),
        "yAxis": {"type": "value", "show": False},
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}},
        "toolbox": {"show": False},  # else a brush brings buttons of its own
        "brush": {
            "xAxisIndex": 0,
            "brushStyle": {"color": "var(--brush)", "borderColor": "var(--accent)"},
        },
        "series": [],
    }


def _marked(
    times: list[datetime], width: int, bounds: tuple[datetime | None, datetime] | None
) -> dict[str, Any] | None:
    """The part that is shown, in the histogram of what is around it."""
    if not times or bounds is None or bounds[0] is None:
        return None
    begin, end = bounds[0], bounds[1]
    first = next((i for i, time in enumerate(times) if time + timedelta(seconds=width) > begin), 0)
    last = max((i for i, time in enumerate(times) if time < end), default=len(times) - 1)
    return {
        "silent": True, "itemStyle": {"color": "var(--brush)"},
        "data": [[{"xAxis": first}, {"xAxis": last}]],
    }  # fmt: skip
