"""What a benchmark declares and what comes out of it.

A figure is one number a run; the runner takes the median over the runs and, where a figure has a peer or a base, the
median of the ratios within each run: absolute figures on shared machines are noise, ratios of one run less so.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from collector.kernel.loader import AUTO


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark. `peer` names the figure it is divided by (the same unit)."""

    key: str
    meaning: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    peer: str = ""
    ratio_at_least: float | None = None  # of `peer`
    ratio_at_most: float | None = None

    @property
    def target(self) -> str:
        """As people write it; "" without one."""
        if self.ratio_at_least is not None:
            return f"≥ {self.ratio_at_least:.0%} of {self.peer}"
        if self.ratio_at_most is not None:
            return f"≤ {self.ratio_at_most:.0%} of {self.peer}"
        if self.at_most is not None:
            return f"≤ {number(self.at_most)}"
        return "" if self.at_least is None else f"≥ {number(self.at_least)}"


@dataclass(frozen=True)
class Options:
    """How to measure: `quick` takes smaller amounts, for trying the benchmark itself; `loader` loads the kernel side;
    `keep` is where long histories are kept for the next time, None: nowhere; memory is watched for `seconds`
    under `events` a second."""

    runs: int = 3
    quick: bool = False
    loader: str = AUTO
    keep: Path | None = None
    seconds: float = 120.0
    events: int = 10_000


class Benchmark(Protocol):
    """One module's `Bench` class, a context: entering prepares, `measure` is one run, leaving takes all away."""

    NAME: str
    WHAT: str
    FIGURES: Sequence[Figure]
    notes: list[str]

    def __init__(self, options: Options) -> None: ...
    def __enter__(self) -> "Benchmark": ...
    def __exit__(self, *_: object) -> None: ...
    def measure(self) -> dict[str, float]:
        """Figure → value; a figure that cannot be had here is missing, and `notes` says why."""
        ...


@dataclass
class Outcome:
    """A benchmark after its runs. `failure`: why there are no (more) runs."""

    name: str
    what: str
    figures: Sequence[Figure]
    runs: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """One dict a figure that was measured: median, min, max, runs, ratio to the peer, target, met."""
        return [row for figure in self.figures if (row := self._row(figure))]

    def _row(self, figure: Figure) -> dict[str, Any] | None:
        values = [run[figure.key] for run in self.runs if figure.key in run]
        if not values:
            return None
        pairs = [(run[figure.key], run.get(figure.peer, 0.0)) for run in self.runs if figure.key in run]
        ratios = [value / peer for value, peer in pairs if peer]
        median, ratio = statistics.median(values), statistics.median(ratios) if ratios else None
        return {
            "figure": figure.key, "meaning": figure.meaning, "unit": figure.unit, "median": median,
            "min": min(values), "max": max(values), "runs": values, "peer": figure.peer or None, "ratio": ratio,
            "target": figure.target or None, "met": _met(figure, median, ratio),
        }  # fmt: skip

    @property
    def below(self) -> bool:
        """A target was missed, or something was not measured."""
        return bool(self.failure) or any(row["met"] is False for row in self.rows())

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name, "what": self.what, "seconds": round(self.seconds, 1), "figures": self.rows(),
            "notes": self.notes, "failure": self.failure or None,
        }  # fmt: skip


def _met(figure: Figure, median: float, ratio: float | None) -> bool | None:
    """None: no target."""
    if figure.ratio_at_least is not None:
        return ratio is not None and ratio >= figure.ratio_at_least
    if figure.ratio_at_most is not None:
        return ratio is not None and ratio <= figure.ratio_at_most
    if figure.at_most is not None:
        return median <= figure.at_most
    return None if figure.at_least is None else median >= figure.at_least


def number(value: float) -> str:
    """With three digits that matter, and M for millions."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
