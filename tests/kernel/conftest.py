"""One datapath for all tests over packets that need no sizes of their own: compiling takes seconds."""

from collections.abc import Iterator

import pytest

from tests.support.workbench import Workbench, open_workbench


@pytest.fixture(scope="session")
def bench() -> Iterator[Workbench]:
    bench = open_workbench()
    yield bench
    bench.close()
