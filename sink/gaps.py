"""When a hole in a ring becomes a gap.

Batches arrive in any order, so a hole below the acknowledged position is first only a hole: JetStream has these events
and they may be on their way. It is a gap once everything that was in the stream when the hole was seen has been read,
and either the ring is closed or a deadline has passed (a leaf node's messages may come late). What arrives after all is
stored, and taken out of the gap.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sink.store.state import Ring, State


@dataclass(frozen=True)
class _Seen:
    at: float  # monotonic s
    last: int  # last sequence of the stream then


class HoleWatch:
    """Remembers since when each hole is there."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock
        self._seen: dict[tuple[int, int, int], _Seen] = {}

    @staticmethod
    def holes(state: State) -> list[tuple[Ring, int, int]]:
        """All holes of all rings."""
        return [(ring, first, past) for ring in state.rings.values() for first, past in ring.holes()]

    def ripe(self, holes: list[tuple[Ring, int, int]], last: int, read: int) -> list[tuple[Ring, int, int, str]]:
        """Those of `holes` that nothing will fill, with the cause.

        `last` is the stream's last sequence, `read` the one up to which it is stored.
        """
        now = self._clock()
        seen, out = {}, []
        for ring, first, past in holes:
            key = ring.id, first, past
            since = self._seen.get(key) or _Seen(now, last)
            seen[key] = since
            if read < since.last:
                continue
            if ring.closed:
                out.append((ring, first, past, "not in the stream when the ring was closed"))
            elif now - since.at >= self._deadline:
                out.append((ring, first, past, f"not in the stream {self._deadline:g} s after it was acknowledged"))
        self._seen = seen
        return out
