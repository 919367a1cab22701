"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE = 240.0
"""Seconds: the machine may be busy, and nothing here is about speed."""


def pause(took: float) -> float:
    """Seconds until one looks again when a look took `took`: who waits leaves the machine to what it waits for."""
    return min(max(3 * took, 0.01), 0.1)


async def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true value of `condition()` (it may be a coroutine function); AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert begin < end, f"not within {seconds:g} s: {what}"  # after a look that began when time was up
        await asyncio.sleep(pause(time.monotonic() - begin))
