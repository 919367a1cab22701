"""Both loaders, and one datapath of each for all tests over packets that need no sizes of their own.

What a packet does to the program is tested with both; what is the collector's own, with the one that `auto` takes.
"""

from collections.abc import Iterator

import pytest

from collector.kernel.loader import LOADERS
from tests.support.workbench import Workbench, open_workbench


@pytest.fixture(scope="session", params=LOADERS)
def loader(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def bench(loader: str) -> Iterator[Workbench]:
    bench = open_workbench(loader)
    yield bench
    bench.close()
