"""Pages of the newest verdicts: the rows a plain sort gives, whatever the span, the predicate and the page's length."""

import numpy as np
import pyarrow as pa
import pytest

from sink.client import History
from sink.history.recent import Place, place
from sink.store import Commit, Store, prepare
from tests.support import batches

N = 600
SECOND = 10**9
FIRST = batches.START + batches.CLOCK
PREDICATE = "dport IN ($a, $b) -- of two services"
SERVICES = {"a": 443, "b": 53}


@pytest.fixture
def history(memory: Store) -> History:
    """N verdicts of either of two nodes at the same times, ten minutes and then, after a night, ten minutes."""
    rows = batches.traffic(N, seconds=1200.0).rows
    rows["time"] -= rows["time"] % SECOND  # many of one time
    rows["time"][N // 2 :] += np.uint64(36_000 * SECOND)
    for node in ("n2", "n1"):
        memory.append(Commit(batches=[prepare(batches.batch(rows, node=node, ring=f"ring-{node}"))]))
    return History.on_store(memory)


def plain(history: History, where: str = "true") -> list[Place]:
    """All places in order."""
    found = history.sql(f"SELECT * FROM verdicts WHERE {where} ORDER BY time, node, ring, position")
    return places(found)


def places(rows: pa.Table) -> list[Place]:
    return [place(rows, i) for i in range(rows.num_rows)]


@pytest.mark.parametrize("limit", [1, 7, 500, 5000])
@pytest.mark.parametrize(("since", "until"), [(None, None), (0, 200), (None, 30_000), (300, 36_500), (40_000, None)])
def test_the_last_of_a_span(history: History, limit: int, since: int | None, until: int | None) -> None:
    begin, end = (None if bound is None else FIRST + bound * SECOND for bound in (since, until))
    inside = [p for p in plain(history) if (begin or 0) <= p.time < (end or 1 << 62)]
    found = history.recent(since=begin, until=end, limit=limit)
    assert places(found) == inside[-limit:]
    assert found.schema == history.sql("SELECT * FROM verdicts").schema


def test_pages_hold_every_row_once(history: History) -> None:
    expected = plain(history, "dport IN (443, 53)")
    assert 100 < len(expected) < 2 * N
    pages, before = [], None
    while True:
        found = history.recent(PREDICATE, SERVICES, before=before, limit=37)
        pages.append(places(found))
        if found.num_rows < 37:
            break
        before = pages[-1][0]
    assert [p for page in reversed(pages) for p in page] == expected


def test_a_name_with_a_quote(memory: Store) -> None:
    memory.append(Commit(batches=[prepare(batches.batch(batches.traffic(6).rows, node="o'n", ring="r'1"))]))
    history = History.on_store(memory)
    first, *_, last = plain(history)
    assert places(history.recent(before=last, limit=100)) == plain(history)[:-1]
    assert places(history.recent(before=first, limit=100)) == []


def test_nothing_is_held(memory: Store) -> None:
    assert History.on_store(memory).recent().num_rows == 0
