"""What happens now, for `ztlens top`: one document a look, drawn for people."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from schemas import times
from ztlens import lookup, show
from ztlens.config import Settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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
NAMES = {"src_identity", "dst_identity", "src", "rule", "reason"}
"""Columns of text of any length."""
AROUND = 5
"""Lines around the rows and below what is said on top: one empty, names, a rule, one empty, how to end it."""
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


def drawn(found: Document, console: "Console", trouble: str = "") -> "RenderableType":
    """One look, for a terminal: red was dropped, yellow denied, green allowed; the words say it, too.

    As many rows as there is room for. Where it is narrow, names are cut before numbers are.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    lines = [Text(_printable(line)) for line in headlines(found)]
    if trouble:
        lines.append(Text(_printable(trouble), "red"))
    if not found["top"]:
        lines.append(Text(f"\nno verdict within {SECONDS} s", "dim"))
    room = max(1, console.height - len(console.render_lines(Group(*lines), pad=False)) - AROUND)
    columns, rows = cells(found)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0)
    for name in columns:
        # What may wrap is what rich makes narrower first; the cells themselves are of one line.
        table.add_column(name, justify="right" if name.endswith("/s") else "left", no_wrap=name not in NAMES)
    for row, cell in list(zip(found["top"], rows, strict=True))[:room]:
        denied = row["decision"] == "deny"
        style = ("red" if row["dropped"] else "yellow") if denied else "green"
        table.add_row(*(
            Text(_printable(value), style if value == row["decision"] else "", no_wrap=True, overflow="ellipsis")
            for value in cell
        ))  # fmt: skip
    return Group(*lines, table, Text(f"by {found['by']}, over {SECONDS} s; q ends", "dim"))


def _printable(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "�" for c in text)


@contextmanager
def keys() -> Iterator[Callable[[float], bytes]]:
    """A function that waits so many seconds for a key or another size of the terminal: the key, or nothing."""
    import termios
    import tty

    descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    state = None if descriptor is None else termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> bytes:
        ready = select.select([woken] if descriptor is None else [woken, descriptor], [], [], seconds)[0]
        if woken in ready:
            os.read(woken, 4096)  # many sizes while a window is dragged: one drawing
        return os.read(descriptor, 1) if descriptor is not None and descriptor in ready else b""

    try:
        if descriptor is not None:
            tty.setcbreak(descriptor)
        yield pressed
    finally:
        if descriptor is not None and state is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, state)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGWINCH, before)
        os.close(woken)
        os.close(wakes)


def screen(take: Callable[[int], Document], most: int | None) -> None:
    """Look each second, and draw that at any size, until q, Ctrl-C or SIGTERM; `take` is told how many rows at most."""
    from rich.console import Console
    from rich.live import Live

    from sink.errors import SinkError

    console = Console(no_color=not show.coloured(), highlight=False)
    found: Document | None = None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the terminal is given back whoever ends it
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            trouble = ""
            try:
                found = take(console.height if most is None else min(most, console.height))
            except SinkError as error:
                if found is None:
                    raise
                trouble = f"{error}; as it was at {found['time']}"
            until = time.monotonic() + REFRESH
            while (left := until - time.monotonic()) > 0:
                live.update(drawn(found, console, trouble), refresh=True)
                if pressed(left) in (b"q", b"Q"):
                    return
