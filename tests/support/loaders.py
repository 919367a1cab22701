"""Both loaders, for the tests that run with each."""

import pytest

from collector.kernel.loader import LOADERS


@pytest.fixture(scope="session", params=LOADERS)
def loader(request: pytest.FixtureRequest) -> str:
    """Each loader in turn, for tests of what the programs do to packets: those of tests/kernel, and end to end the
    exact counts, what `enforce` drops, swaps under traffic, a killed collector, and one demo.

    What is the collector's own, the sink's or a command's takes `auto`: nothing of it knows which loader it was, and
    those files with both would double a suite that waits more than it works.
    """
    return request.param
