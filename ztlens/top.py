"""What happens now, for `ztlens top`: one document a look, drawn for people."""

import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from schemas import times
from ztlens import lookup, show
from ztlens.config import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sink.client import History

SECONDS = 10
"""Rates are over so long."""
REFRESH = 1.0
BY = {
    "pair": ("src_identity", "dst_identity", "proto", "dport", "rule"),
    "rule": ("rule", "reason"),
    "port": ("proto", "dport"),
    "source": ("src", "src_identity"),
}
"""`--by` → the columns a row is for; behind them comes the decision."""
RATES = ("verdicts", "flows", "dropped")
Row = dict[str, Any]
Document = dict[str, Any]


def query(by: str, now: int, last: int) -> str:
    """Counts over the SECONDS before `now` (ns since 1970), the most verdicts first.

    Without ends: an end has the time of its flow's last packet and comes later, many of them after these seconds.
    """
    keys = ", ".join((*BY[by], "decision"))
    return f"""SELECT {keys}, count(*) AS verdicts, count(*) FILTER (event = 'new') AS flows,
        count(*) FILTER (event = 'new' AND outcome = 'dropped') AS dropped FROM verdicts
        WHERE time >= make_timestamp_ns({now - SECONDS * 10**9}) AND time < make_timestamp_ns({now}) AND event <> 'end'
        GROUP BY ALL ORDER BY verdicts DESC, {keys} LIMIT {last}"""


def look(settings: Settings, history: "History", by: str, last: int) -> Document:
    """Now. Of a part that does not answer nothing is known: None. Raises SinkError when no sink answers."""
    status = history.status()
    rows = list(show.records(history.sql(query(by, time.time_ns(), last))))
    streams = status["streams"].values()
    return {
        "time": times.rfc3339(time.time_ns()),
        "by": by,
        "seconds": SECONDS,
        "collector": _collector(settings),
        "lag": sum(stream.get("lag") or 0 for stream in streams),
        "nodes": {name: node["state"] for name, node in status["nodes"].items()},
        "top": [row | {name: row[name] / SECONDS for name in RATES} for row in rows],
    }


def _collector(settings: Settings) -> Document | None:
    from collector.errors import CollectorError

    try:
        status = lookup.collector_request(settings.run_dir, "status")
    except (CollectorError, OSError):
        return None
    kernel = status["kernel"]
    return {
        "node": status["node"], "mode": status["mode"], "revision": status["revision"],
        "unconfirmed": status["unconfirmed"],
        "live_flows": max(0, kernel["flows_created"] - kernel["flows_ended"]),
        "rates": {name: status["rates"][name] for name in ("packets", "bytes", "events")},
        "ring_fill": status["ring_fill"], "lost": kernel["samples_lost"], "held_back": kernel["samples_held_back"],
    }  # fmt: skip


def headlines(found: Document) -> list[str]:
    """The state in two lines."""
    one = found["collector"]
    nodes = ", ".join(f"{name} {state}" for name, state in found["nodes"].items()) or "no node was heard of"
    if one is None:
        return [f"no collector answers here; nodes: {nodes}", f"sink {found['lag']} messages behind"]
    waits = one["unconfirmed"]
    waiting = f", falls back in {waits['seconds_left']:.0f} s unless confirmed" if waits else ""
    rates = one["rates"]
    return [
        f"node {one['node']}, mode {one['mode']}, revision {one['revision']}{waiting};"
        f" {one['live_flows']:,} live flows, {rates['packets']:,.0f} packets/s, {times.amount(rates['bytes'])}/s,"
        f" {rates['events']:,.0f} events/s",
        f"lost {one['lost']:,}, held back {one['held_back']:,}; ring {100 * one['ring_fill']:.1f} % full,"
        f" sink {found['lag']} messages behind; nodes: {nodes}",
    ]


def cells(found: Document) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    keys = [*BY[found["by"]], "decision"]
    rows = [[*(row[key] for key in keys), *(f"{row[name]:.1f}" for name in RATES)] for row in found["top"]]
    return [*keys, *(f"{name}/s" for name in RATES)], rows


def plain(found: Document) -> None:
    """One look, for a pipe."""
    for line in headlines(found):
        print(line)
    show.table(*cells(found))


def drawn(found: Document, trouble: str = "") -> "RenderableType":
    """One look, for a terminal: red was dropped, yellow denied, green allowed; the words say it, too."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns, rows = cells(found)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name.endswith("/s") else "left", no_wrap=True)
    for row, cell in zip(found["top"], rows, strict=True):
        denied = row["decision"] == "deny"
        style = ("red" if row["dropped"] else "yellow") if denied else "green"
        table.add_row(*(Text(_printable(value), style if value == row["decision"] else "") for value in cell))
    lines = [Text(_printable(line)) for line in headlines(found)]
    if trouble:
        lines.append(Text(_printable(trouble), "red"))
    if not rows:
        lines.append(Text(f"\nno verdict within {SECONDS} s", "dim"))
    return Group(*lines, table, Text(f"by {found['by']}, over {SECONDS} s; q ends", "dim"))


def _printable(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "�" for c in text)


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key: the key, or "" ."""
    if not sys.stdin.isatty():

        def none(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield none
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        return sys.stdin.read(1) if select.select([descriptor], [], [], seconds)[0] else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def screen(take: Callable[[int], Document], most: int | None) -> None:
    """Look and draw each second until q or Ctrl-C; `take` is told how many rows there is room for."""
    from rich.console import Console
    from rich.live import Live

    from sink.errors import SinkError

    console = Console(no_color=not show.coloured(), highlight=False)
    found: Document | None = None
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            room = max(1, console.height - 8)
            try:
                found = take(room if most is None else min(most, room))
                live.update(drawn(found), refresh=True)
            except SinkError as error:
                if found is None:
                    raise
                live.update(drawn(found, f"{error}; as it was at {found['time']}"), refresh=True)
            if pressed(REFRESH) in ("q", "Q"):
                return
