"""Looking at interfaces, in this network namespace or a named one.

A namespace is entered by a thread that ends afterwards (setns moves one thread alone), so the collector's own sockets
stay where they were; libbpf and pyroute2 open their netlink sockets in the thread that calls them.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from collector.errors import KernelError
from collector.kernel import libbpf

NETNS_DIR = Path("/run/netns")
T = TypeVar("T")


@dataclass(frozen=True)
class Link:
    """An interface. `master` is an ifindex, 0: none."""

    name: str
    ifindex: int
    kind: str
    master: int
    loopback: bool


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
            libbpf.setns(fd)
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
    """The interfaces of the calling thread's namespace, by name."""
    from pyroute2 import IPRoute  # noqa: PLC0415 – 17 MB that only start and stop need

    out = {}
    with IPRoute() as route:
        for message in route.get_links():
            name = message.get_attr("IFLA_IFNAME")
            info = message.get_attr("IFLA_LINKINFO")
            kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
            loopback = message["ifi_type"] == 772  # ARPHRD_LOOPBACK
            out[name] = Link(name, message["index"], kind, message.get_attr("IFLA_MASTER") or 0, loopback)
    return out


def has_filters(ifindex: int) -> bool:
    """Whether any filter is left on the interface's clsact, on either side."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        return any(list(route.get_filters(index=ifindex, parent=parent)) for parent in (0xFFFFFFF2, 0xFFFFFFF3))
