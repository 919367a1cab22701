"""The few calls of libbpf.so.1 (1.1 or later) that ztlens needs, through ctypes.

libbpf instead of hand-made bpf(2) and netlink messages: its option structs are versioned by their size, so the
same bindings serve every later 1.x. Each wrapper raises KernelError with the errno's name; nothing here knows
what a map means.
"""

import ctypes
import errno
import os
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from collector.errors import KernelError
from collector.kernel import verifier

if TYPE_CHECKING:
    from numpy import ndarray as Array

XDP_FLAGS_UPDATE_IF_NOEXIST = 1
XDP_FLAGS_SKB_MODE = 2
XDP_FLAGS_DRV_MODE = 4
TC_EGRESS = 2  # enum bpf_tc_attach_point
TC_F_REPLACE = 1
TEST_LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
MAP_TYPE_ARRAY = 2
PROGRAM_TYPES = {"tc": 3, "xdp": 6}  # enum bpf_prog_type
ANY = 0  # BPF_ANY
LINK_HOOKS = {"xdp": 37, "egress": 47}  # enum bpf_attach_type: BPF_XDP, BPF_TCX_EGRESS
LINK_TYPES = {6: "xdp", 11: "egress"}  # enum bpf_link_type: XDP, TCX (which we make on egress alone)
FIRST = 8  # BPF_F_BEFORE nothing: at the head of what TCX runs
_REPLACE = 4  # BPF_F_REPLACE
_TCX_MAX = 64  # programs TCX runs on one interface, at most


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", c_uint32), ("id", c_uint32), ("key_size", c_uint32), ("value_size", c_uint32),
        ("max_entries", c_uint32), ("map_flags", c_uint32), ("name", c_char * 16), ("rest", c_uint8 * 216),
    ]  # fmt: skip


class _MapCreate(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t), ("btf_fd", c_uint32), ("btf_key", c_uint32), ("btf_value", c_uint32),
        ("btf_vmlinux_value", c_uint32), ("inner_map_fd", c_uint32), ("map_flags", c_uint32),
    ]  # fmt: skip


class _ProgLoad(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t), ("between", c_uint8 * 80), ("log_level", c_uint32), ("log_size", c_uint32),
        ("log_buf", c_void_p),
    ]  # fmt: skip


class _ProgInfo(ctypes.Structure):
    _fields_ = [
        ("type", c_uint32), ("id", c_uint32), ("tag", c_uint8 * 8), ("jited_len", c_uint32), ("xlated_len", c_uint32),
        ("jited", c_uint64), ("xlated", c_uint64), ("load_time", c_uint64), ("uid", c_uint32), ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64), ("name", c_char * 16), ("between", c_uint8 * 136), ("verified_insns", c_uint32),
        ("rest", c_uint8 * 116),
    ]  # fmt: skip


class _TestRun(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p), ("data_size_in", c_uint32),
        ("data_size_out", c_uint32), ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32), ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32),
        ("flags", c_uint32), ("cpu", c_uint32), ("batch_size", c_uint32),
    ]  # fmt: skip


class _XdpAttach(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("old_prog_fd", c_int)]


class _XdpQuery(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t), ("prog_id", c_uint32), ("drv_prog_id", c_uint32), ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32), ("attach_mode", c_uint8),
    ]  # fmt: skip


class _LinkCreate(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("flags", c_uint32), ("rest", c_uint8 * 44)]


class _LinkUpdate(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("flags", c_uint32), ("old_prog_fd", c_uint32)]


class _LinkInfo(ctypes.Structure):
    _fields_ = [
        ("type", c_uint32), ("id", c_uint32), ("prog_id", c_uint32), ("pad", c_uint32), ("ifindex", c_uint32),
        ("rest", c_uint8 * 60),
    ]  # fmt: skip


class _ProgQuery(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t), ("query_flags", c_uint32), ("attach_flags", c_uint32), ("prog_ids", c_void_p),
        ("prog_cnt", c_uint32), ("prog_attach_flags", c_void_p),
    ]  # fmt: skip


class _TcHook(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32)]


