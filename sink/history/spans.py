"""What was said in a span of time, summed by pair: the roll-ups, and events where these do not reach.

Whole hours come from store.pairs_1h, whole minutes from store.pairs_1m; minutes the span cuts, and what is not rolled
up yet, from increments of the events. So a question about a month reads small tables, and is exact all the same.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb

from schemas.codes import EventKind
from schemas.verdict import STRIDE
from sink.errors import BusyError
from sink.history import moments
from sink.history.increments import BASE, EVENT, increments
from sink.history.pairs import (
    COLUMNS,
    FOR_EVER,
    HOUR,
    KEYS,
    MINUTE,
    SUMS,
    TOTALS,
    added,
    judged,
    summed,
    uncounted,
    within,
)
from sink.store.ranges import RangeSet

WAITING_MOST = 2_000_000
"""Events not rolled up that a question adds up by itself: about 500 bytes of memory each."""
_NEW = int(EventKind.NEW)


class Level(NamedTuple):
    """`table` has rows of `length` ns of time, up to `until`; finer ones may be deleted before `finer_from`."""

    table: str
    length: int
    until: int
    finer_from: int


class Piece(NamedTuple):
    """[first, past) in rows of `table`, or in events. Not `exact`: the rows reach beyond what was asked for."""

    table: str
    first: int
    past: int
    exact: bool = True


def pieces(first: int, past: int, levels: list[Level]) -> Iterator[Piece]:
    """[first, past) in the coarsest rows that fit, coarse `levels` first; what is left at its ends in finer ones."""
    if first >= past:
        return
    if not levels:
        yield Piece("events", first, past)
        return
    table, length, until, finer_from = levels[0]
    begin, end = -(-first // length) * length, min(past // length * length, until)
    ends = [(first, past)]
    if begin < end:
        yield Piece(table, begin, end)
        ends = [(first, begin), (end, past)]
    for a, b in ends:
        finer = a
        if a < min(b, finer_from):
            finer = -(-min(b, finer_from) // length) * length
            yield Piece(table, a // length * length, finer, exact=False)
        yield from pieces(finer, b, levels[1:])


def relation(
    cursor: duckdb.DuckDBPyConnection,
    since: int | None = None,
    until: int | None = None,
    *,
    grain: int = HOUR,
    crossing: bool = True,
) -> str:
    """SQL, in parentheses, of rows that say everything of [since, until), ns since 1970; None: no bound.

    Columns: ring, time, the keys and sums of the roll-ups, first_seen, last_seen, and
    `detail`: false where finer rows than the span needs are deleted: the row reaches beyond the span, or holds what a
    flow did before it;
    `crossing`: in extra rows without flows, packets and bytes, how many flows that were open at `since` have an event
    in the span, by what the last one says. Flows that touch the span: sum(flows + crossing). Only if asked for.

    `grain`: ns of time that no row may be longer than: an hour, a minute, or a part of one (then all is read from
    events, which are to be there: `kept`).

    To be used within one transaction on `cursor`, begun by the caller; a temporary table stays in it. `duplicate` is
    true where that is known: of flows whose first record is not rolled up yet it is not, and of parts of a minute only
    where all that the pair said in the minute is. Raises BusyError when more than WAITING_MOST events are not,
    QueryError for bounds that history cannot hold.
    """
    moments.check(since, until)
    first, past = (min(max(0, bound), FOR_EVER) for bound in (since or 0, FOR_EVER if until is None else until))
    events_from, minutes_from, folded = kept(cursor)
    waits = unrolled(cursor)
    waiting = sum(ranges.total() for ranges in waits.values()) // STRIDE
    if waiting > WAITING_MOST:
        raise BusyError(
            f"{waiting:,} events are not summed up yet",
            "ask again in a while; where no sink runs, start one",
        )
    cursor.execute(
        f"CREATE OR REPLACE TEMP TABLE events_of_span AS SELECT {COLUMNS}, true AS detail FROM store.pairs_1m LIMIT 0"
    )
    parts = [f"SELECT {COLUMNS}, detail, 0::UBIGINT AS crossing FROM events_of_span"]
    length = min(MINUTE, grain)
    for ring, ranges in waits.items():
        _add_unrolled(cursor, ring, ranges, (first, past), length)
    levels = [Level("pairs_1h", HOUR, folded, minutes_from), Level("pairs_1m", MINUTE, FOR_EVER, events_from)]
    levels = [level for level in levels if level.length <= grain]
    for piece in pieces(first, past, levels):
        if piece.table == "events":
            for ring, ranges in waits.items():
                _add_cut(cursor, ring, piece, ranges, length)
        else:
            parts.append(
                f"SELECT {COLUMNS}, {piece.exact}, 0 FROM store.{piece.table} WHERE {within(piece.first, piece.past)}"
            )
    if crossing and since is not None:
        parts.append(_crossing(cursor, first, past))
    return f"({' UNION ALL '.join(parts)})"


def kept(cursor: duckdb.DuckDBPyConnection) -> tuple[int, int, int]:
    """Where events and minutes begin, for older ones may be deleted, and where hours end; ns since 1970."""
    row = _row(
        cursor,
        f"""SELECT coalesce(max(epoch_ns(newest)) FILTER (cause IN ('age', 'size')) + 1, 0),
            coalesce((max(epoch_ns(newest)) FILTER (cause = 'minutes') // {HOUR} + 1) * {HOUR}, 0),
            (SELECT coalesce(max(epoch_ns(before)), 0) FROM store.folded) FROM store.retention""",
    )
    return int(row[0]), int(row[1]), int(row[2])


def _row(cursor: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The only row. Read to its end: DuckDB 2 does nothing else on a connection before."""
    (row,) = cursor.execute(sql).fetchall()
    return tuple(row)


def unrolled(cursor: duckdb.DuckDBPyConnection) -> dict[int, RangeSet]:
    """By ring, the ranges that are stored but not rolled up."""
    held: dict[int, RangeSet] = {}
    for ring, first, past in cursor.execute("SELECT ring, first, past FROM store.ranges").fetchall():
        held.setdefault(ring, RangeSet()).add(first, past)
    for ring, first, past in cursor.execute("SELECT ring, first, past FROM store.rolled").fetchall():
        held[ring].remove(first, past)
    return held


def _add_unrolled(
    cursor: duckdb.DuckDBPyConnection, ring: int, ranges: RangeSet, span: tuple[int, int], length: int
) -> None:
    """What the events at `ranges` of a ring, which are not rolled up, add within the span."""
    parts = list(ranges)
    if not parts:
        return
    (later,) = _row(cursor, f"SELECT coalesce(max(past), 0) FROM store.rolled WHERE ring = {ring}")
    where = " OR ".join(f"({uncounted(ring, first, past, later)})" for first, past in parts)
    where = f"ring = {ring} AND position >= {parts[0][0]} AND position < {parts[-1][1]} AND ({where})"
    events = f"SELECT {', '.join(EVENT)} FROM store.verdicts WHERE {where}"
    before = f"""SELECT {", ".join(BASE)} FROM store.open_flows
        WHERE ring = {ring} AND NOT ended AND flow_id IN (SELECT flow_id FROM events)"""
    known = f"LEFT JOIN store.open_flows AS o ON o.ring = {ring} AND NOT o.ended AND o.flow_id = i.flow_id"
    rows = added(judged(ring, where), "coalesce(o.duplicate, false)", known)
    _add(cursor, events, before, rows, span, length)


def _add_cut(cursor: duckdb.DuckDBPyConnection, ring: int, piece: Piece, waits: RangeSet, length: int) -> None:
    """What the events of a part of a minute add; those of `waits` are seen to already.

    A clock that was set back comes by twice: what the flows did between is needed for their differences.
    """
    rolled = f"ring = {ring}" + "".join(f" AND NOT (position >= {a} AND position < {b})" for a, b in waits)
    inside = f"{rolled} AND {within(piece.first, piece.past)}"
    bounds = _row(cursor, f"SELECT min(position), max(position) FROM store.verdicts WHERE {inside}")
    if bounds[0] is None:
        return
    events = f"""SELECT {", ".join(EVENT)} FROM store.verdicts LEFT JOIN (
            SELECT flow_id, min(position) AS first, max(position) AS last FROM store.verdicts
            WHERE {inside} AND flow_id <> 0 GROUP BY flow_id
        ) AS of_flow USING (flow_id)
        WHERE {rolled} AND position BETWEEN {bounds[0]} AND {bounds[1]}
        AND ({within(piece.first, piece.past)} OR position BETWEEN first AND last)"""
    totals = ", ".join(f"max(v.{name}) AS {name}" for name in TOTALS)  # totals never fall
    before = f"""SELECT max(v.position) AS position, flow_id, {totals} FROM store.verdicts AS v JOIN (
            SELECT flow_id, min(position) AS first FROM events WHERE flow_id <> 0
            GROUP BY flow_id HAVING min(event) <> {_NEW}
        ) AS e USING (flow_id)
        WHERE ring = {ring} AND v.position < e.first AND v.position < {bounds[1]} GROUP BY flow_id"""
    verdicts = f"""(SELECT ring, position, {", ".join(KEYS[:-1])} FROM store.verdicts WHERE ring = {ring}
        AND position BETWEEN (SELECT min(judged) FROM increments) AND (SELECT max(judged) FROM increments))"""
    duplicate = _duplicate(cursor, piece.first, piece.past)
    rows = f"(SELECT e.* REPLACE ({duplicate} AS duplicate) FROM {added(verdicts)} AS e)"
    _add(cursor, events, before, rows, (piece.first, piece.past), length, f"bool_and(flows = 0 OR event = {_NEW})")


def _add(  # noqa: PLR0917 – what is asked, in the order it is asked
    cursor: duckdb.DuckDBPyConnection,
    events: str,
    before: str,
    rows: str,
    span: tuple[int, int],
    length: int,
    detail: str = "true",
) -> None:
    """Add increments of `events`, after those that `before` asks for, summed by `length` ns, to events_of_span: `rows`
    has their verdicts."""
    found = cursor.execute(events).to_arrow_table()
    if not found:
        return
    cursor.register("events", found)
    cursor.register("increments", increments(found, cursor.execute(before).to_arrow_table()).rows)
    cursor.unregister("events")
    cursor.execute(f"INSERT INTO events_of_span {summed(rows, length, *span, f', {detail}')}")
    cursor.unregister("increments")


def _duplicate(cursor: duckdb.DuckDBPyConnection, first: int, past: int) -> str:
    """Of rolled up events `e` in the span: whether all that their pair said in their minute is known as duplicate."""
    (several,) = _row(cursor, "SELECT count(DISTINCT node) > 1 FROM store.rings")
    if not several:
        return "false"
    return f"""coalesce((SELECT bool_and(p.duplicate) FROM store.pairs_1m AS p
        WHERE {within(first // MINUTE * MINUTE, past, "p.time")} AND p.ring = e.ring
        AND p.time = make_timestamp_ns(epoch_ns(e.time) // {MINUTE} * {MINUTE})
        AND {" AND ".join(f"p.{name} = e.{name}" for name in KEYS[:-1])}), false)"""


def _crossing(cursor: duckdb.DuckDBPyConnection, first: int, past: int) -> str:
    """Flow ids of one CPU rise with the moments the flows began: a flow below all that began in the span crosses."""
    none = ", ".join(f"0 AS {name}" for name in SUMS)
    keys = ", ".join(f"e.{name}" for name in KEYS[:-1])
    duplicate = f"coalesce(o.duplicate, {_duplicate(cursor, first, past)})"
    return f"""SELECT e.ring, e.time, {keys}, {duplicate}, {none}, e.time, e.time, true, 1
        FROM store.verdicts AS e JOIN (
            SELECT e.ring, max(e.position) AS position FROM store.verdicts AS e LEFT JOIN (
                SELECT ring, flow_id >> 48 AS cpu, min(flow_id) AS least FROM store.verdicts
                WHERE time >= make_timestamp_ns({first}) AND event = {_NEW} GROUP BY ALL
            ) AS born ON born.ring = e.ring AND born.cpu = e.flow_id >> 48
            WHERE {within(first, past, "e.time")} AND e.flow_id <> 0
                AND (born.least IS NULL OR e.flow_id < born.least) GROUP BY e.ring, e.flow_id
        ) AS last ON last.ring = e.ring AND last.position = e.position
        LEFT JOIN store.open_flows AS o ON o.ring = e.ring AND o.flow_id = e.flow_id"""
