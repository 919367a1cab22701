"""The newest verdicts of a span that satisfy a predicate, a page at a time.

The view `verdicts` makes text of addresses and names of numbers: microseconds a row, so few rows may come to that. How
far a page reaches back is found first, with no more of the view than the predicate speaks of, in growing steps from the
end of the span: what lies before the page is not read. Then its rows are asked for.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa

from sink.history import moments
from sink.history.query import Parameters

Ask = Callable[[str, Parameters], pa.Table]
STEP = 1_000_000_000
"""ns looked back at first; …"""
GROWTH = 8
"""… each further look reaches so many times as far."""
NAMED = 200
"""So many times at most are asked for by name: other rows are then passed by when only their time has been read."""
_REACH = f"""count(*) AS rows, epoch_ns(min(time)) AS first,
    list_slice(list(DISTINCT epoch_ns(time)), 1, {NAMED + 1}) AS moments"""
_ORDER = "time, node, ring, position"


class Place(NamedTuple):
    """Where a row stands among all: by time (ns since 1970 UTC), then node, ring and position."""

    time: int
    node: str
    ring: str
    position: int


def place(rows: pa.Table, number: int) -> Place:
    """The place of row `number` of a page."""
    time, *rest = (rows[name][number] for name in Place._fields)
    return Place(time.value, *(value.as_py() for value in rest))


def recent(
    ask: Ask,
    where: str = "true",
    parameters: Parameters = None,
    *,
    since: int | None = None,
    until: int | None = None,
    before: Place | None = None,
    limit: int = 20,
) -> pa.Table:
    """The last `limit` rows of the view `verdicts` in a span that satisfy `where`, oldest first, all its columns.

    `ask` answers SQL with parameters, as `History.sql` does. `where` is a predicate over the view, with `parameters`;
    [since, until) in ns since 1970 UTC, None: no bound. `before`: only rows before that place; so the next page,
    further back, is the one before the `place` of this one's row 0, and a page of less than `limit` rows is the last.
    Raises what `ask` does (SinkError), QueryError for a moment that history cannot hold.
    """
    moments.check(since, until, None if before is None else before.time)
    held = ask("SELECT epoch_ns(min(time)) AS oldest, epoch_ns(max(time)) AS newest FROM store.verdicts", None)
    oldest, newest = (held[name][0].as_py() for name in ("oldest", "newest"))
    if oldest is None:  # empty
        oldest = newest = 0
    ends = [newest + 1, *([] if until is None else [until]), *([] if before is None else [before.time + 1])]
    end = min(ends)
    begin = min(end, oldest if since is None else max(oldest, since))
    condition = f"({where}\n) AND time < make_timestamp_ns({end})"
    if before is not None:
        rest = f"({_text(before.node)}, {_text(before.ring)}, {before.position}::UBIGINT)"
        condition += f" AND NOT (time = make_timestamp_ns({before.time}) AND (node, ring, position) >= {rest})"

    def after(moment: int) -> str:
        return f"FROM verdicts WHERE {condition} AND time >= make_timestamp_ns({moment})"

    back, start = STEP, end
    while True:
        start = max(begin, end - back)
        times = f"SELECT time {after(start)} ORDER BY time DESC LIMIT {int(limit)}"
        (reach,) = ask(f"SELECT {_REACH} FROM ({times})", parameters).to_pylist()
        if reach["rows"] >= limit or start <= begin:
            break
        back *= GROWTH
    page = after(end if reach["first"] is None else reach["first"])
    if reach["rows"] and len(reach["moments"]) <= NAMED:
        page += f" AND time IN ({', '.join(f'make_timestamp_ns({moment})' for moment in reach['moments'])})"
    # With a row come all of its time.
    found = ask(f"SELECT * {page} ORDER BY {_ORDER}", parameters)
    return found.slice(max(0, found.num_rows - limit))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
