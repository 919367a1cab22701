"""Which live verdicts people see: each kind of conversation when it first shows, then a few a second.

The demo makes hundreds a second; all of them are in the history, and nobody reads that fast.
"""

import time
from collections.abc import Iterable

from ztlens import show, verdicts

LINES_A_SECOND = {"deny": 5.0, "allow": 3.0}
"""Denials have an allowance of their own: they are what people came for."""
BURST_SECONDS = 2.0


class Highlights:
    """Prints verdicts as lines; `held_back` counts those it did not print."""

    def __init__(self) -> None:
        self.held_back = 0
        self._seen: set[tuple[object, ...]] = set()
        self._tokens = dict.fromkeys(LINES_A_SECOND, 0.0)
        self._filled = time.monotonic() - BURST_SECONDS
        self._colour = show.coloured()

    def write(self, rows: Iterable[verdicts.Row]) -> None:
        """Some verdicts, oldest first."""
        now = time.monotonic()
        for decision, rate in LINES_A_SECOND.items():
            grown = self._tokens[decision] + (now - self._filled) * rate
            self._tokens[decision] = min(rate * BURST_SECONDS, grown)
        self._filled = now
        lines = [verdicts.compact(row, self._colour) for row in rows if self._wanted(row)]
        if lines:
            print("\n".join(lines), flush=True)

    def _wanted(self, row: verdicts.Row) -> bool:
        kind = tuple(row[key] for key in ("src_identity", "dst_identity", "family", "proto", "rule", "decision"))
        if kind not in self._seen:
            self._seen.add(kind)
            return True
        if row["event"] == "new" and self._tokens[row["decision"]] >= 1:
            self._tokens[row["decision"]] -= 1
            return True
        self.held_back += 1
        return False
