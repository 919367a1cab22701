"""Flows a page at a time, filtered and sorted over all history; one flow with its samples.

What a flow came to is said by its last event: its `end`, of which there is one a flow, or, of flows that have not
ended, by the event that store.open_flows knows or that is not rolled up yet. So no grouping of all events is needed:
one pass over the ends with a heap of a page's size, and few rows of text at the end.
"""

from typing import Any, NamedTuple

from schemas import http
from schemas.codes import EventKind
from sink.errors import AbsentError
from sink.history import asked as asking
from sink.history import spans
from sink.history.asked import Bounds
from sink.history.ledger import rfc3339
from sink.history.pairs import uncounted
from sink.history.policies import revision
from sink.history.reading import Reading
from sink.history.records import FLOW, VERDICT, dicts, flow_id
from sink.history.views import verdicts_of

TOGETHER = 10
"""Pages read at once where flows lie scattered over all history (sink.api.ahead), …"""
TOGETHER_MOST = 1000
"""… of so many flows."""
SAMPLES = 1000
"""Events shown of a flow, its newest."""
_SORTS: dict[str, tuple[str, ...]] = {
    "last_seen": ("time",), "src": ("family", "src_hi", "src_lo"), "dst": ("family", "dst_hi", "dst_lo"),
}  # fmt: skip
"""Sort → what it goes by, where that is not the column of its name: of addresses their number."""
_STORED = ", v.ring AS number, v.src_hi, v.src_lo, v.dst_hi, v.dst_lo"


class Key(NamedTuple):
    """Of the last row of a page: what it is sorted by, and where its last event is."""

    by: list[int | str]
    ring: int
    position: int


