"""Durations, moments and sizes as people write them."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import times
from schemas.errors import InputError

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.fixture
def berlin() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("1w", 604800),
     ("250ms", 0.25), ("12", 12), ("0", 0), (" 5M ", 300)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert times.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10x", "10 m", "-1s", "1h-30m", "nan", "inf", "-3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError):
        times.duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", NOW - timedelta(minutes=10)),
        ("now", NOW),
        ("2026-02-03T01:00:00Z", datetime(2026, 2, 3, 1, tzinfo=UTC)),
        ("2026-02-03T01:00:00+02:00", datetime(2026, 2, 2, 23, tzinfo=UTC)),
        ("2026-02-03T01:00:00.5Z", datetime(2026, 2, 3, 1, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-02-03", datetime(2026, 2, 2, 23, tzinfo=UTC)),  # midnight in Berlin
        ("2026-07-03", datetime(2026, 7, 2, 22, tzinfo=UTC)),  # in summer
        ("2026-02-03 01:00", datetime(2026, 2, 3, 0, tzinfo=UTC)),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_moments(text: str, expected: datetime) -> None:
    assert times.moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["2262-01-01", "9999-12-31T23:59:59Z", "1677-12-31", "20000w"])
def test_a_moment_that_64_bits_cannot_say(text: str) -> None:
    with pytest.raises(InputError, match="is too far away"):
        times.moment(text, NOW)


def test_spans() -> None:
    assert times.span("2h", "1h", NOW) == (NOW - timedelta(hours=2), NOW - timedelta(hours=1))
    assert times.span("", "1h", NOW) == (None, NOW - timedelta(hours=1))
    assert times.span_ns("1970-01-01T00:00:01Z", "") == (10**9, None)
    for since, until in (("1h", "1h"), ("1h", "2h")):
        with pytest.raises(InputError, match="--until is not later than --since"):
            times.span(since, until, NOW)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-02-30", "20260203", "12", "T01:00", "10m ago"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(InputError):
        times.moment(text, NOW)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("500", 500), ("64k", 64_000), ("64KiB", 65_536), ("1MB", 1_000_000), ("2GiB", 2 << 30), ("0.5gib", 1 << 29)],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert times.size(text) == bytes_


@pytest.mark.parametrize("text", ["", "big", "-1", "1 QB", "1e6"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError):
        times.size(text)


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_rfc3339_keeps_every_nanosecond(ns: int) -> None:
    text = times.rfc3339(ns)
    head, fraction = text.removesuffix("Z").split(".")
    seconds = int(datetime.fromisoformat(head + "+00:00").timestamp())
    assert seconds * 1_000_000_000 + int(fraction) == ns


@pytest.mark.usefixtures("berlin")
def test_people_see_their_own_time_with_its_offset() -> None:
    assert times.rfc3339(1_770_091_506_123_456_789, local=True, digits=3) == "2026-02-03T05:05:06.123+01:00"
    assert times.rfc3339(1_770_091_506_123_456_789, digits=0) == "2026-02-03T04:05:06Z"


@pytest.mark.parametrize(("seconds", "text"), [(3.9, "3s"), (250, "4m10s"), (7500, "2h05m"), (273_600, "3d04h")])
def test_durations_to_read(seconds: float, text: str) -> None:
    assert times.ago(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_amounts_to_read(count: int, text: str) -> None:
    assert times.amount(count) == text
