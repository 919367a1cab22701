"""Stores for the sink's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sink.client import History
from sink.history import output
from sink.settings import SinkSettings
from sink.store import Store, memory_store


@pytest.fixture
def memory() -> Iterator[Store]:
    """A store in memory."""
    store = memory_store()
    yield store
    store.close()


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[..., Store]:
    """Opens the one store of this test; close it before opening it again."""

    def open_it(**fields: Any) -> Store:
        return Store.open(SinkSettings(database=tmp_path / "z.duckdb", nats_url="", run_dir=tmp_path / "run", **fields))

    return open_it


@pytest.fixture
def rows() -> Callable[[Store, str], list[dict[str, Any]]]:
    """Asks a store: the answer as a list of dicts, times as text."""
    return lambda store, sql: [
        row for batch in History.on_store(store).sql(sql).to_batches() for row in output.records(batch)
    ]
