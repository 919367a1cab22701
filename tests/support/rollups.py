"""Rolling up in tests, and sums by pair written the plain way, event by event, apart from the sink's code."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from schemas.codes import EventKind
from schemas.verdict import STRIDE
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare, retention, rollup
from tests.support import batches
from tests.support.batches import CLOCK

MINUTE, HOUR = 60 * 10**9, 3600 * 10**9
VERDICT = ("src_identity", "dst_identity", "revision", "rule", "decision", "outcome", "reason")
TOTALS = ("packets_original", "bytes_original", "packets_reply", "bytes_reply")


def append(store: Store, rows: np.ndarray, first: int = 0, **who: Any) -> None:
    """Store `rows`, the first at index `first` of the ring of `who` (node, ring)."""
    store.append(Commit(batches=[prepare(batches.batch(rows, first * STRIDE, **who))]))


def flow(*events: dict[str, Any], **same: Any) -> np.ndarray:
    """Rows of one flow, unless `events` say otherwise."""
    return np.concatenate([batches.verdict(**{**same, **event}) for event in events])


def roll_up(store: Store, events: int = rollup.STEP_EVENTS) -> int:
    """Roll up everything that is complete; how many events."""
    count = 0
    while found := rollup.step(store, events):
        count += found
    return count


def fold(store: Store, now: int | None = None) -> int:
    """Fold every hour that is over; how many times there was something to do."""
    count = 0
    while rollup.fold(store, now):
        count += 1
    return count


def keep(store: Store, **keep: float) -> int:
    """Roll up, then delete what the `keep_` settings given do not keep; verdicts deleted."""
    roll_up(store)
    given: dict[str, Any] = {"keep_age": 0.0, "keep_minutes": 0.0, "keep_hours": 0.0} | keep
    return retention.apply(store, SinkSettings(database=Path(), nats_url="", run_dir=Path(), **given))


def naive(rows: np.ndarray, length: int = MINUTE, span: tuple[float, float] = (0, float("inf"))) -> dict[tuple, tuple]:
    """(start, src, dst, proto, dport, verdict …) → (flows, totals …) of one ring's `rows`, in the order of the ring.

    Times are ns since 1970; only events in `span` count.
    """
    flows: dict[int, tuple[np.void, tuple]] = {}
    sums: dict[tuple, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for row in rows:
        flow, time = int(row["flow_id"]), int(row["time"]) + CLOCK
        before = flows.get(flow)
        judged = row if before is None or row["event"] != EventKind.CHANGE else before[0]
        totals = tuple(int(row[name]) for name in TOTALS)
        added = totals if before is None else tuple(a - b for a, b in zip(totals, before[1], strict=True))
        if flow:
            flows[flow] = row, totals
        if span[0] <= time < span[1]:
            who = (row["src"].tobytes(), row["dst"].tobytes(), int(row["proto"]), int(row["dport"]))
            key = (time // length * length, *who, *(int(judged[name]) for name in VERDICT))
            opened = int(flow != 0 and before is None)
            sums[key] = [a + b for a, b in zip(sums[key], (opened, *added), strict=True)]
    return {key: tuple(value) for key, value in sums.items()}


def stored(store: Store, relation: str, length: int = 1, where: str = "true") -> dict[tuple, tuple]:
    """The same of a relation with the columns of a roll-up, summed by `length` ns."""
    verdict = ", ".join(VERDICT)
    sums = ", ".join(f"sum({name})::UBIGINT" for name in ("flows", *TOTALS))
    found: Iterable[tuple] = store.connection.execute(
        f"""SELECT epoch_ns(time) // {length} * {length} AS start, src_hi, src_lo, dst_hi, dst_lo, proto, dport,
            {verdict}, {sums} FROM {relation} WHERE {where}
            GROUP BY start, src_hi, src_lo, dst_hi, dst_lo, proto, dport, {verdict}"""
    ).fetchall()
    return {
        (row[0], _address(row[1], row[2]), _address(row[3], row[4]), *row[5:-5]): tuple(row[-5:])
        for row in found
    }  # fmt: skip


def without_nothing(sums: dict[tuple, tuple]) -> dict[tuple, tuple]:
    """Less the keys that add nothing (a change of a flow without new packets, say)."""
    return {key: value for key, value in sums.items() if any(value)}


def _address(high: int, low: int) -> bytes:
    return high.to_bytes(8) + low.to_bytes(8)
