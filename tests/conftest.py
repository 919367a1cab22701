"""Fixtures every test may ask for; their code lives in tests/support/."""

import os

import pytest

from tests.support.bytecode import bytecode_cache
from tests.support.loaders import loader
from tests.support.nats import nats_server
from tests.support.order import longest_first

__all__ = ["bytecode_cache", "loader", "nats_server"]

# Rich believes these rather than the terminal: a test that has one says its size there.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


@pytest.hookimpl(trylast=True)  # after pytest has put together what shares a fixture
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        longest_first(items)
