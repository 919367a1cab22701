"""What this machine offers and lacks, each with the next step to take: for `ztlens doctor`.

Nothing is loaded, mounted or changed, but for one ring buffer of a page that is made and closed.
"""

import contextlib
import ctypes.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector.errors import KernelError
from collector.kernel import libbpf
from collector.kernel.pins import bpffs_mounted, missing_capabilities

SETUP = "run scripts/setup.sh"
_RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF
_CHILD_TIMEOUT = 30  # seconds
_BCC = "import bcc; print(bcc.__version__); print(bcc.lib._name)"


@dataclass(frozen=True)
class Feature:
    """One thing ztlens needs. `hint` is empty when `ok`."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def probe() -> list[Feature]:
    """Every feature, in the order in which a start needs them. Never raises."""
    return [
        _guard(check) for check in (_root, _kernel, _btf, _bpffs, _jit, _libbpf, _ringbuf, _membarrier, _headers, _bcc)
    ]


def _guard(check: Callable[[], Feature]) -> Feature:
    try:
        return check()
    except (KernelError, OSError) as error:
        return Feature(check.__name__.strip("_"), False, str(error), getattr(error, "hint", "") or SETUP)


def _root() -> Feature:
    uid, missing = os.geteuid(), missing_capabilities()
    if missing:
        return Feature("root", False, f"uid {uid} without {', '.join(missing)}", "run it with sudo")
    return Feature("root", True, f"uid {uid}" if uid == 0 else f"uid {uid} with the capabilities it takes")


def _kernel() -> Feature:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.replace("-", ".").split(".")[:2] if part.isdigit())
    # bpf_ktime_get_coarse_ns: 5.11; live frames in tests: 5.18.
    ok = numbers >= (5, 11)
    return Feature("kernel", ok, release, "" if ok else "Linux 5.11 or later is needed")


def _btf() -> Feature:
    ok = Path("/sys/kernel/btf/vmlinux").exists()
    detail = "/sys/kernel/btf/vmlinux" if ok else "absent: fine for BCC, which compiles against headers"
    return Feature("btf", True, detail)


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


def _ringbuf() -> Feature:
    try:
        fd = libbpf.map_create("probe", _RINGBUF, 0, 0, entries=os.sysconf("SC_PAGESIZE"))
    except KernelError as error:
        hint = error.hint if os.geteuid() != 0 else "Linux 5.8 or later has ring buffers"
        return Feature("ringbuf", False, str(error), hint)
    os.close(fd)
    return Feature("ringbuf", True, "a ring buffer can be made")


def _membarrier() -> Feature:
    ok = libbpf.membarrier_supported()
    hint = "" if ok else "needs CONFIG_MEMBARRIER, and no nohz_full CPUs"
    return Feature("membarrier", ok, "MEMBARRIER_CMD_GLOBAL" if ok else "not supported", hint)


def _headers() -> Feature:
    modules = Path("/lib/modules") / os.uname().release
    for name in ("build", "source"):
        if (modules / name / "include/uapi/linux/bpf.h").exists() or (
            modules / name / "include/linux/kconfig.h"
        ).exists():
            return Feature("headers", True, str((modules / name).resolve()))
    if Path("/sys/kernel/kheaders.tar.xz").exists():
        return Feature("headers", True, "/sys/kernel/kheaders.tar.xz")
    return Feature("headers", False, f"none at {modules}/build", SETUP + ", which links the distribution's")


def _bcc() -> Feature:
    """Imported by a child: it is large, and the one that compiles is a child too."""
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [python, "-c", _BCC], capture_output=True, text=True, timeout=_CHILD_TIMEOUT, check=False
            )
            if done.returncode == 0:
                version, _, library = done.stdout.strip().partition("\n")
                return Feature("bcc", True, f"{version} ({library or 'libbcc'} brings clang), with {python}")
    return Feature("bcc", False, "the Python module bcc cannot be imported", SETUP + " (Debian's python3-bpfcc)")
