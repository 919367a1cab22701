"""The same four counters for every stage: received = stored + Σ dropped once nothing is in hand."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stage:
    """What came in and what became of it. `failed` counts attempts that are tried again."""

    received: int = 0
    stored: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def drop(self, reason: str, count: int = 1) -> None:
        """Count what will not be stored."""
        if count:
            self.dropped[reason] += count

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "received": self.received, "stored": self.stored, "dropped": dict(self.dropped), "failed": self.failed,
        }  # fmt: skip


@dataclass
class Counters:
    """`messages` of both streams, the `verdicts` (rows) and `records` in them; dead letters stay messages."""

    messages: Stage = field(default_factory=Stage)
    verdicts: Stage = field(default_factory=Stage)
    records: Stage = field(default_factory=Stage)
    gaps: int = 0  # events declared missing
    again: Counter[str] = field(default_factory=lambda: Counter({"memory": 0, "reopened": 0}))
    """Questions that the store broke off and that were asked again, by why: a write needed the memory they held, or the
    file was opened anew."""

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return {name: getattr(self, name).report() for name in ("messages", "verdicts", "records")}
