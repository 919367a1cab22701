"""The few system calls beside bpf(2) that the kernel side takes, through the C library. Raises KernelError."""

import ctypes
import errno
import os
from ctypes import c_long, c_uint64
from functools import cache

from collector.errors import KernelError

_MEMBARRIER = {"x86_64": 324}.get(os.uname().machine, 283)  # 283: every architecture of the generic table
_MEMBARRIER_QUERY, _MEMBARRIER_GLOBAL, _MEMBARRIER_GLOBAL_EXPEDITED = 0, 1, 2


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = c_long
    return libc


def membarrier() -> None:
    """Return when every CPU has left the BPF programs it was in: RCU readers included (MEMBARRIER_CMD_GLOBAL).

    Takes 12–76 ms: callers batch what they do under one.
    """
    if _libc().syscall(_MEMBARRIER, _MEMBARRIER_GLOBAL, 0) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"membarrier: {os.strerror(number)}", "the kernel needs CONFIG_MEMBARRIER and no nohz_full")


def load_barrier() -> None:
    """A full memory barrier on this CPU, for weakly ordered ones: the expedited command begins with one and, as
    nobody registers for it, does nothing else. (The private one skips it in a process of one thread.)
    """
    _libc().syscall(_MEMBARRIER, _MEMBARRIER_GLOBAL_EXPEDITED, 0)


def membarrier_supported() -> bool:
    """Whether `membarrier` works here."""
    return bool(_libc().syscall(_MEMBARRIER, _MEMBARRIER_QUERY, 0) & _MEMBARRIER_GLOBAL)


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace `fd`."""
    if _libc().setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
        number = ctypes.get_errno()
        error = KernelError(f"entering the network namespace: {os.strerror(number)}", "run as root (CAP_SYS_ADMIN)")
        error.errno = number
        raise error


def mount_bpffs(path: str) -> None:
    """Mount a BPF file system at `path`."""
    if _libc().mount(b"bpf", os.fsencode(path), b"bpf", c_uint64(0), b"mode=0700") != 0:
        number = ctypes.get_errno()
        denied = number in (errno.EPERM, errno.EACCES)
        hint = f"let root do it once: mount -t bpf bpf {path}" if denied else "the kernel needs CONFIG_BPF_SYSCALL"
        raise KernelError(f"mounting bpffs at {path}: {os.strerror(number)}", hint)
