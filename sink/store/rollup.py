"""Roll-ups: what each pair said in each minute and hour, exact, kept longer than the verdicts it is made from.

A step takes events of a ring that are complete (no hole before them) and not rolled up yet, turns them into
increments, and stores their sums by minute, the range they cover and the flows left open in one transaction: a kill
leaves all of it or nothing, and each event counts once. Minutes are folded into hours when the hour is over; what comes
later still is added to both.

A conversation that several nodes see is counted once: it belongs to the node whose record of it was rolled up first,
the flows of the others are `duplicate`, until it is over there, or the node is gone, and it goes on elsewhere. A node
that comes back owns what nobody took over. Untracked events name no conversation and are never duplicates.
"""

from collections.abc import Iterable

import duckdb

from schemas.codes import EventKind
from sink.history.increments import BASE, EVENT, increments
from sink.history.pairs import ALIKE, FOR_EVER, HOUR, KEYS, MINUTE, TOTALS, added, judged, summed, uncounted, within
from sink.store.database import now_ns
from sink.store.ranges import RangeSet
from sink.store.state import Ring
from sink.store.store import Store

STEP_EVENTS = 250_000
"""Events a step takes at most."""
DUE_EVENTS = 100_000
"""Events that need not wait for more: questions work out anew what is not rolled up, each of them."""
FOLD_ROWS = 500_000
"""Rows of minutes folded at a time."""
SETTLED = 300_000_000_000
"""ns after its end at which an hour is folded."""
SKEW = 10_000_000_000
"""ns by which two nodes' clocks may differ for their records to be of one conversation."""
REMEMBERED = 600_000_000_000
"""ns, in the history's own time, that an ended flow is remembered for where there are several nodes."""

GIVEN_UP = 60.0
"""Seconds for which a ring is not heard of, while another is, before it owns nothing any more."""

_END = int(EventKind.END)

# Flows of `last_events` that another node owns: the same ends (of TCP, UDP and SCTP either way round, for who came
# later may have taken them the other way) at the same time. Of one that is a duplicate since long: its owner was still
# there when it was last heard of before. An `end` adds what its owner may have told already: it stays what it was.
# Of one that owned it itself: somebody else has told of it since then, so its ring had been given up.
_ENDS = (("src_hi", "dst_hi"), ("src_lo", "dst_lo"), ("sport", "dport"))
_EITHER_WAY = (
    " AND ".join(f"o.{a} = l.{a} AND o.{b} = l.{b}" for a, b in _ENDS),
    " AND ".join(f"o.{a} = l.{b} AND o.{b} = l.{a}" for a, b in _ENDS) + " AND l.proto IN (6, 17, 132)",
)
_OPEN = "NOT coalesce(l.duplicate AND l.ended, false)"
_OVER = "(o.ended OR o.ring IN (SELECT unnest($gone)))"
_OWNED = " UNION ALL ".join(
    f"""SELECT l.flow_id FROM last_events AS l JOIN store.open_flows AS o
            ON o.family = l.family AND o.proto = l.proto AND {ends}
        WHERE {_OPEN} AND NOT o.duplicate AND o.ring IN (SELECT unnest($others))
        AND epoch_ns(o.first_seen) - {SKEW} <= epoch_ns(l.time)
        AND CASE WHEN l.duplicate IS DISTINCT FROM false
            THEN epoch_ns(o.time) + {SKEW} >= epoch_ns(coalesce(l.before, l.first_seen)) OR NOT {_OVER}
            ELSE o.time > l.before AND NOT {_OVER} END"""
    for ends in _EITHER_WAY
)


def waiting(ring: Ring) -> list[tuple[int, int]]:
    """Ranges of `ring` that are stored, complete (no hole before them; a gap is none) and not rolled up."""
    both = ring.held.copy()
    for first, past in ring.gaps:
        both.add(first, past)
    complete = next((past for first, past in both if first == 0), 0)
    left = ring.rolled.missing(0, complete)
    return [part for a, b in left for part in RangeSet(ring.held.missing(a, b)).missing(a, b)]


def due(store: Store) -> bool:
    """Whether so many events wait that they are worth a step."""
    return any(
        sum(past - first for first, past in waiting(ring)) >= DUE_EVENTS * ring.stride
        for ring in store.state.rings.values()
    )


def rolled_below(ring: Ring) -> int:
    """Position below which everything that is stored is rolled up."""
    for first, past in ring.held:
        for begin, _ in ring.rolled.missing(first, past):
            return begin
    return max((past for _, past in ring.rolled), default=0)


