"""Bytes a verdict: in the database as it comes, after compaction, and in Parquet.

Two kinds of made-up traffic. `sessions` (tests/support/sessions.py) has the locality of a service: requests that fan
out, ports that count up, sizes that repeat. `pairs` (tests/support/history.py) has next to none: half of its flows are
of any pair of 1,250,000, ports are random, and the traffic is thin. Roll-ups are counted apart.
"""

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import duckdb
import numpy as np

from sink.client import History
from sink.history.export import export
from sink.store.compaction import compact
from tests.bench.figures import Figure, Options
from tests.bench.stored import build
from tests.support import history
from tests.support.sessions import sessions
from tests.support.sinks import settings

BYTES = "bytes/verdict"
BURSTS, BURST_SECONDS = 4, 975.0


class Bench:
    """See the module."""

    NAME = "disk"
    WHAT = "bytes a verdict as it comes, after compaction, in Parquet"
    FIGURES = (
        Figure("sessions", "the database as it comes", BYTES),
        Figure("sessions, compacted", "after `ztlens sink --compact`", BYTES, at_most=20.0),
        Figure("sessions, Parquet", "`ztlens export`", BYTES, at_most=10.0),
        Figure("sessions, roll-ups", "beside the verdicts, minutes and hours", BYTES),
        Figure("pairs", "the database as it comes", BYTES),
        Figure("pairs, compacted", "after `ztlens sink --compact`", BYTES),
        Figure("pairs, Parquet", "`ztlens export`", BYTES),
        Figure("pairs, roll-ups", "beside the verdicts, minutes and hours", BYTES),
    )

    def __init__(self, options: Options) -> None:
        self._bursts, self._sessions, self._blocks = (1, 10_000, 1) if options.quick else (BURSTS, 88_000, 3)
        self.notes: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        self.notes.clear()
        return self._sizes("sessions", self._bursts_of_sessions()) | self._sizes(
            "pairs", history.RealTraffic(8640.0).blocks(self._blocks)
        )

    def _bursts_of_sessions(self) -> Iterable[np.ndarray]:
        """One after the other; flow numbers go on."""
        for number in range(self._bursts):
            rows = sessions(self._sessions, seconds=BURST_SECONDS, seed=1 + number)
            rows["time"] += np.uint64(number * BURST_SECONDS * 1e9)
            rows["flow_id"] += np.uint64(number << 32)
            yield rows

    def _sizes(self, name: str, blocks: Iterable[np.ndarray]) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            given = settings(Path(scratch), "")
            built = build(given, blocks, history.record())
            with History.on_file(given.database) as found:
                done = export(found, Path(scratch) / "export")
            parquet = sum(file.bytes for file in done.manifest.files if file.table == "verdicts")
            alone = Path(scratch) / "verdicts.duckdb"
            shutil.copy(given.database, alone)
            with duckdb.connect(str(alone)) as connection:
                for table in ("pairs_1m", "pairs_1h"):
                    connection.execute(f"DELETE FROM store.{table}")
            compacted = compact(alone).after
        self.notes.append(f"{name}: {built.verdicts:,} verdicts of {built.tuples:,} distinct tuples")
        sizes = {
            "": built.stored_bytes, ", compacted": compacted, ", Parquet": parquet,
            ", roll-ups": built.bytes - built.stored_bytes,
        }  # fmt: skip
        return {name + what: size / built.verdicts for what, size in sizes.items()}