def flows(reading: Reading, asked: http.FlowsAsked) -> list[dict[str, Any]]:
    """A page, and those after it that were had for little more. Raises InputError, SinkError."""
    after = asking.place(asked, Key)
    bounds = after[0] if after else asking.span(asked)
    by = _SORTS.get(asked.sort, (asked.sort,))
    keys = [f"key_{i}" for i in range(len(by))]
    columns = ", ".join(f"{what} AS {key}" for key, what in zip(keys, by, strict=True))
    order, than = ("DESC", "<") if asked.order == "desc" else ("ASC", ">")
    place = ", ".join([*keys, "number", "position"])
    shown_as = place if by != ("time",) else "epoch_ns(key_0), number, position"
    beyond = "true"
    if after:
        at = [_literal(value, what) for value, what in zip(after[1].by, by, strict=True)]
        beyond = f"({place}) {than} ({', '.join([*at, str(after[1].ring), str(after[1].position)])})"
        beyond += f" AND {keys[0]} {than}= {at[0]}"  # what row groups know of themselves
    together = 1 if by == ("time",) else max(1, min(TOGETHER, TOGETHER_MOST // asked.limit))
    most = asked.limit * together
    words = asking.words(asked)
    last = verdicts_of("last", _STORED, f"{words} {columns}")
    found = reading.rows(
        f"""WITH last AS ({_last(reading, bounds)})
        SELECT {shown_as} FROM (SELECT *, {columns} FROM ({last}) WHERE {words}) WHERE {beyond}
        ORDER BY {", ".join(f"{key} {order}" for key in place.split(", "))} LIMIT {most + 1}"""
    )
    told = _told(reading, [(row[-2], row[-1]) for row in found[:most]])
    pages = []
    for begin in range(0, max(1, len(told)), asked.limit):
        end = begin + asked.limit
        following = None
        if len(found) > end:
            *at, ring, position = found[end - 1]
            following = asking.cursor(asked, bounds, [list(at), ring, position])
        pages.append({"flows": told[begin:end], "next": following})
    return pages


def _literal(value: int | str, what: str) -> str:
    if what == "time":
        return f"make_timestamp_ns({int(value)})"
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''").replace("\0", "") + "'"


def _open_flows(reading: Reading) -> None:
    """Makes `open_now`: ring and position of the last event of each flow that has not ended."""
    cursor = reading.cursor
    later = dict(reading.rows("SELECT ring, max(past) FROM store.rolled GROUP BY ring"))
    parts = [
        f"SELECT ring, flow_id, position FROM store.verdicts WHERE flow_id <> 0 AND {where}"
        for ring, ranges in spans.unrolled(cursor).items()
        for first, past in ranges
        for where in [uncounted(ring, first, past, later.get(ring, 0))]
    ]
    known = "SELECT ring, flow_id, position FROM store.open_flows WHERE NOT ended"
    reading.keep(
        "open_now",
        f"""SELECT ring, max(position) AS position FROM ({" UNION ALL ".join([known, *parts])})
        GROUP BY ring, flow_id""",
    )


def _last(reading: Reading, bounds: Bounds) -> str:
    """SELECT of the last event of each flow that was seen in the span."""
    since, until = bounds
    _open_flows(reading)
    seen = [] if since is None else [f"time >= make_timestamp_ns({since})"]
    end = int(EventKind.END)
    both = f"SELECT * FROM store.verdicts WHERE {' AND '.join([f'event = {end}', *seen])}"
    ((alive, least),) = reading.rows("SELECT count(*), min(position) FROM open_now")
    if alive:
        still = " AND ".join([f"event <> {end} AND position >= {least}", *seen])
        both += (
            f" UNION ALL SELECT v.* FROM store.verdicts AS v SEMI JOIN open_now USING (ring, position) WHERE {still}"
        )
    if until is None:
        return both
    # Flow ids of one CPU rise with the moments the flows began (sink.history.spans).
    reading.keep(
        "born_later",
        f"""SELECT ring, flow_id >> 48 AS cpu, min(flow_id) AS least FROM store.verdicts
        WHERE event = {int(EventKind.NEW)} AND time >= make_timestamp_ns({until}) GROUP BY ALL""",
    )
    return f"""SELECT b.* FROM ({both}) AS b LEFT JOIN born_later AS l ON l.ring = b.ring AND l.cpu = b.flow_id >> 48
        WHERE l.least IS NULL OR b.flow_id < l.least"""


def _told(reading: Reading, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Flows by the places of their last events, in this order."""
    if not places:
        return []
    reading.keep("page", _each("SELECT * FROM store.verdicts", "position", places))
    found = reading.table(verdicts_of("page", ", v.ring AS number"))
    numbers = list(zip(found["number"].to_pylist(), found["flow_id"].to_pylist(), strict=True))
    of_flows = _each("SELECT ring, flow_id, time FROM store.verdicts", "flow_id", numbers)
    events = {
        (ring, number): (first, count)
        for ring, number, first, count in reading.rows(
            f"SELECT ring, flow_id, epoch_ns(min(time)), count(*) FROM ({of_flows}) GROUP BY ring, flow_id"
        )
    }
    by_place = {}
    for row in dicts(found.drop(["src_addr", "dst_addr"])):
        first, count = events[row["number"], row["flow_id"]]
        flow = {"flow": flow_id(row["number"], row["flow_id"])} | {name: row[name] for name in FLOW if name in row}
        flow |= {
            "first_seen": rfc3339(first),
            "last_seen": row["time"],
            "ended": row["event"] == "end",
            "events": count,
        }
        by_place[row["number"], row["position"]] = flow
    return [by_place[place] for place in places]


def _each(select: str, column: str, places: list[tuple[int, int]]) -> str:
    """SELECT of the rows with these (ring, value of the column), by constants: a join would read all columns of all."""
    by_ring: dict[int, list[str]] = {}
    for ring, value in places:
        by_ring.setdefault(ring, []).append(str(value))
    return " UNION ALL ".join(
        f"{select} WHERE ring = {ring} AND {column} IN ({', '.join(values)})" for ring, values in by_ring.items()
    )


def flow(reading: Reading, name: str) -> dict[str, Any]:
    """One flow by its id. Raises AbsentError."""
    ring, _, number = name.partition("-")
    if not (ring.isascii() and ring.isdigit() and number.isascii() and number.isdigit() and len(name) < 40):
        raise AbsentError(f"no flow is called {name!r}", "take the `flow` of a verdict")
    ours = f"ring = {min(int(ring), (1 << 32) - 1)} AND flow_id = {min(int(number), (1 << 64) - 1)} AND flow_id <> 0"
    ends = reading.rows(f"SELECT ring, max(position), count(*) FROM store.verdicts WHERE {ours} GROUP BY ring")
    if not ends:
        raise AbsentError(f"no event of the flow {name} is stored", "it may be older than the history keeps")
    (ring_number, last, count) = ends[0]
    (told,) = _told(reading, [(ring_number, last)])
    newest = f"(SELECT * FROM store.verdicts WHERE {ours} ORDER BY position DESC LIMIT {SAMPLES})"
    samples = dicts(reading.table(f"{verdicts_of(newest)} ORDER BY v.position").select(_SAMPLE))
    rules = reading.records(
        "SELECT name, action, report_only, text FROM rules WHERE node = ? AND ring = ? AND revision = ? AND name = ?",
        [told["node"], told["ring"], told["revision"], told["rule"]],
    )
    rule = rules[0] if rules else {"name": told["rule"], "action": "", "report_only": told["report_only"], "text": ""}
    return {
        "flow": told, "samples": samples, "rule": rule,
        "revision": revision(reading, told["node"], told["ring"], told["revision"]),
        "left_out": count - len(samples),
    }  # fmt: skip


_SAMPLE = [name for name in VERDICT if name in http.Sample.__struct_fields__]
