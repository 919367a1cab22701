"""Network namespaces and the veth pairs between them, made and taken away by name.

`ip` does the work: it is on every machine that can run the demo, and one `-batch` is one process for many
links. Nothing here ever lists namespaces and guesses whose they are: what was made is known by its full name.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from ztlens.errors import Missing

CLONE_NEWNET = 0x40000000
NETNS_DIR = Path("/run/netns")
T = TypeVar("T")


class NetworkError(Missing):
    """The kernel or `ip` refused. `hint`: one line, what to do next."""


def ip(*arguments: str, netns: str = "", lines: Iterable[str] = ()) -> str:
    """Run `ip [-n netns] arguments`, with `lines` as its standard input; its output.

    Raises NetworkError with what `ip` said.
    """
    command = ["ip", *(["-n", netns] if netns else []), *arguments]
    try:
        done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NetworkError("`ip` is not installed", "apt install iproute2") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        hint = "run as root" if os.geteuid() else "the kernel needs network namespaces (CONFIG_NET_NS) and veth"
        raise NetworkError(f"{' '.join(command)}: {said[0]}", hint)
    return done.stdout


def batch(lines: Iterable[str], netns: str = "") -> None:
    """Run `lines` as one `ip -batch`, in `netns` when given."""
    ip("-batch", "-", netns=netns, lines=lines)


def enter(netns: str) -> None:
    """Move the calling thread into `netns`; in a process of one thread, the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(NETNS_DIR / netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"no namespace {netns}: {error.strerror}", "`ip netns list` shows them") from error
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise NetworkError(f"cannot enter namespace {netns}: {os.strerror(ctypes.get_errno())}", "run as root")
    finally:
        os.close(descriptor)


def call_in(netns: str, function: Callable[[], T]) -> T:
    """What `function()` returns or raises, run inside `netns`: sockets it opens stay there.

    A thread of its own enters, so the caller's namespace never changes.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            enter(netns)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name=f"in-{netns}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def write_sysctls(netns: str, values: dict[str, str]) -> None:
    """Set `net/…` sysctls (path below /proc/sys/net → value) in `netns`."""

    def body() -> None:
        for name, value in values.items():
            try:
                Path("/proc/sys/net", name).write_text(value)
            except OSError as error:
                hint = "the demo needs IPv4 and IPv6 in the kernel" if isinstance(error, FileNotFoundError) else ""
                raise NetworkError(f"sysctl net/{name}: {error.strerror}", hint or "run as root") from error

    call_in(netns, body)


def add_namespace(netns: str, *, router: bool = False) -> None:
    """Make `netns` with `lo` up; forwarding if `router`. Addresses work at once: no duplicate address detection."""
    ip("netns", "add", netns)
    values = {f"ipv6/conf/{scope}/{key}": "0" for scope in ("all", "default") for key in ("accept_dad", "disable_ipv6")}
    if router:
        values |= {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
    write_sysctls(netns, values)
    ip("link", "set", "lo", "up", netns=netns)


def exists(netns: str) -> bool:
    """Whether a namespace of exactly this name is there."""
    return (NETNS_DIR / netns).exists()


def delete_namespace(netns: str) -> None:
    """Take `netns` away, and with it every link it holds; nothing happens if it is gone already."""
    if exists(netns):
        ip("netns", "delete", netns)
