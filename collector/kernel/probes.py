"""What the running kernel can do, found by trying: never by its version, for distributions carry features back.

Each probe is tried once a process, when first asked for, takes a millisecond at most, and leaves nothing behind. A
feature that is missing has a stated way round it, or the start is refused (`require`).
"""

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from collector.errors import KernelError
from collector.kernel import libbpf

PRETEND = "ZTLENS_PRETEND_MISSING"
"""Environment: names of features, with commas, that are taken for missing. For tests: each way round is then real."""
_HASH, _ARRAY, _PERCPU_ARRAY, _RINGBUF = 1, 2, 6, 27  # enum bpf_map_type
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_JIFFIES64, _KTIME_GET_COARSE_NS = 118, 160  # enum bpf_func_id
_PASS = struct.pack("=2Q", 0xB7, 0x95)  # r0 = 0; exit
_FETCH = struct.pack("=3Q", 0x00000001000001B7, 0x00000000FFF81A7B, 0x00000041FFF81ADB)
"""r1 = 1; *(fp-8) = r1; r1 = fetch_or(fp-8, r1)"""
_LOOPBACK, _NO_INTERFACE = 1, 0x7FFFFFFF


@dataclass(frozen=True)
class Probe:
    """`works` tries it. `without`: what is done in its place and what that costs; `since`: Linux that has it, for a
    refusal; one of the two is empty.
    """

    what: str
    works: Callable[[], bool]
    without: str = ""
    since: str = ""


def has(name: str) -> bool:
    """Whether this kernel has the feature. Raises KernelError when that cannot be tried."""
    return name not in pretended() and _has(name)


def pretended() -> set[str]:
    """Features to be taken for missing. Raises KernelError for a name that is none."""
    names = {name.strip() for name in os.environ.get(PRETEND, "").split(",") if name.strip()}
    if unknown := names - set(PROBES):
        raise KernelError(f"{PRETEND}: no feature {min(unknown)}", "features are: " + ", ".join(PROBES))
    return names


def require() -> None:
    """Raises KernelError, naming it, if something is missing that there is no way round."""
    for name, probe in PROBES.items():
        if probe.since and not has(name):
            raise KernelError(f"this kernel has no {probe.what}", f"Linux {probe.since} has; see `ztlens doctor`")


@cache
def _has(name: str) -> bool:
    return PROBES[name].works()


@contextlib.contextmanager
def _map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> Iterator[int]:
    fd = libbpf.map_create("probe", kind, key, value, entries=entries, flags=flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _ringbuf() -> bool:
    return _made(_RINGBUF, 0, 0, mmap.PAGESIZE, 0)


def _mmapable() -> bool:
    return _made(_ARRAY, 4, 8, 1, _MMAPABLE)


def _made(kind: int, key: int, value: int, entries: int, flags: int) -> bool:
    """Whether such a map can be made: EINVAL is a kernel that does not know it, all else is told."""
    try:
        with _map(kind, key, value, entries, flags):
            return True
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        raise


def _batch(kind: int) -> bool:
    import numpy as np  # noqa: PLC0415 - not there yet when the kernel side is being loaded, nor needed for it

    keys, values = np.zeros(1, np.uint32), np.zeros((1, libbpf.num_cpus()), np.uint64)
    with _map(kind, 4, 8, 1) as fd:
        libbpf.update(fd, keys, values)
        try:
            libbpf.lookup_batch(fd, None, np.zeros(1, np.uint32), keys, values)
        except KernelError:  # ENOTSUPP, which has no name outside the kernel; EINVAL before 5.6
            return False
    return True


def _atomic_fetch() -> bool:
    try:
        os.close(libbpf.program_load(libbpf.PROGRAM_TYPES["xdp"], "probe", _FETCH + _PASS))
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _link(kind: str, hook: str, ifindex: int, flags: int, known: tuple[int, ...]) -> bool:
    """A link that cannot be made, told by how the kernel refuses: with EINVAL where it does not know the hook."""
    program = libbpf.program_load(libbpf.PROGRAM_TYPES[kind], "probe", _PASS)
    try:
        os.close(libbpf.link_create(program, ifindex, hook, flags))
    except KernelError as error:
        return error.errno in known
    finally:
        os.close(program)
    return True


def _xdp_link() -> bool:
    """On lo, whose driver has no native XDP: EOPNOTSUPP, or EEXIST where somebody has generic XDP on it."""
    known = (errno.EOPNOTSUPP, errno.EEXIST, errno.EBUSY)
    return _link("xdp", "xdp", _LOOPBACK, libbpf.XDP_FLAGS_DRV_MODE, known)


def _tcx_link() -> bool:
    return _link("tc", "egress", _NO_INTERFACE, libbpf.FIRST, (errno.ENODEV,))


PROBES = {
    "ringbuf": Probe("ring buffers", _ringbuf, since="5.8"),
    "mmapable": Probe("arrays that can be mapped", _mmapable, since="5.5"),
    "jiffies64": Probe("helper bpf_jiffies64", lambda: libbpf.has_helper("xdp", _JIFFIES64), since="5.5"),
    "atomic_fetch": Probe("atomic operations that give the old value", _atomic_fetch, since="5.12"),
    "coarse_clock": Probe(
        "helper bpf_ktime_get_coarse_ns", lambda: libbpf.has_helper("xdp", _KTIME_GET_COARSE_NS),
        without="every packet asks the precise clock: some 40 ns a packet",
    ),
    "batch": Probe(
        "batch operations on hashes", lambda: _batch(_HASH),
        without="the flow table is read entry by entry: a sweep costs some 2 µs a flow",
    ),
    "percpu_batch": Probe(
        "batch operations on per-CPU arrays", lambda: _batch(_PERCPU_ARRAY),
        without="counters are read entry by entry: some 2 µs a rule and look",
    ),
    "xdp_link": Probe(
        "bpf_link for XDP", _xdp_link,
        without="XDP is attached by netlink: `ip link set … xdp off` takes it off",
    ),
    "tcx_link": Probe(
        "bpf_link for TC (TCX)", _tcx_link,
        without="egress is a filter on a clsact qdisc: `tc filter del` takes it off",
    ),
    "btf": Probe(
        "BTF", lambda: Path("/sys/kernel/btf/vmlinux").exists(),
        without="nothing is lost: types of the kernel itself are not used",
    ),
}  # fmt: skip
"""By the name that `has` and ZTLENS_PRETEND_MISSING take, in the order `doctor` shows them."""
