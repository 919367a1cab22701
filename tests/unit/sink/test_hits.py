"""When a rule decided last, wherever history still says so."""

import numpy as np

from schemas.codes import EventKind
from sink.history import hits
from sink.store import Store
from tests.support.batches import CLOCK, START
from tests.support.rollups import HOUR, append, flow, fold, keep, roll_up

SECOND = 10**9
ENDED, OPEN, LATE = 64, 65, 66
"""Rules: of a flow that is over, of one that is open, of one that comes last."""


def last(store: Store) -> dict[int, int]:
    """Rule → seconds after the traffic's begin."""
    with store.cursor() as cursor:
        cursor.execute(f"SELECT rule, epoch_ns(last) FROM {hits.latest(cursor)}")
        return {rule: (at - CLOCK - START) // SECOND for rule, at in cursor.fetchall()}


def test_from_the_event_until_only_an_open_flow_is_left(memory: Store) -> None:
    end = {"time": START + 9 * SECOND, "event": EventKind.END, "packets_original": 2}
    ended = flow({"time": START + 5 * SECOND}, end, flow_id=1, rule=ENDED)
    append(memory, np.concatenate([ended, flow({"time": START + 7 * SECOND}, flow_id=2, rule=OPEN)]))
    assert last(memory) == {ENDED: 9, OPEN: 7}  # nothing is summed up
    roll_up(memory)
    append(memory, flow({"time": START + 60 * SECOND}, flow_id=3, rule=LATE), 3)
    assert last(memory) == {ENDED: 9, OPEN: 7, LATE: 60}
    roll_up(memory)
    assert fold(memory, CLOCK + START + 3 * HOUR)
    assert last(memory) == {ENDED: 9, OPEN: 7, LATE: 60}
    keep(memory, keep_age=1.0, keep_minutes=1.0)
    assert last(memory) == {ENDED: 9, OPEN: 7, LATE: 60}  # the hours say it
    keep(memory, keep_age=1.0, keep_minutes=1.0, keep_hours=1.0)
    assert last(memory) == {OPEN: 7, LATE: 60}
