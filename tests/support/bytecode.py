"""Compile the kernel side once a test run, not once a test: five seconds each, in every process the tests start."""

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def bytecode_cache() -> Iterator[None]:
    """Sets ZTLENS_BYTECODE_CACHE for this run, unless it is set (to keep bytecode from run to run)."""
    if "ZTLENS_BYTECODE_CACHE" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ztlens-bytecode-") as directory:
        os.environ["ZTLENS_BYTECODE_CACHE"] = directory
        yield
        del os.environ["ZTLENS_BYTECODE_CACHE"]
