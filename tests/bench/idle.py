"""What ztlens costs when nothing happens: CPU of its processes, and what they hold."""

import time
from contextlib import ExitStack
from typing import Self

from tests.bench.figures import Figure, Options
from tests.bench.installation import Installation
from tests.bench.processes import cpu_seconds, memory

PARTS = ("nats", "collector", "sink")
CORE, MIB = "% of a core", "MiB"


class Bench:
    """See the module."""

    NAME = "idle"
    WHAT = "a quiet interface, default settings"
    FIGURES = (
        Figure("all idle", "nats-server, collector and sink together", CORE, at_most=2.0),
        *(Figure(f"{part} idle", f"{part} alone", CORE) for part in (*PARTS, "up")),
        Figure("collector RSS", "of the collector, beside the ring", MIB, at_most=80.0),
        Figure("sink RSS", "of the sink", MIB),
        Figure("nats RSS", "of the server", MIB),
    )

    def __init__(self, options: Options) -> None:
        self._loader, self._seconds = options.loader, 10.0 if options.quick else 30.0
        self.notes = [f"{self._seconds:g} s a run"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._up = self._stack.enter_context(Installation(loader=self._loader))
        time.sleep(5.0)  # what starting leaves behind
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self) -> dict[str, float]:
        pids = self._up.pids
        before, begun = {part: cpu_seconds(pid) for part, pid in pids.items()}, time.monotonic()
        time.sleep(self._seconds)
        passed = time.monotonic() - begun
        used = {part: 100 * (cpu_seconds(pid) - before[part]) / passed for part, pid in pids.items()}
        return {
            "all idle": sum(used[part] for part in PARTS), **{f"{part} idle": used[part] for part in (*PARTS, "up")},
            "collector RSS": memory(pids["collector"]).own, "sink RSS": memory(pids["sink"]).resident,
            "nats RSS": memory(pids["nats"]).resident,
        }  # fmt: skip
