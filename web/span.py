"""The time that a view shows: live (so long back from now) or between two moments; as it stands in an address."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas import times
from schemas.errors import InputError

LIVE = "15m"
"""How far back a view looks that was asked for no time."""
CHOICES = {
    "5m": "Last 5 minutes", "15m": "Last 15 minutes", "1h": "Last hour", "6h": "Last 6 hours", "24h": "Last 24 hours",
    "7d": "Last 7 days", "30d": "Last 30 days", "all": "All history",
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """`since`: a duration (`15m`), `all`, or a time; `until` empty: up to now, and on. Times are RFC 3339 in UTC."""

    since: str = LIVE
    until: str = ""

    @property
    def live(self) -> bool:
        """Whether it moves on."""
        return not self.until

    @property
    def query(self) -> dict[str, str]:
        """As parameters of the sink's API."""
        return {name: text for name, text in (("since", self.since), ("until", self.until)) if text not in ("", "all")}

    def bounds(self, now: datetime) -> tuple[datetime | None, datetime] | None:
        """Begin (None: the beginning of history) and end; None if they cannot be understood: the sink says why."""
        end = _moment(self.until, now) if self.until else now
        begin = None if self.since == "all" else _moment(self.since, now)
        if end is None or (begin is None and self.since != "all"):
            return None
        return begin, end

    def _ends(self, now: datetime) -> tuple[datetime, datetime] | None:
        """`bounds`, where there is a beginning."""
        found = self.bounds(now)
        return None if found is None or found[0] is None else (found[0], found[1])

    def around(self, now: datetime) -> "Span":
        """What a histogram shows of which this is selected: more before, and more after if there is any."""
        found = self._ends(now)
        if found is None:
            return self
        begin, end = found
        length = end - begin
        if self.live:
            return Span(text(begin - 2 * length), "")
        return Span(text(begin - length), text(min(end + length, max(now, end))))

    @classmethod
    def between(cls, begin: datetime | None, end: datetime) -> "Span":
        """From `begin` (None: the beginning of history) to `end`."""
        return cls("all" if begin is None else text(begin), text(end))

    @classmethod
    def of(cls, first: str, last: str) -> "Span":
        """The whole seconds that hold both moments (RFC 3339)."""
        return cls(first[:19] + "Z", text(datetime.fromisoformat(last[:19] + "Z") + timedelta(seconds=1)))

    def moved(self, by: float, now: datetime) -> "Span":
        """As long, `by` of its length later; never beyond now."""
        found = self._ends(now)
        if found is None:
            return self
        begin, end = found
        length = end - begin
        end = min(end + by * length, now)
        return Span(text(end - length), text(end))

    def wider(self, now: datetime) -> "Span":
        """Three times as long, around the same middle."""
        found = self._ends(now)
        if found is None:
            return self
        begin, end = found
        if self.live:
            seconds = (end - begin).total_seconds()
            return Span(next(since for since in CHOICES if since == "all" or times.duration(since) > seconds))
        length = end - begin
        return Span(text(begin - length), text(min(end + length, now)))


def _moment(written: str, now: datetime) -> datetime | None:
    """None for what is not a time."""
    try:
        return times.moment(written, now)
    except InputError:
        return None


def text(moment: datetime) -> str:
    """RFC 3339 in UTC to the second: short enough for an address."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
