"""The machine line: without it no figure means anything."""

import os
import platform
import re
import time
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """CPU, kernel, cores, memory, load (1 minute) and whether the CPU is shared with other virtual machines."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "virtual": " hypervisor" in cpuinfo,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def machine_line(facts: dict[str, Any]) -> str:
    kind = "virtual" if facts["virtual"] else "bare"
    return (
        f"{facts['cpu']}, {facts['cores']} cores ({kind}), {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
        f"load {facts['load']}, {facts['time']}"
    )


def steal() -> tuple[int, int]:
    """(ticks stolen by the hypervisor, all ticks) since boot, over all CPUs."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return ticks[7], sum(ticks[:8])
