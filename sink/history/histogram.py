"""Counts by time: as many buckets as asked for at most, of a round width, whole ones at both ends."""

from typing import Any

from schemas import http
from sink.history import asked as asking
from sink.history import spans
from sink.history.ledger import rfc3339
from sink.history.pairs import FOR_EVER, HOUR, MINUTE, within
from sink.history.reading import Reading
from sink.history.said import KINDS, SUMS, VOLUMES, said

SECOND = 1_000_000_000
_MINUTES, _HOURS = 60, 3600
WIDTHS = (
    1, 2, 5, 10, 15, 30, _MINUTES, 2 * _MINUTES, 5 * _MINUTES, 10 * _MINUTES, 15 * _MINUTES, 30 * _MINUTES,
    _HOURS, 2 * _HOURS, 3 * _HOURS, 6 * _HOURS, 12 * _HOURS, *(days * 24 * _HOURS for days in (1, 2, 7, 14, 28)),
)  # fmt: skip
"""Seconds; beyond the last its multiples."""
EVENTS = 200_000
"""Buckets narrower than a minute are of events: of so many at most."""


def histogram(reading: Reading, asked: http.HistogramAsked) -> dict[str, Any]:
    """http.Histogram. Raises InputError, SinkError."""
    since, until = asking.span(asked)
    oldest, newest = _held(reading)
    first = oldest if since is None else since
    past = max(first + 1, newest + 1) if until is None else until
    width = _width(reading, first, past, asked.buckets)
    first, past = first // width * width, min(-(-past // width) * width, FOR_EVER)
    grain = HOUR if width % HOUR == 0 else MINUTE if width % MINUTE == 0 else width
    rows = said(reading, asked, (first, past), grain)
    found = reading.rows(
        f"""SELECT (epoch_ns(time) - {first}) // {width} AS bucket, kind, {SUMS}, bool_and(detail) FROM {rows}
        GROUP BY ALL"""
    )
    n = -(-(past - first) // width)
    out = {kind: {name: [0] * n for name in VOLUMES} for kind in KINDS}
    exact = True
    for bucket, kind, *sums, detail in found:
        at = min(max(0, bucket), n - 1)  # of rows that reach beyond what was asked for
        exact &= detail
        for name, value in zip(VOLUMES, sums, strict=True):
            out[KINDS[kind]][name][at] += value
    return {
        "since": rfc3339(first), "until": rfc3339(past), "width": width // SECOND,
        "times": [rfc3339(first + i * width) for i in range(n)], **out, "exact": exact,
    }  # fmt: skip


def _held(reading: Reading) -> tuple[int, int]:
    """The oldest and the newest moment that anything is known of; 0 and 0: nothing is."""
    ((oldest, newest),) = reading.rows(
        """SELECT least(min(v), min(m), min(h)), greatest(max(w), max(n)) FROM
        (SELECT epoch_ns(min(time)) AS v, epoch_ns(max(time)) AS w FROM store.verdicts),
        (SELECT epoch_ns(min(first_seen)) AS m, epoch_ns(max(last_seen)) AS n FROM store.pairs_1m),
        (SELECT epoch_ns(min(first_seen)) AS h FROM store.pairs_1h)"""
    )
    return oldest or 0, newest or 0


def _width(reading: Reading, first: int, past: int, buckets: int) -> int:
    """ns of a bucket, so that [first, past) needs no more than `buckets` whole ones, and finer rows are there."""
    events_from, minutes_from, _ = spans.kept(reading.cursor)
    least = SECOND
    if first < minutes_from:
        least = HOUR
    elif first < events_from:
        least = MINUTE
    else:
        ((count,),) = reading.rows(f"SELECT count(*) FROM store.verdicts WHERE {within(first, min(past, FOR_EVER))}")
        if count > EVENTS:
            least = MINUTE
    for width in (seconds * SECOND for seconds in WIDTHS):
        if width >= least and _needed(first, past, width) <= buckets:
            return width
    longest = WIDTHS[-1] * SECOND
    return longest * -(-_needed(first, past, longest) // max(1, buckets - 1))


def _needed(first: int, past: int, width: int) -> int:
    return -(-past // width) - first // width
