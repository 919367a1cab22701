"""Deletion by age and size leaves a row that says so; merging changes nothing but the number of rows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.verdict import STRIDE
from sink.errors import SettingsError
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare, retention
from tests.support import batches
from tests.support.rollups import keep, roll_up

Open = Callable[..., Store]
Rows = Callable[[Store, str], list[dict[str, Any]]]
DAY = 86_400


def test_by_age(memory: Store, rows: Rows) -> None:
    now = time.time_ns() - batches.CLOCK
    old = np.concatenate([batches.verdict(time=now - int(3 * DAY * 1e9) + i) for i in range(5)])
    new = np.concatenate([batches.verdict(time=now - i) for i in range(7)])
    memory.append(
        Commit(
            batches=[prepare(batches.batch(old)), prepare(batches.batch(new, 5 * STRIDE))],
            records=[batches.loss_record(n, time=now + batches.CLOCK - int(9 * DAY * 1e9) + n) for n in range(4)],
        )
    )
    assert keep(memory, keep_age=2 * DAY) == 5
    assert keep(memory, keep_age=2 * DAY) == 0
    assert rows(memory, "SELECT count(*) AS n FROM verdicts") == [{"n": 7}]
    (told,) = rows(memory, "SELECT cause, node, ring, rows, epoch_ns(newest) - epoch_ns(oldest) AS span FROM retention")
    assert told == {"cause": "age", "node": "n1", "ring": "r1", "rows": 5, "span": 4}
    assert rows(memory, "SELECT produced FROM loss") == [{"produced": 3 * STRIDE}]  # the ledger needs the last one
    assert list(memory.state.rings["n1", "r1"].held) == [(0, 12 * STRIDE)]


def test_what_stands_behind_a_gap_goes_too(memory: Store) -> None:
    given = batches.traffic(300).rows
    for first, past in ((0, 100), (120, 200), (230, 300)):
        memory.append(Commit(batches=[prepare(batches.batch(given[first:past], first * STRIDE))]))
    ring = memory.state.rings["n1", "r1"]
    memory.declare_gaps([(ring, 100 * STRIDE, 120 * STRIDE, "a test")])
    assert keep(memory, keep_age=1.0) == 180  # what stands behind the hole, which is no gap, is not rolled up
    memory.declare_gaps([(ring, 200 * STRIDE, 230 * STRIDE, "a test")])
    assert keep(memory, keep_age=1.0) == 70


def test_by_size(on_disk: Open, rows: Rows) -> None:
    store = on_disk()
    given = batches.traffic(400_000, seconds=3000).rows
    for i in range(0, len(given), 100_000):
        store.append(Commit(batches=[prepare(batches.batch(given[i : i + 100_000], i * STRIDE))]))
    roll_up(store)
    store.connection.execute("CHECKPOINT")
    before = retention.used_bytes(store)
    deleted = keep(store, keep_bytes=int(before * 0.8))
    assert 0 < deleted < len(given)
    assert 0.65 * before < retention.used_bytes(store) <= 0.8 * before
    (told,) = rows(store, "SELECT cause, rows FROM retention")
    assert told == {"cause": "size", "rows": deleted}
    left = rows(store, "SELECT count(*) AS n, epoch_ns(min(time)) AS oldest FROM verdicts")[0]
    assert left["n"] == len(given) - deleted
    times = np.sort(given["time"].astype("i8")) + batches.CLOCK
    assert left["oldest"] == times[deleted]
    store.close()


def test_no_limits_delete_nothing(memory: Store) -> None:
    memory.append(Commit(batches=[prepare(batches.batch(batches.verdict(time=1)))]))
    assert keep(memory) == 0


def test_what_was_deleted_is_not_stored_again(memory: Store) -> None:
    batch = prepare(batches.batch(batches.traffic(30).rows))
    memory.append(Commit(batches=[batch]))
    keep(memory, keep_age=1.0)
    assert memory.append(Commit(batches=[batch])) == 0


def test_merging(on_disk: Open, rows: Rows) -> None:
    store = on_disk()
    store.stream("VERDICTS", "t", 1000)
    given = batches.traffic(120).rows
    for i in range(len(given)):
        if i != 50:
            store.append(
                Commit(batches=[prepare(batches.batch(given[i : i + 1], i * STRIDE))], marks={"VERDICTS": i + 1})
            )
    assert not retention.merge(store)
    assert retention.merge(store, at=100)
    assert not retention.merge(store, at=100)
    assert rows(store, "SELECT first // 120 AS a, past // 120 AS b FROM store.ranges ORDER BY 1") == [
        {"a": 0, "b": 50}, {"a": 51, "b": 120},
    ]  # fmt: skip
    assert rows(store, "SELECT sequence FROM store.watermarks") == [{"sequence": 120}]
    before = store.state
    store.close()
    store = on_disk()
    assert store.state == before
    store.close()


@pytest.mark.parametrize(("minutes", "hours", "right"), [
    (2.0, 2.0, True), (2.0, 1.0, False), (0.0, 1.0, False), (0.0, 0.0, True), (2.0, 0.0, True),
])  # fmt: skip
def test_hours_are_kept_as_long_as_minutes(minutes: float, hours: float, right: bool) -> None:
    def settings() -> SinkSettings:
        return SinkSettings(Path(), "", Path(), keep_minutes=minutes, keep_hours=hours)

    if right:
        assert settings().keep_hours == hours
    else:
        with pytest.raises(SettingsError, match="keep_hours"):
            settings()
