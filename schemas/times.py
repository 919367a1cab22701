"""Times and sizes as people write and read them."""

import math
import re
from datetime import UTC, date, datetime, timedelta

from schemas.errors import InputError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def duration(text: str) -> float:
    """Seconds in `30s`, `10m`, `1h30m`, `2d`, or a bare number of seconds. Raises InputError."""
    clean = text.strip().lower()
    parts = _DURATION.findall(clean)
    if parts and "".join(number + unit for number, unit in parts) == clean:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        try:
            seconds = float(clean)
        except ValueError:
            seconds = -1.0
    if seconds < 0 or not math.isfinite(seconds):
        raise InputError(f"{text!r} is not a duration", "write it as 30s, 10m, 2h or 1h30m")
    return seconds


def moment(text: str, now: datetime | None = None) -> datetime:
    """The moment `text` names, aware, in UTC: a duration back from now, RFC 3339, or a date (local midnight).

    A date and time without an offset is local time too. Raises InputError, also for what ns of 64 bits cannot say.
    """
    found = _named(text.strip(), now or datetime.now(UTC))
    if found is None:
        raise InputError(f"{text!r} is not a time", "write it as 10m, 2h (ago), 2026-02-03, or 2026-02-03T04:05:06Z")
    if not 1678 <= found.year <= 2261:
        raise InputError(f"{text!r} is too far away", "history knows the years 1678 to 2261")
    return found


def _named(clean: str, now: datetime) -> datetime | None:
    if clean.lower() == "now":
        return now
    if clean[:1].isdigit() and clean[-1:].isalpha() and _DURATION.match(clean.lower()):
        try:
            return now - timedelta(seconds=duration(clean))
        except (OverflowError, InputError):
            pass
    try:
        if _DATE.fullmatch(clean):
            return datetime.combine(date.fromisoformat(clean), datetime.min.time()).astimezone().astimezone(UTC)
        if _DATE.match(clean) and len(clean) > 10:
            return datetime.fromisoformat(clean).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    return None


def span(since: str, until: str, now: datetime | None = None) -> tuple[datetime | None, datetime | None]:
    """Two moments, None for an empty text. Raises InputError, also for a span that has no length."""
    now = now or datetime.now(UTC)
    begin, end = (moment(text, now) if text else None for text in (since, until))
    if begin is not None and end is not None and begin >= end:
        raise InputError("--until is not later than --since", "name a span that has a length")
    return begin, end


def span_ns(since: str, until: str, now: datetime | None = None) -> tuple[int | None, int | None]:
    """The same in ns since 1970 UTC."""
    begin, end = (None if at is None else nanoseconds(at) for at in span(since, until, now))
    return begin, end


def nanoseconds(at: datetime) -> int:
    """ns since 1970 UTC, exact to the microsecond a datetime has."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def size(text: str) -> int:
    """Bytes in `500`, `64k`, `1MB`, `2GiB`; k, m, g and t are powers of 1024 with an `i`, else of 1000."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InputError(f"{text!r} is not a size", "write it as 500MB or 2GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))


def rfc3339(ns: int, *, local: bool = False, digits: int = 9) -> str:
    """`ns` since 1970 UTC as RFC 3339; with the local offset, or Z."""
    moment_ = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    if local:
        moment_ = moment_.astimezone()
    fraction = f".{ns % 1_000_000_000:09d}"[: digits + 1] if digits else ""
    offset = moment_.isoformat()[19:] if local else "Z"
    return moment_.isoformat()[:19] + fraction + offset


def ago(seconds: float) -> str:
    """A duration to read: `3s`, `4m10s`, `2h05m`, `3d04h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def amount(count: float, unit: str = "B") -> str:
    """Bytes to read: `1.2 GiB`."""
    for prefix in ("", "Ki", "Mi", "Gi", "Ti"):
        if abs(count) < 1024 or prefix == "Ti":
            return f"{count:.0f} {prefix}{unit}" if not prefix else f"{count:.1f} {prefix}{unit}"
        count /= 1024
    raise AssertionError("unreachable")
