"""When each stamp is due: an absolute schedule, so that what one message is late does not make the next one late."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from ztlens.errors import BadInput

MAX = 0.0
"""The speed `max`: everything is due at once."""
LATE = 10_000_000
"""ns a message may be behind its due before it counts as late."""


def speed(text: str) -> float:
    """How many times as fast as it was recorded: `1x`, `0.5x`, `10`; MAX for `max`. Raises BadInput."""
    clean = text.strip().lower()
    if clean == "max":
        return MAX
    try:
        factor = float(clean.removesuffix("x"))
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise BadInput(f"{text!r} is not a speed", "write 1x (as recorded), 10x, 0.5x or max")
    return factor


class Schedule:
    """Stamps in, moments out. `late` counts what was waited for and came more than LATE after it was due.

    A pause longer than `longest_pause` (ns, between two messages as they are due) is cut to that.
    """

    def __init__(
        self,
        factor: float,
        longest_pause: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.factor = factor
        self.late = 0
        self._longest = longest_pause
        self._clock, self._sleep = clock, sleep
        self._first: int | None = None
        self._begun: int | None = None
        self._cut = self._last = 0

    def due(self, stamp: int) -> int:
        """ns after the begin at which what was recorded at `stamp` is to be sent; 0 at speed MAX."""
        if self.factor == MAX:
            return 0
        if self._first is None:
            self._first = stamp
        due = round((stamp - self._first) / self.factor) - self._cut
        if self._longest is not None and due - self._last > self._longest:
            self._cut += due - self._last - self._longest
            due = self._last + self._longest
        self._last = max(self._last, due)
        return due

    async def wait(self, due: int) -> bool:
        """Return when it is due; the first call is the begin. Whether it is late."""
        if self.factor == MAX:
            return False
        if self._begun is None:
            self._begun = self._clock() - due
        at = self._begun + due
        while (left := at - self._clock()) > 0:
            await self._sleep(left / 1e9)
        self.late += -left > LATE
        return -left > LATE