def step(store: Store, events: int = STEP_EVENTS) -> int:
    """Roll up the next events, at most `events` of one ring; how many. Raises StoreError: rolled back, try again.

    The ring that is furthest behind in time comes first: what several nodes saw is compared while it is remembered.
    """
    for _, ring, first, end in (behind := sorted(_behind(store), key=lambda one: one[0]))[:1]:
        past = min(end, first + events * ring.stride)
        if any(other.node != ring.node for other in store.state.rings.values()):
            past = _soon(store, ring, first, past)
        elsewhere = min((time for time, other, *_ in behind if other.node != ring.node), default=FOR_EVER)
        with store.transaction("roll-up"):
            _roll(store, ring, (first, past), elsewhere)
        ring.rolled.add(first, past)
        store.state.range_rows += 1
        return (past - first) // ring.stride
    return 0


def _behind(store: Store) -> list[tuple[int, Ring, int, int]]:
    """Of each ring with events to roll up: the time of the first (ns since 1970), the ring, and their range."""
    found = []
    for ring in store.state.rings.values():
        for first, end in waiting(ring)[:1]:
            row = store.connection.execute(
                "SELECT epoch_ns(time) FROM store.verdicts WHERE ring = ? AND position = ?", [ring.id, first]
            ).fetchone()
            found.append((int(row[0]) if row else 0, ring, first, end))
    return found


def _soon(store: Store, ring: Ring, first: int, past: int) -> int:
    """Where what is told within a minute ends in [first, past): whose conversation it is, is asked once a step.

    By events that tell of the moment they were made at: an `end` has the time of its flow's last packet.
    """
    told = f"FROM store.verdicts WHERE ring = $ring AND position >= $first AND position < $past AND event <> {_END}"
    row = store.connection.execute(
        f"""SELECT min(position) {told}
            AND epoch_ns(time) >= {MINUTE} + (SELECT epoch_ns(arg_min(time, position)) {told})""",
        {"ring": ring.id, "first": first, "past": past},
    ).fetchone()
    return past if row is None or row[0] is None else int(row[0])


