"""Fixtures every test may ask for; their code lives in tests/support/."""

from tests.support.nats import nats_server

__all__ = ["nats_server"]
