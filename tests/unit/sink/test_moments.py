"""Moments that history cannot hold are refused in one line by whatever is asked with them, and nothing is written."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from sink.client import History
from sink.errors import QueryError
from sink.history import audit, suggest
from sink.history.export import export
from sink.history.pairs import FOR_EVER
from sink.history.recent import Place
from sink.store import Commit, memory_store, prepare
from tests.support import batches
from tests.support.rollups import roll_up
from ztlens.replay.windows import Reader

N = 300
POLICY = audit.Text("version: 1\ndefault: deny\n", "p.yaml")
QUESTIONS: dict[str, Callable[[History, int, Path], Any]] = {
    "audit": lambda history, at, out: history.audit(audit.Question(candidate=POLICY, since=at)),
    "audit until": lambda history, at, out: history.audit(audit.Question(candidate=POLICY, until=at)),
    "suggest": lambda history, at, out: history.suggest(suggest.Question(since=at)),
    "ledger": lambda history, at, out: history.ledger(at),
    "export": lambda history, at, out: export(history, out, at),
    "recent": lambda history, at, out: history.recent(since=at),
    "recent until": lambda history, at, out: history.recent(until=at),
    "recent before": lambda history, at, out: history.recent(before=Place(at, "n1", "r1", 0)),
    "replay": lambda history, at, out: list(Reader(lambda: nullcontext(history)).windows(at)),
}


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    store = memory_store()
    store.append(Commit(batches=[prepare(batches.batch(batches.traffic(N).rows))]))
    roll_up(store)
    yield History.on_store(store)
    store.close()


@pytest.mark.parametrize("moment", [FOR_EVER + 1, 1 << 70, 1 << 200, -FOR_EVER - 1, -(1 << 70)])
@pytest.mark.parametrize("question", QUESTIONS)
def test_beyond_all_history(history: History, tmp_path: Path, question: str, moment: int) -> None:
    with pytest.raises(QueryError) as caught:
        QUESTIONS[question](history, moment, tmp_path / "out")
    assert str(caught.value) == "a moment lies outside of what ns since 1970 of 64 bits can say"
    assert caught.value.hint == "history knows the years 1678 to 2261"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("since", "flows"), [(-FOR_EVER, 100), (-1, 100), (FOR_EVER, 0)])
def test_the_ends_of_history(history: History, tmp_path: Path, since: int, flows: int) -> None:
    assert history.audit(audit.Question(candidate=POLICY, since=since))["flows"] == flows
    assert sum(len(window) for window in Reader(lambda: nullcontext(history)).windows(since)) == 3 * flows
    manifest = export(history, tmp_path / "out", since).manifest
    assert sum(file.rows for file in manifest.of_table("verdicts")) == 3 * flows


def test_an_export_until_the_end_of_history(history: History, tmp_path: Path) -> None:
    manifest = export(history, tmp_path / "out", until=FOR_EVER).manifest
    assert (manifest.until, manifest.pairs_until) == (FOR_EVER, FOR_EVER)
    assert sum(file.rows for file in manifest.of_table("verdicts")) == N
