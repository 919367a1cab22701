"""What a process used: CPU and memory, from /proc."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_RING = re.compile(r"bpf[-_]map")
MIB = 1 << 20


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far, in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@dataclass(frozen=True)
class Memory:
    """MiB. `kernel_maps`: mmapped BPF maps, the ring above all, which the kernel holds whoever looks at them."""

    resident: float
    kernel_maps: float
    peak: float

    @property
    def own(self) -> float:
        return self.resident - self.kernel_maps


def memory(pid: int) -> Memory:
    """What `pid` holds now, and the most it ever held."""
    resident = maps = 0
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            size = int(line.split()[1])
            resident += size
            maps += size if _RING.search(name) else 0
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line
    peak = re.search(r"^VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return Memory(resident / 1024, maps / 1024, int(peak[1]) / 1024 if peak else 0.0)
