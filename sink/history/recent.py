"""The newest verdicts of a span that satisfy a predicate, a page at a time.

The view `verdicts` makes text of addresses and names of numbers: microseconds a row, so few rows may come to that. How
far a page reaches back is found first, with no more of the view than the predicate speaks of, in growing steps from the
end of the span: what lies before the page is not read. Then its rows are asked for, and put in order here: DuckDB takes
as long to plan a sort of so many columns as to find the rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa

from sink.history import ends, moments
from sink.history.query import Parameters
from sink.history.views import verdicts_of

Ask = Callable[[str, Parameters], pa.Table]
STEP = 1_000_000_000
"""ns looked back at first; …"""
GROWTH = 8
"""… each further look reaches so many times as far."""
NAMED = 200
"""So many times at most are asked for by name: other rows are then passed by when only their time has been read."""


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
    rows: str = ends.TABLE,
) -> pa.Table:
    """The last `limit` rows of the view `verdicts` in a span that satisfy `where`, oldest first, all its columns.

    `ask` answers SQL with parameters, as `History.sql` does. `where` is a predicate over the view, with `parameters`;
    [since, until) in ns since 1970 UTC, None: no bound. `before`: only rows before that place; so the next page,
    further back, is the one before the `place` of this one's row 0, and a page of less than `limit` rows is the last.
    `rows`: a relation to put for store.verdicts (sink.history.ends).
    Raises what `ask` does (SinkError), QueryError for a moment that history cannot hold.
    """
    moments.check(since, until, None if before is None else before.time)
    held = ask("SELECT epoch_ns(min(time)) AS oldest, epoch_ns(max(time)) AS newest FROM store.verdicts", None)
    oldest, newest = (held[name][0].as_py() for name in ("oldest", "newest"))
    if oldest is None:  # empty
        oldest = newest = 0
    bounds = [newest + 1, *([] if until is None else [until]), *([] if before is None else [before.time + 1])]
    end = min(bounds)
    begin = min(end, oldest if since is None else max(oldest, since))
    condition = f"({where}\n) AND time < make_timestamp_ns({end})"
    if before is not None:
        rest = f"({_text(before.node)}, {_text(before.ring)}, {before.position}::UBIGINT)"
        condition += f" AND NOT (time = make_timestamp_ns({before.time}) AND (node, ring, position) >= {rest})"
    narrow = f"FROM ({verdicts_of(rows, spoken=condition)}) AS verdicts WHERE {condition}"
    back, start = STEP, end
    while True:
        start = max(begin, end - back)
        look = f"{narrow} AND time >= make_timestamp_ns({start}) ORDER BY time DESC LIMIT {int(limit)}"
        times = ask(f"SELECT epoch_ns(time) AS moment {look}", parameters)["moment"].to_pylist()
        if len(times) >= limit or start <= begin:
            break
        back *= GROWTH
    page = f"time >= make_timestamp_ns({min(times, default=end)}) AND time < make_timestamp_ns({end})"
    apart = set(times)
    if where.lower() != "true" and 0 < len(apart) <= NAMED:  # where all rows are wanted none lie between
        page += f" AND time IN ({', '.join(f'make_timestamp_ns({moment})' for moment in apart)})"
    # With a row come all of its time.
    view = verdicts_of(ends.together(f"{rows} WHERE {page}"))
    found = ask(f"SELECT * FROM ({view}) AS verdicts WHERE {condition}", parameters)
    found = found.sort_by([(name, "ascending") for name in Place._fields])
    return found.slice(max(0, found.num_rows - limit))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
