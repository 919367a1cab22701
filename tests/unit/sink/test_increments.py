"""What events add to the totals of their flows."""

import numpy as np
import pyarrow as pa
import pytest

from schemas.codes import EventKind
from sink.history.increments import BASE, EVENT, increments
from sink.history.pairs import TOTALS


def table(columns: tuple[str, ...], rows: list[dict[str, int]]) -> pa.Table:
    """All totals are `total`."""
    return pa.table({
        name: np.array([row["total"] if name in TOTALS else row[name] for row in rows], "<u8") for name in columns
    })  # fmt: skip


def event(position: int, flow: int, total: int, kind: EventKind = EventKind.SAMPLE) -> dict[str, int]:
    return {"position": position, "time": position * 10, "flow_id": flow, "event": int(kind), "total": total}


def test_each_event_adds_what_came_since_the_one_before() -> None:
    events = table(EVENT, [event(3, 1, 10), event(4, 2, 5, EventKind.NEW), event(5, 1, 12, EventKind.END)])
    found = increments(events, table(BASE, [event(1, 1, 7)]))
    assert found.rows[TOTALS[0]].to_pylist() == [3, 5, 2]
    assert found.rows["flows"].to_pylist() == [0, 1, 0]
    flows = found.flows.sort_by("flow_id")
    assert flows.select(["flow_id", "position", "ended", "first_seen"]).to_pylist() == [
        {"flow_id": 1, "position": 5, "ended": True, "first_seen": 30},
        {"flow_id": 2, "position": 4, "ended": False, "first_seen": 40},
    ]


def test_a_base_behind_its_events_is_a_fault() -> None:
    """It would be taken for the last event of its flow: another event's end, silently."""
    events = table(EVENT, [event(3, 1, 10), event(4, 2, 5), event(5, 3, 1)])
    with pytest.raises(RuntimeError, match="beyond the events"):
        increments(events, table(BASE, [event(9, 1, 12)]))
