"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


def pause(took: float) -> float:
    """Seconds until one looks again when a look took `took`: who waits leaves the machine to what it waits for."""
    return min(max(3 * took, 0.01), 0.1)


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The first true value of `condition()` (it may be a coroutine function); AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        now = time.monotonic()
        assert now < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(pause(now - begin))