class _TcOpts(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t), ("prog_fd", c_int), ("flags", c_uint32), ("prog_id", c_uint32), ("handle", c_uint32),
        ("priority", c_uint32),
    ]  # fmt: skip


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    name: str
    flags: int


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel says of a program. `verified`: instructions the verifier walked; 0 before Linux 5.16."""

    type: int
    id: int
    name: str
    verified: int


@dataclass(frozen=True)
class LinkInfo:
    """What the kernel says of a bpf_link. `hook` is `xdp`, `egress` or ""; `ifindex` 0: its interface is gone."""

    id: int
    hook: str
    program: int
    ifindex: int


@dataclass(frozen=True)
class XdpQuery:
    """What XDP runs on an interface: 0 is none."""

    native: int
    generic: int
    offloaded: int

    @property
    def any(self) -> int:
        return self.native or self.generic or self.offloaded


@cache
def _lib() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelError("libbpf.so.1 is not installed", "scripts/setup.sh installs it (package libbpf1)") from error
    ints = {
        "bpf_obj_get": [c_char_p], "bpf_obj_pin": [c_int, c_char_p],
        "bpf_map_create": [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p],
        "bpf_prog_load": [c_int, c_char_p, c_char_p, c_char_p, c_size_t, POINTER(_ProgLoad)],
        "bpf_map_update_elem": [c_int, c_void_p, c_void_p, c_uint64],
        "bpf_map_lookup_elem": [c_int, c_void_p, c_void_p], "bpf_map_delete_elem": [c_int, c_void_p],
        "bpf_map_lookup_batch": [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
        "bpf_map_update_batch": [c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
        "bpf_map_delete_batch": [c_int, c_void_p, POINTER(c_uint32), c_void_p],
        "bpf_obj_get_info_by_fd": [c_int, c_void_p, POINTER(c_uint32)],
        "bpf_prog_get_fd_by_id": [c_uint32], "bpf_prog_test_run_opts": [c_int, POINTER(_TestRun)],
        "bpf_xdp_attach": [c_int, c_int, c_uint32, POINTER(_XdpAttach)],
        "bpf_xdp_detach": [c_int, c_uint32, POINTER(_XdpAttach)],
        "bpf_xdp_query": [c_int, c_int, POINTER(_XdpQuery)],
        "bpf_tc_hook_create": [POINTER(_TcHook)], "bpf_tc_hook_destroy": [POINTER(_TcHook)],
        "bpf_tc_attach": [POINTER(_TcHook), POINTER(_TcOpts)], "bpf_tc_detach": [POINTER(_TcHook), POINTER(_TcOpts)],
        "bpf_tc_query": [POINTER(_TcHook), POINTER(_TcOpts)], "libbpf_num_possible_cpus": [],
        "bpf_link_create": [c_int, c_int, c_int, POINTER(_LinkCreate)], "bpf_link_detach": [c_int],
        "bpf_link_update": [c_int, c_int, POINTER(_LinkUpdate)], "bpf_link_get_fd_by_id": [c_uint32],
        "bpf_link_get_next_id": [c_uint32, POINTER(c_uint32)],
        "bpf_prog_query_opts": [c_int, c_int, POINTER(_ProgQuery)],
        "bpf_map_get_next_key": [c_int, c_void_p, c_void_p], "libbpf_probe_bpf_helper": [c_int, c_int, c_void_p],
    }  # fmt: skip
    for name, arguments in ints.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, c_int
    lib.libbpf_set_print.argtypes = [c_void_p]
    lib.libbpf_set_print(None)  # its warnings would reach the user's terminal; errno says the same
    return lib


_HINTS = {
    errno.EPERM: "run as root (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)",
    errno.ENOMEM: "lower the knobs FLOWS_MAX or RING_BYTES, or free memory",
    errno.EMFILE: "raise the limit of open files",
}


def _check(result: int, doing: str, *, accept: tuple[int, ...] = ()) -> int:
    """`result` of a libbpf call (negative: -errno). Raises KernelError unless fine or in `accept`."""
    if result < 0 and -result not in accept:
        error = KernelError(f"{doing}: {os.strerror(-result)}", _HINTS.get(-result, ""))
        error.errno = -result
        raise error
    return result


def _address(array: "Array") -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data


def num_cpus() -> int:
    """Possible CPUs: per-CPU maps hold a value for each."""
    return _check(_lib().libbpf_num_possible_cpus(), "counting CPUs")


def obj_get(path: str) -> int:
    """Descriptor of the map or program pinned at `path`."""
    return _check(_lib().bpf_obj_get(os.fsencode(path)), f"opening the pin {path}")


def obj_pin(fd: int, path: str) -> None:
    """Pin the map or program `fd` at `path`."""
    _check(_lib().bpf_obj_pin(fd, os.fsencode(path)), f"pinning {path}")


def map_create(name: str, kind: int, key_size: int, value_size: int, *, entries: int, flags: int = 0) -> int:
    """Descriptor of a new map; the kernel keeps 15 bytes of the name."""
    opts = _MapCreate(sz=ctypes.sizeof(_MapCreate), map_flags=flags)
    result = _lib().bpf_map_create(kind, name.encode()[:15], key_size, value_size, entries, ctypes.byref(opts))
    return _check(result, f"making the map {name}")


def program_load(kind: int, name: str, instructions: bytes) -> int:
    """Descriptor of a newly loaded program. Raises VerifierError for the verifier's no, KernelError."""

    def load(opts: _ProgLoad | None) -> int:
        count = len(instructions) // 8
        return int(_lib().bpf_prog_load(kind, name.encode()[:15], b"GPL", instructions, count, opts))

    result = load(None)
    if result in (-errno.EACCES, -errno.EINVAL, -errno.E2BIG):
        log = verifier.Log()
        load(_ProgLoad(sz=ctypes.sizeof(_ProgLoad), log_level=1, log_size=log.size, log_buf=log.address))
        if log:
            raise verifier.refusal(name, -result, log)
    return _check(result, f"loading the program {name}")


