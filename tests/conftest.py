"""Fixtures every test may ask for; their code lives in tests/support/."""

import os

from hypothesis import settings

from tests.support.bytecode import bytecode_cache
from tests.support.loaders import loader
from tests.support.nats import nats_server

__all__ = ["bytecode_cache", "loader", "nats_server"]

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")  # tests time nothing
# Rich believes these rather than the terminal: a test that has one says its size there.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
