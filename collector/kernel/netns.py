"""Looking at interfaces, in this network namespace or a named one.

A namespace is entered by a thread that ends afterwards (setns moves one thread alone), so the collector's own sockets
stay where they were; libbpf and `netlink` open their netlink sockets in the thread that calls them.
"""

import os
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from collector.errors import KernelError
from collector.kernel import libc, netlink

NETNS_DIR = Path("/run/netns")
_IFINFO = struct.Struct("=BxHiII")  # family, device type, ifindex, flags, change mask
_TCMSG = struct.Struct("=B3xiIII")  # family, ifindex, handle, parent, info
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_PROP_LIST, _IFLA_INFO_KIND = 3, 10, 18, 52, 1
_LOOPBACK = 772  # ARPHRD_LOOPBACK
T = TypeVar("T")


@dataclass(frozen=True)
class Link:
    """An interface. `master` is an ifindex, 0: none; `others`: names it is called by beside."""

    name: str
    ifindex: int
    kind: str
    master: int
    loopback: bool
    others: tuple[str, ...] = ()


def inside(netns: str, function: Callable[[], T]) -> T:
    """`function()` in the named namespace (""  : here). Raises KernelError if there is no such namespace."""
    if not netns:
        return function()
    try:
        fd = os.open(NETNS_DIR / netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        there = sorted(p.name for p in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []
        raise KernelError(
            f"there is no network namespace {netns}", "those here: " + (", ".join(there) or "none; see `ip netns add`")
        ) from error
    result: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            libc.setns(fd)
            result.append(function())
        except BaseException as error:  # re-raised below, in the caller's thread
            failure.append(error)

    try:
        thread = threading.Thread(target=enter, name=f"netns-{netns}")
        thread.start()
        thread.join()
    finally:
        os.close(fd)
    if failure:
        raise failure[0]
    return result[0]


def links() -> dict[str, Link]:
    """The interfaces of the calling thread's namespace, by name. Raises KernelError."""
    out = {}
    for message in netlink.dump(netlink.GET_LINKS, _IFINFO.pack(0, 0, 0, 0, 0)):
        _, kind, ifindex, _, _ = _IFINFO.unpack_from(message)
        found = netlink.attributes(message, _IFINFO.size)
        name = netlink.text(found[_IFLA_IFNAME])
        info = netlink.attributes(found.get(_IFLA_LINKINFO, b""), 0)
        master = int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder)
        others = tuple(map(netlink.text, netlink.sequence(found.get(_IFLA_PROP_LIST, b""))))
        out[name] = Link(name, ifindex, netlink.text(info.get(_IFLA_INFO_KIND, b"")), master, kind == _LOOPBACK, others)
    return out


def has_filters(ifindex: int) -> bool:
    """Whether any filter is left on the interface's clsact, on either side. Raises KernelError."""
    return any(
        netlink.dump(netlink.GET_FILTERS, _TCMSG.pack(0, ifindex, 0, parent, 0)) for parent in (0xFFFFFFF2, 0xFFFFFFF3)
    )