def map_info(fd: int) -> MapInfo:
    """Type, sizes and name of the map `fd`."""
    info, size = _MapInfo(), c_uint32(ctypes.sizeof(_MapInfo))
    _check(_lib().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), size), "asking for a map's sizes")
    return MapInfo(info.type, info.key_size, info.value_size, info.max_entries, info.name.decode(), info.map_flags)


def program_info(fd: int) -> ProgramInfo:
    """Type, id and name of the program `fd`."""
    info, size = _ProgInfo(), c_uint32(ctypes.sizeof(_ProgInfo))
    _check(_lib().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), size), "asking for a program's id")
    return ProgramInfo(info.type, info.id, info.name.decode(), info.verified_insns)


def program_by_id(number: int) -> ProgramInfo | None:
    """The program with this id; None if it is gone."""
    fd = _check(_lib().bpf_prog_get_fd_by_id(number), "opening a program by id", accept=(errno.ENOENT,))
    if fd < 0:
        return None
    try:
        return program_info(fd)
    finally:
        os.close(fd)


def lookup(fd: int, key: "Array", value: "Array") -> bool:
    """Read one value into `value`; False if the key is not there."""
    result = _lib().bpf_map_lookup_elem(fd, _address(key), _address(value))
    return _check(result, "reading a map", accept=(errno.ENOENT,)) >= 0


def update(fd: int, key: "Array", value: "Array") -> None:
    """Write one entry."""
    _check(_lib().bpf_map_update_elem(fd, _address(key), _address(value), ANY), "writing a map")


def delete(fd: int, key: "Array") -> bool:
    """Delete one entry; False if it was not there."""
    return _check(_lib().bpf_map_delete_elem(fd, _address(key)), "emptying a map", accept=(errno.ENOENT,)) >= 0


def lookup_batch(fd: int, start: "Array | None", behind: "Array", keys: "Array", values: "Array") -> int:
    """Read up to len(keys) entries on from `start` (None: from the first one), and where to go on into `behind`.

    Returns the number read; negative, minus one: so many and the map is at its end. Raises KernelError; its errno
    is ENOSPC when one hash bucket holds more than len(keys).
    """
    count = c_uint32(len(keys))
    result = _lib().bpf_map_lookup_batch(
        fd,
        _address(start) if start is not None else None,
        _address(behind),
        _address(keys),
        _address(values),
        count,
        None,
    )
    _check(result, "reading a map", accept=(errno.ENOENT,))
    return -int(count.value) - 1 if result < 0 else int(count.value)


