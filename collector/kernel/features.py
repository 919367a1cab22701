"""What this machine offers and lacks, each with the next step to take: for `ztlens doctor`.

Nothing is mounted, attached or changed; what `probes` makes to try the kernel is closed at once.
"""

import contextlib
import ctypes.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from collector.errors import KernelError
from collector.kernel import libbpf, libc, probes
from collector.kernel.loader import AUTO, choose
from collector.kernel.pins import bpffs_mounted, missing_capabilities

SETUP = "run scripts/setup.sh"
_CHILD_TIMEOUT = 30  # seconds
_BCC = "import bcc; print(bcc.__version__); print(bcc.lib._name)"


@dataclass(frozen=True)
class Feature:
    """One thing ztlens needs. `hint` is empty when `ok`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def probe(loader: str = AUTO) -> list[Feature]:
    """Every feature, in the order in which a start with this loader needs them. Never raises."""
    return [
        *_guarded("root", _root), *_guarded("kernel", _kernel), *_guarded("bpffs", _bpffs), *_guarded("jit", _jit),
        *_guarded("libbpf", _libbpf), *(f for name in probes.PROBES for f in _guarded(name, partial(_probed, name))),
        *_guarded("membarrier", _membarrier), *_guarded("loader", partial(_loader, loader)),
        *_guarded("headers", partial(_headers, loader)), *_guarded("bcc", partial(_bcc, loader)),
    ]  # fmt: skip


def _guarded(name: str, check: Callable[[], Feature]) -> list[Feature]:
    try:
        return [check()]
    except (KernelError, OSError) as error:
        return [Feature(name, False, str(error), getattr(error, "hint", "") or SETUP)]


def _root() -> Feature:
    uid, missing = os.geteuid(), missing_capabilities()
    if missing:
        return Feature("root", False, f"uid {uid} without {', '.join(missing)}", "run it with sudo")
    return Feature("root", True, f"uid {uid}" if uid == 0 else f"uid {uid} with the capabilities it takes")


def _kernel() -> Feature:
    """Which one it is; what it can do is tried."""
    return Feature("kernel", True, os.uname().release)


def _probed(name: str) -> Feature:
    probe = probes.PROBES[name]
    if probes.has(name):
        return Feature(name, True, probe.what)
    if probe.without:
        return Feature(name, True, f"no {probe.what}: {probe.without}")
    return Feature(name, False, f"no {probe.what}", f"Linux {probe.since} has")


def _bpffs() -> Feature:
    root = Path("/sys/fs/bpf")
    if not root.is_dir():
        return Feature(
            "bpffs", False, f"{root} does not exist", "the kernel needs CONFIG_BPF_SYSCALL, and sysfs mounted"
        )
    return Feature(
        "bpffs", True, f"mounted at {root}" if bpffs_mounted(root) else f"not mounted; a start mounts {root}"
    )


def _jit() -> Feature:
    try:
        value = Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip()
    except FileNotFoundError:
        return Feature("jit", True, "always on in this kernel")
    on = value != "0"
    return Feature("jit", on, "on" if on else "off", "" if on else "sysctl net.core.bpf_jit_enable=1")


def _libbpf() -> Feature:
    name = ctypes.util.find_library("bpf")
    cpus = libbpf.num_cpus()
    return Feature("libbpf", True, f"{name or 'libbpf.so.1'}, {cpus} possible CPUs")


def _membarrier() -> Feature:
    ok = libc.membarrier_supported()
    hint = "" if ok else "needs CONFIG_MEMBARRIER, and no nohz_full CPUs"
    return Feature("membarrier", ok, "MEMBARRIER_CMD_GLOBAL" if ok else "not supported", hint)


def _loader(wanted: str) -> Feature:
    choice = choose(wanted)
    return Feature("loader", True, f"{choice.name}: {choice.why}")


def _for_bcc(wanted: str, name: str, lacking: str, hint: str) -> Feature:
    """Only compiling needs it: no fault where another loader is taken."""
    if wanted == "core" or choose(wanted).name != "bcc":
        return Feature(name, True, f"{lacking}; needed by --loader bcc alone")
    return Feature(name, False, lacking, hint)


def _headers(wanted: str) -> Feature:
    modules = Path("/lib/modules") / os.uname().release
    for name in ("build", "source"):
        if (modules / name / "include/uapi/linux/bpf.h").exists() or (
            modules / name / "include/linux/kconfig.h"
        ).exists():
            return Feature("headers", True, str((modules / name).resolve()))
    if Path("/sys/kernel/kheaders.tar.xz").exists():
        return Feature("headers", True, "/sys/kernel/kheaders.tar.xz")
    return _for_bcc(wanted, "headers", f"none at {modules}/build", SETUP + ", which links the distribution's")


def _bcc(wanted: str) -> Feature:
    """Imported by a child: it is large, and the one that compiles is a child too."""
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [python, "-c", _BCC], capture_output=True, text=True, timeout=_CHILD_TIMEOUT, check=False
            )
            if done.returncode == 0:
                version, _, library = done.stdout.strip().partition("\n")
                return Feature("bcc", True, f"{version} ({library or 'libbcc'} brings clang), with {python}")
    return _for_bcc(wanted, "bcc", "the Python module bcc cannot be imported", SETUP + " (Debian's python3-bpfcc)")
