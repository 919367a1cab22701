"""One datapath of each loader for all tests over packets that need no sizes of their own."""

from collections.abc import Iterator

import pytest

from tests.support.workbench import Workbench, open_workbench


@pytest.fixture(scope="session")
def bench(loader: str) -> Iterator[Workbench]:
    bench = open_workbench(loader)
    yield bench
    bench.close()
