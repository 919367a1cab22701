"""The bpffs side: where pins live, who may have them, and moving a whole datapath in one rename.

    <parent>/<instance>              the running datapath
    <parent>/<instance>+new          one being pinned: incomplete, unless its `layout` is there (pinned last)
    <parent>/<instance>+old-<ring>   a predecessor that is being drained

bpffs refuses names with a dot, hence the plus signs.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path

from collector.errors import KernelError
from collector.kernel import libbpf, libc
from collector.kernel.sources import LAYOUT_MAP

_BPF_FS_MAGIC = "bpf"
LOCKS = Path("/run/ztlens")
_CAPABILITIES = {"CAP_BPF": 39, "CAP_PERFMON": 38, "CAP_NET_ADMIN": 12}
_SYS_ADMIN = 21


def missing_capabilities() -> list[str]:
    """What loading and attaching need and this process lacks, by name; CAP_SYS_ADMIN stands for the first two."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    if effective >> _SYS_ADMIN & 1:
        effective |= 1 << _CAPABILITIES["CAP_BPF"] | 1 << _CAPABILITIES["CAP_PERFMON"]
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def require_privilege() -> None:
    """Raises KernelError for anyone who lacks what loading needs: root, or three capabilities."""
    missing = missing_capabilities()
    if missing:
        raise KernelError(
            "loading programs into the kernel needs root", f"run it with sudo (missing: {', '.join(missing)})"
        )


def bpffs_mounted(path: Path) -> bool:
    """Whether `path` lies on a BPF file system."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return any(m[2] == _BPF_FS_MAGIC and path.is_relative_to(m[1]) for m in mounts)


def ensure_bpffs(pins: Path) -> None:
    """Mount bpffs if `pins` has none under it, and make its parent directory, 0700. Raises KernelError."""
    if "." in str(pins):
        raise KernelError(f"{pins}: bpffs allows no dots in names", "choose an instance name without a dot")
    root = Path("/sys/fs/bpf")
    if not bpffs_mounted(pins.parent):
        if not pins.is_relative_to(root):
            raise KernelError(f"{pins} is not on a BPF file system", f"use a directory below {root}")
        if not root.is_dir():
            raise KernelError(
                f"{root} does not exist", "the kernel needs CONFIG_BPF_SYSCALL, and sysfs must be mounted"
            )
        libc.mount_bpffs(str(root))
    try:
        pins.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(f"{pins.parent}: {error.strerror}", "is /sys/fs/bpf writable here?") from error


class Lock:
    """One collector an instance: held as long as the process lives, whatever way it ends."""

    def __init__(self, pins: Path) -> None:
        """Raises KernelError naming the holder."""
        self._path = LOCKS / (str(pins).strip("/").replace("/", "-") + ".lock")
        while True:
            try:
                LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # another instance's owner took the empty directory away
            except OSError as error:
                raise KernelError(f"{self._path}: {error.strerror}", "the collector must write there") from error
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "?"
                os.close(self._fd)
                raise KernelError(
                    f"a collector (process {holder}) already owns {pins}",
                    "stop it with `ztlens down`, or use another instance",
                ) from error
            if os.fstat(self._fd).st_nlink:
                break
            os.close(self._fd)  # its last owner took the file away between our opening and locking it
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let it go and leave no file; idempotent."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                LOCKS.rmdir()  # unless others use it
            os.close(self._fd)
            self._fd = -1


def new_path(pins: Path) -> Path:
    """Where a datapath is pinned before it takes the instance's name."""
    return pins.with_name(pins.name + "+new")


def old_paths(pins: Path) -> list[Path]:
    """Predecessors still pinned, the latest first (their names end in the time they were replaced)."""
    return sorted(pins.parent.glob(pins.name + "+old-*"), reverse=True) if pins.parent.is_dir() else []


def write(directory: Path, objects: Mapping[str, int]) -> None:
    """Pin descriptors by name into a new directory; `layout` last, so that its presence means complete."""
    remove(directory)
    directory.mkdir(mode=0o700, parents=True)
    for name in sorted(objects, key=lambda n: n == LAYOUT_MAP):
        libbpf.obj_pin(objects[name], str(directory / name))


def complete(directory: Path) -> bool:
    """Whether `write` ended there."""
    return (directory / LAYOUT_MAP).exists()


def remove(directory: Path) -> None:
    """Unpin everything in `directory`; fine if it is not there."""
    if not directory.is_dir():
        return
    # The description goes first: what is left of a removal that is cut short counts as incomplete.
    for path in sorted(directory.iterdir(), key=lambda p: p.name != LAYOUT_MAP):
        path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()


def remove_all(directory: Path) -> None:
    """As `remove`, and the directory above with it if no other instance is there."""
    remove(directory)
    with contextlib.suppress(OSError):  # bpffs' root cannot be removed: EBUSY
        directory.parent.rmdir()


def settle(pins: Path) -> None:
    """Bring names in order after a start that was killed half-way through `take_over`."""
    new, old = new_path(pins), old_paths(pins)
    if not pins.exists() and old:
        (new if complete(new) else old[0]).rename(pins)
    remove(new)
    for directory in (pins, *old_paths(pins)):
        if directory.exists() and not complete(directory):
            remove(directory)


def take_over(pins: Path) -> None:
    """Give the instance's name to the datapath at `new_path`; the one that had it becomes a predecessor."""
    if pins.exists():
        pins.rename(pins.with_name(f"{pins.name}+old-{time.time_ns():020d}"))
    new_path(pins).rename(pins)