def fold(store: Store, now: int | None = None) -> bool:
    """Fold the next hour's minutes if the hour is over at `now` (ns since 1970); False: there is none to fold.

    An hour at a time, and a large one in parts, so that memory is bounded however much has waited. Raises StoreError.
    """
    before = ((now_ns() if now is None else now) - SETTLED) // HOUR * HOUR
    since = folded(store.connection)
    if before <= since:
        return False
    waits = store.connection.execute(
        f"SELECT epoch_ns(min(time)) // {HOUR} * {HOUR} FROM store.pairs_1m WHERE {within(since, before)}"
    ).fetchone()
    if waits is None or waits[0] is None:
        hour, past, rows = before, before, 0
    else:
        hour, past = int(waits[0]), int(waits[0]) + HOUR
        counted = store.connection.execute(f"SELECT count(*) FROM store.pairs_1m WHERE {within(hour, past)}").fetchone()
        rows = int(counted[0]) if counted else 0
    with store.transaction("roll-up") as connection:
        parts = -(-rows // FOLD_ROWS)
        for part in range(parts):
            some = f"(SELECT * FROM store.pairs_1m WHERE hash(dst_lo, src_lo) % {parts} = {part})"
            connection.execute(f"INSERT INTO store.pairs_1h {summed(some, HOUR, hour, past)} {ALIKE}")
        connection.execute("INSERT INTO store.folded VALUES (make_timestamp_ns(?))", [past])
    return True


def forget(store: Store, before: int) -> int:
    """Delete what is remembered of flows of rings that are over; how many. Raises StoreError.

    Of a ring when all that is stored of it is rolled up and other nodes are past it: of a closed one without a gap at
    once, for nothing of it can come any more; of one with a gap, which may be filled yet, or that ended without a word,
    for its node has a newer one, when nothing was heard of it since `before` (ns since 1970): should it come back even
    then, its open flows count anew.
    """
    rings = store.state.rings.values()
    newest = _newest(rings)
    done = [ring for ring in rings if not ring.holes() and not waiting(ring)]
    closed = [ring.id for ring in done if ring.closed and not ring.gaps]
    silent = [ring.id for ring in done if ring.closed or ring.id != newest[ring.node]]
    past = min([now_ns(), *(time for time, *_ in _behind(store))]) - REMEMBERED
    with store.transaction("housekeeping") as connection:
        row = connection.execute(
            """DELETE FROM store.open_flows WHERE epoch_ns(time) < $past AND (ring IN (SELECT unnest($closed))
                OR epoch_ns(time) < $before AND ring IN (SELECT unnest($silent)) AND ring NOT IN (
                    SELECT ring FROM store.loss WHERE time >= make_timestamp_ns($before)))""",
            {"past": past, "before": max(0, before), "closed": closed, "silent": silent},
        ).fetchone()
    return int(row[0]) if row else 0


def _newest(rings: Iterable[Ring]) -> dict[str, int]:
    """Of each node its newest ring. A reboot ends a ring without a word; the flows it held never end."""
    return {ring.node: ring.id for ring in sorted(rings, key=lambda ring: ring.id)}


def folded(connection: duckdb.DuckDBPyConnection) -> int:
    """Minutes before this moment (ns since 1970) are in store.pairs_1h."""
    row = connection.execute("SELECT coalesce(epoch_ns(max(before)), 0) FROM store.folded").fetchone()
    return int(row[0]) if row else 0


def _roll(store: Store, ring: Ring, positions: tuple[int, int], elsewhere: int) -> None:
    """Other nodes have events to roll up from the time `elsewhere` on."""
    first, past = positions
    connection = store.connection
    span = {"ring": ring.id, "first": first, "past": past}
    connection.execute("INSERT INTO store.rolled VALUES ($ring, $first, $past)", span)
    where = uncounted(ring.id, first, past, max((end for _, end in ring.rolled), default=0))
    events = connection.execute(f"SELECT {', '.join(EVENT)} FROM store.verdicts WHERE {where}").to_arrow_table()
    connection.register("events", events)
    base = connection.execute(
        f"SELECT {', '.join(BASE)} FROM store.open_flows WHERE ring = $ring AND NOT ended"
        " AND flow_id IN (SELECT flow_id FROM events)",
        {"ring": ring.id},
    ).to_arrow_table()
    connection.unregister("events")
    found = increments(events, base)
    connection.register("increments", found.rows)
    connection.register("flows", found.flows)
    try:
        _note(store, ring, span, elsewhere)
    finally:
        connection.unregister("increments")
        connection.unregister("flows")


def _note(store: Store, ring: Ring, span: dict[str, int], elsewhere: int) -> None:
    """Store what `increments` and `flows` say of `ring`."""
    connection = store.connection
    rings = store.state.rings.values()
    others = [one.id for one in rings if one.node != ring.node]
    newest = _newest(rings)
    silent = ring.heard - GIVEN_UP
    read = store.state.read
    gone = [one.id for one in rings if one.closed or one.id != newest[one.node] or max(one.heard, read) < silent]
    verdict = ", ".join(f"v.{name}" for name in KEYS[:-1])
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE last_events AS
            SELECT v.ring, v.flow_id, v.position, v.time, coalesce(o.first_seen, f.first_seen) AS first_seen, v.sport,
                {verdict}, o.duplicate, {", ".join(f"v.{name}" for name in TOTALS)}, f.ended,
                o.time AS before
            FROM flows AS f JOIN store.verdicts AS v ON v.position = f.position
                LEFT JOIN store.open_flows AS o ON o.ring = v.ring AND o.flow_id = v.flow_id
            WHERE v.ring = $ring AND v.position >= $first AND v.position < $past AND (NOT f.ended OR $several)""",
        {**span, "several": bool(others)},
    )
    connection.execute(
        f"UPDATE last_events AS l SET duplicate = {f'flow_id IN ({_OWNED})' if others else 'false'} WHERE {_OPEN}",
        {"others": others, "gone": gone} if others else {},
    )
    where = f"ring = {span['ring']} AND position >= {span['first']} AND position < {span['past']}"
    verdicts = judged(ring.id, where)
    if others:
        of = "LEFT JOIN last_events AS l ON l.flow_id = i.flow_id"
        rows = added(verdicts, "coalesce(l.duplicate, false)", of)
    else:
        rows = added(verdicts)
    connection.execute(f"INSERT INTO store.pairs_1m {summed(rows, MINUTE)} {ALIKE}")
    connection.execute(f"INSERT INTO store.pairs_1h {summed(rows, HOUR, past=folded(connection))} {ALIKE}")
    connection.execute(
        "DELETE FROM store.open_flows WHERE ring = ? AND flow_id IN (SELECT flow_id FROM flows)", [ring.id]
    )
    connection.execute("INSERT INTO store.open_flows SELECT * EXCLUDE (before) FROM last_events")
    if others:
        connection.execute(
            "DELETE FROM store.open_flows WHERE ended AND ring = $ring AND epoch_ns(time) + $remembered < $elsewhere"
            " AND epoch_ns(time) + $remembered < (SELECT max(epoch_ns(time)) FROM last_events)",
            {"ring": ring.id, "remembered": REMEMBERED, "elsewhere": elsewhere},
        )
