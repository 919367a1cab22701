"""Compile the kernel side once a test run, not once a test: five seconds each, in every process the tests start."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def bytecode_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sets ZTLENS_BYTECODE_CACHE for this run, unless it is set (to keep bytecode from run to run)."""
    if "ZTLENS_BYTECODE_CACHE" in os.environ:
        yield
        return
    own = tmp_path_factory.getbasetemp()  # this run's; one of several workers has a part of it, and shares its parent
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "bytecode"
    directory.mkdir(mode=0o700, exist_ok=True)
    os.environ["ZTLENS_BYTECODE_CACHE"] = str(directory)
    yield
    del os.environ["ZTLENS_BYTECODE_CACHE"]