def next_key(fd: int, key: "Array | None", after: "Array") -> bool:
    """Write the key behind `key` (None: the first) into `after`; False at the end."""
    start = _address(key) if key is not None else None
    result = _lib().bpf_map_get_next_key(fd, start, _address(after))
    return _check(result, "reading a map", accept=(errno.ENOENT,)) >= 0


def update_batch(fd: int, keys: "Array", values: "Array") -> None:
    """Write all entries."""
    if len(keys):
        count = c_uint32(len(keys))
        _check(_lib().bpf_map_update_batch(fd, _address(keys), _address(values), count, None), "writing a map")


def delete_batch(fd: int, keys: "Array") -> None:
    """Delete all these entries, each of which must be there."""
    if len(keys):
        count = c_uint32(len(keys))
        _check(_lib().bpf_map_delete_batch(fd, _address(keys), count, None), "emptying a map")


def test_run(
    fd: int, packet: "Array", *, context: "Array | None" = None, repeat: int = 1, flags: int = 0, batch: int = 0
) -> tuple[int, int]:
    """Run the program over `packet` (uint8, ≥ 14 bytes): (its return value, ns a run).

    `context` is a struct xdp_md or __sk_buff as bytes; with TEST_LIVE_FRAMES `repeat` frames really leave.
    """
    opts = _TestRun(sz=ctypes.sizeof(_TestRun), repeat=repeat, flags=flags, batch_size=batch)
    opts.data_in, opts.data_size_in = _address(packet), packet.nbytes
    if context is not None:
        opts.ctx_in, opts.ctx_size_in = _address(context), context.nbytes
    _check(_lib().bpf_prog_test_run_opts(fd, opts), "test-running a program")
    return int(opts.retval), int(opts.duration)


def link_create(fd: int, ifindex: int, hook: str, flags: int) -> int:
    """Descriptor of a new bpf_link of program `fd` to a hook (LINK_HOOKS); closed and nowhere pinned, it is gone.

    `flags`: for `xdp` one of XDP_FLAGS_*_MODE, for `egress` FIRST. Raises KernelError; its errno is EBUSY or EEXIST if
    XDP is taken.
    """
    opts = _LinkCreate(sz=ctypes.sizeof(_LinkCreate), flags=flags)
    return _check(_lib().bpf_link_create(fd, ifindex, LINK_HOOKS[hook], opts), f"linking {hook}")


def link_update(link: int, fd: int, old_fd: int) -> None:
    """Put program `fd` in the place of `old_fd`: no packet meets neither. Raises KernelError if it is not there."""
    opts = _LinkUpdate(sz=ctypes.sizeof(_LinkUpdate), flags=_REPLACE, old_prog_fd=old_fd)
    _check(_lib().bpf_link_update(link, fd, opts), "replacing the program of a link")


def link_detach(link: int) -> None:
    """Take the link off its hook now; fine if that is gone. The descriptor stays."""
    _check(_lib().bpf_link_detach(link), "detaching a link", accept=(errno.ENOLINK,))


def link_info(link: int) -> LinkInfo:
    """Which link this is, what it runs and where."""
    info, size = _LinkInfo(), c_uint32(ctypes.sizeof(_LinkInfo))
    _check(_lib().bpf_obj_get_info_by_fd(link, ctypes.byref(info), size), "asking for a link")
    return LinkInfo(info.id, LINK_TYPES.get(info.type, ""), info.prog_id, info.ifindex)


def link_by_id(number: int) -> LinkInfo | None:
    """The link with this id; None if it is gone."""
    fd = _check(_lib().bpf_link_get_fd_by_id(number), "opening a link by id", accept=(errno.ENOENT, errno.EAGAIN))
    if fd < 0:
        return None
    try:
        return link_info(fd)
    finally:
        os.close(fd)


