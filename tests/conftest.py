"""Fixtures every test may ask for; their code lives in tests/support/."""

from tests.support.bytecode import bytecode_cache
from tests.support.loaders import loader
from tests.support.nats import nats_server

__all__ = ["bytecode_cache", "loader", "nats_server"]
