"""Hostile policy files, judged in a process of their own with limits of their own.

    python -m tests.support.hostile_run SEED FIRST COUNT SECONDS MEGABYTES

Each file is read, parsed, compiled and measured against the kernel's tables within SECONDS of this process's CPU time
and MEGABYTES of memory, everything that it had before included. What is taken must judge packets as the naive reader
does; what is refused must say file, line, column and reason. One JSON document on stdout: what became of the files, and
the worst of them. The first one that breaks a promise ends it with status 1 and the number that brings it back.
"""

import ctypes
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from policy.compile import Compiled
from policy.errors import PolicyError
from policy.source import compile_text, read_text
from tests.support.hostile_policies import CANARY, REFUSED, TAKEN, Hostile, hostile
from tests.support.naive_policy import NaivePolicy, as_written
from tests.support.policies import address_pools, judge_all, random_packets

HOST = ("10.0.0.1", "fd00::1")
LIMITS = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
PACKETS = 24
_LIBC = ctypes.CDLL(None)


class Broken(Exception):
    """A promise that a file made the engine break."""


class OutOfTime(BaseException):
    """Raised by the clock; no `except Exception` holds it."""


@dataclass
class Worst:
    """The largest of a measure, and which file it was."""

    value: float = 0.0
    file: str = ""

    def see(self, value: float, file: str) -> None:
        if value > self.value:
            self.value, self.file = value, file


@dataclass
class Tally:
    """What became of the files."""

    files: int = 0
    pairs: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    seconds: Worst = field(default_factory=Worst)
    megabytes: Worst = field(default_factory=Worst)

    def as_dict(self) -> dict[str, Any]:
        return {
            "files": self.files, "pairs": self.pairs, "fates": dict(sorted(self.fates.items())),
            "seconds": [round(self.seconds.value, 3), self.seconds.file],
            "megabytes": [round(self.megabytes.value, 1), self.megabytes.file],
        }  # fmt: skip


def _memory() -> tuple[int, int, int]:
    """Bytes of address space, of memory in use, and the most of the latter since it was last reset."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    size, used, peak = (int(fields[name].split()[0]) << 10 for name in ("VmSize", "VmRSS", "VmHWM"))
    return size, used, peak


def _ring(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


def within_limits(path: Path, seconds: float, megabytes: float) -> tuple[Compiled | PolicyError, float, float]:
    """What the file is, the CPU seconds and the megabytes it took. Anything but a PolicyError comes through."""
    _LIBC.malloc_trim(0)  # what earlier files left
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    size, used, _ = _memory()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(megabytes * 2**20) - used, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    begin = time.process_time()
    found: Compiled | PolicyError
    try:
        found = compile_text(read_text(path), str(path), host=HOST, knobs={})
    except PolicyError as error:
        found = error
    finally:
        took = time.process_time() - begin
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, LIMITS)
    return found, took, _memory()[2] / 2**20


def check(file: Hostile, path: Path, found: Compiled | PolicyError) -> int:
    """Pairs of policy and packet that two judges agree on, 0 for what is refused. Raises Broken."""
    if isinstance(found, PolicyError):
        if file.fate == TAKEN:
            raise Broken(f"refused, and it is right: {found}")
        size = found.line == 0 and ("the kernel table has room for" in found.message or "too large:" in found.message)
        said = str(found)
        if not ((found.line > 0 and found.column > 0) or size) or not found.message or not said.isprintable():
            raise Broken(f"refused without a place: {said!r}")
        if not said.startswith(str(path)) or len(said) > 500:
            raise Broken(f"refused in strange words: {said!r}")
        return 0
    if file.fate == REFUSED:
        raise Broken("taken, and it is wrong")
    assert found.policy is not None
    text = read_text(path)
    policy = as_written(text, [rule.name for rule in found.policy.rules])
    packets = random_packets(Random(text), address_pools(policy, host=HOST), PACKETS)
    naive = NaivePolicy(text, HOST, policy)
    for packet, judgement in zip(packets, judge_all(found, packets), strict=True):
        if judgement != (expected := naive.judge(packet)):
            raise Broken(f"{packet}: the engine says {judgement}, the naive reader {expected}")
    return len(packets)


def run(seed: int, first: int, count: int, seconds: float, megabytes: float) -> Tally:
    """Judge files `first` … `first + count`. Raises Broken with the number of the file in question."""
    signal.signal(signal.SIGPROF, _ring)
    tally = Tally()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "policy.yaml"
        for index in range(first, first + count):
            file = hostile(seed, index)
            name = f"seed {seed} file {index} ({file.family}, {len(file.raw):,} bytes)"
            path.write_bytes(file.raw)
            try:
                found, took, used = within_limits(path, seconds, megabytes)
                tally.pairs += check(file, path, found)
            except Broken as error:
                raise Broken(f"{name}: {error}") from error
            except (Exception, OutOfTime) as error:
                raise Broken(f"{name}: {type(error).__name__}: {traceback.format_exc(limit=-4)}") from error
            tally.files += 1
            tally.fates["refused" if isinstance(found, PolicyError) else "taken"] += 1
            tally.seconds.see(took, name)
            tally.megabytes.see(used, name)
    if Path(CANARY).exists():
        raise Broken(f"a tag was run: {CANARY} is there")
    return tally


if __name__ == "__main__":
    seed, first, count = map(int, sys.argv[1:4])
    try:
        print(json.dumps(run(seed, first, count, float(sys.argv[4]), float(sys.argv[5])).as_dict()))
    except Broken as error:
        sys.exit(str(error))