def next_link(number: int) -> int:
    """The lowest id of a link above `number`; 0: none."""
    found = c_uint32()
    _check(_lib().bpf_link_get_next_id(number, found), "looking for links", accept=(errno.ENOENT,))
    return found.value


def tcx_query(ifindex: int) -> list[int]:
    """Ids of the programs that TCX runs on egress, in their order."""
    ids = (c_uint32 * _TCX_MAX)()
    opts = _ProgQuery(sz=ctypes.sizeof(_ProgQuery), prog_ids=ctypes.addressof(ids), prog_cnt=len(ids))
    _check(_lib().bpf_prog_query_opts(ifindex, LINK_HOOKS["egress"], opts), "asking for TCX programs")
    return ids[: opts.prog_cnt]


def has_helper(kind: str, number: int) -> bool:
    """Whether programs of this kind (PROGRAM_TYPES) may call the helper of this number: tried by loading one."""
    return bool(_check(_lib().libbpf_probe_bpf_helper(PROGRAM_TYPES[kind], number, None), "probing a helper"))


def xdp_query(ifindex: int) -> XdpQuery:
    """Ids of the XDP programs on an interface."""
    opts = _XdpQuery(sz=ctypes.sizeof(_XdpQuery))
    _check(_lib().bpf_xdp_query(ifindex, 0, opts), "asking an interface for its XDP program")
    if opts.attach_mode in (1, 2, 3):  # XDP_ATTACHED_DRV, SKB, HW: one program, told by prog_id alone
        by_mode = {1: (opts.prog_id, 0, 0), 2: (0, opts.prog_id, 0), 3: (0, 0, opts.prog_id)}
        return XdpQuery(*by_mode[opts.attach_mode])
    return XdpQuery(opts.drv_prog_id, opts.skb_prog_id, opts.hw_prog_id)


def xdp_attach(ifindex: int, fd: int, flags: int, *, old_fd: int | None = None) -> None:
    """Attach `fd` (-1: detach) if nothing is there, or if `old_fd` is; in no other case."""
    opts = _XdpAttach(sz=ctypes.sizeof(_XdpAttach), old_prog_fd=old_fd or 0)
    if old_fd is None:
        flags |= XDP_FLAGS_UPDATE_IF_NOEXIST  # without it the kernel replaces anybody's program silently
    _check(_lib().bpf_xdp_attach(ifindex, fd, flags, opts), "attaching XDP")


def clsact_create(ifindex: int) -> bool:
    """Make the interface's clsact qdisc; False if there was one."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=TC_EGRESS)
    return _check(_lib().bpf_tc_hook_create(hook), "making a clsact qdisc", accept=(errno.EEXIST,)) >= 0


def clsact_destroy(ifindex: int) -> None:
    """Remove the interface's clsact qdisc with every filter on it."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=1 | TC_EGRESS)
    _check(_lib().bpf_tc_hook_destroy(hook), "removing a clsact qdisc", accept=(errno.ENOENT, errno.EINVAL))


def tc_attach(ifindex: int, fd: int, handle: int, priority: int, *, replace: bool = False) -> None:
    """Attach `fd` on egress, direct-action. Raises KernelError with errno EEXIST if the place is taken."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=TC_EGRESS)
    flags = TC_F_REPLACE if replace else 0
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), prog_fd=fd, flags=flags, handle=handle, priority=priority)
    _check(_lib().bpf_tc_attach(hook, opts), "attaching the TC program")


def tc_detach(ifindex: int, handle: int, priority: int) -> None:
    """Take the filter off egress; fine if it is not there."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=TC_EGRESS)
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), handle=handle, priority=priority)
    _check(_lib().bpf_tc_detach(hook, opts), "detaching the TC program", accept=(errno.ENOENT, errno.EINVAL))


def tc_query(ifindex: int, handle: int, priority: int) -> int:
    """Id of the program of this filter on egress; 0 if there is none."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=TC_EGRESS)
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), handle=handle, priority=priority)
    found = _check(_lib().bpf_tc_query(hook, opts), "asking for TC programs", accept=(errno.ENOENT, errno.EINVAL))
    return int(opts.prog_id) if found >= 0 else 0
