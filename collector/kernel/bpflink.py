"""bpf_links: attachments that are objects of their own, pinned beside the datapath's maps.

A pinned link outlives the collector, its program is replaced in one step, and nobody else's `ip link … xdp off` takes
it off. When its interface goes, the link stays as an empty shell until it is dropped.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from collector.errors import KernelError
from collector.kernel import libbpf

PREFIX = "link-"


@dataclass(frozen=True)
class BpfLink:
    """A pinned link. `hook` is `xdp` or `egress`; `program` an id; `ifindex` 0: it is attached nowhere any more."""

    path: Path
    hook: str
    program: int
    ifindex: int


def make(directory: Path, fd: int, ifindex: int, hook: str, flags: int) -> None:
    """Attach program `fd` and pin the link. Raises KernelError; then nothing is attached."""
    link = libbpf.link_create(fd, ifindex, hook, flags)
    try:
        libbpf.obj_pin(link, str(directory / f"{PREFIX}{hook}-{libbpf.link_info(link).id}"))
    finally:
        os.close(link)  # the pin holds it


def read(directories: Iterable[Path]) -> list[BpfLink]:
    """The links pinned there. Raises KernelError."""
    found = []
    for directory in directories:
        for path in sorted(directory.glob(PREFIX + "*")):
            link = libbpf.obj_get(str(path))
            try:
                info = libbpf.link_info(link)
            finally:
                os.close(link)
            found.append(BpfLink(path, info.hook, info.program, info.ifindex))
    return found


def holding(hook: str, ifindex: int, program: int) -> int:
    """Id of the link, whosever it is, that holds the program `program` there; 0: none does. Raises KernelError."""
    number = 0
    while number := libbpf.next_link(number):
        link = libbpf.link_by_id(number)
        if link is not None and (link.hook, link.ifindex, link.program) == (hook, ifindex, program):
            return number
    return 0


def replace(link: BpfLink, fd: int, old_fd: int) -> None:
    """Put program `fd` where `old_fd` is: each packet meets one of them. Raises KernelError if it is not there."""
    opened = libbpf.obj_get(str(link.path))
    try:
        libbpf.link_update(opened, fd, old_fd)
    finally:
        os.close(opened)


def move(link: BpfLink, directory: Path) -> None:
    """Pin it in another datapath's directory instead."""
    if link.path.parent != directory:
        link.path.rename(directory / link.path.name)


def drop(link: BpfLink) -> None:
    """Detach it now and unpin it. Raises KernelError."""
    try:
        opened = libbpf.obj_get(str(link.path))
    except KernelError:
        if link.path.exists():
            raise
        return
    try:
        libbpf.link_detach(opened)
        link.path.unlink(missing_ok=True)
    finally:
        os.close(opened)
