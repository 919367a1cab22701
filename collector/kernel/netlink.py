"""The little of rtnetlink that ztlens reads: whole tables, and word that one of them changed.

By hand, for it is three requests: a library for all of rtnetlink takes 0.15 s and 17 MB of every start. A socket stays
in the network namespace of the thread that opened it.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

from collector.errors import KernelError

GET_LINKS, GET_ADDRESSES, GET_FILTERS = 18, 22, 46  # RTM_GETLINK, RTM_GETADDR, RTM_GETTFILTER
LINKS, ADDRESSES = 0x1, 0x10 | 0x100  # RTMGRP_LINK; RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_ERROR, _DONE = 2, 3  # NLMSG_*
_REQUEST_DUMP, _INTERRUPTED = 0x301, 0x10  # NLM_F_REQUEST | NLM_F_DUMP, NLM_F_DUMP_INTR
_DELLINK = 17  # RTM_DELLINK
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_IFINFO = struct.Struct("=Bxxxi")  # family, ifindex; of struct ifaddrmsg as long
_BUFFER = 1 << 18  # bytes; the kernel fills 32 KiB at most
_TRIES = 10


class _Interrupted(Exception):
    """The table changed while it was read: entries may be missing."""


def dump(kind: int, body: bytes) -> list[bytes]:
    """The whole table of `kind`: the messages behind their header, as they stood at one time. Raises KernelError."""
    for _ in range(_TRIES):
        with contextlib.suppress(_Interrupted), _opened(0) as opened:
            try:
                opened.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_DUMP, 1, 0) + body)
                return list(_answers(opened))
            except OSError as error:
                raise _failure(error.errno) from error
    raise KernelError("netlink: the table changes faster than it can be read", "try again")


def _answers(opened: socket.socket) -> Iterator[bytes]:
    while True:
        data = opened.recv(_BUFFER)
        at = 0
        while at < len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
            if flags & _INTERRUPTED:
                raise _Interrupted
            if kind == _DONE:
                return
            message = data[at + _HEADER.size : at + length]
            if kind == _ERROR:
                raise _failure(-struct.unpack_from("=i", message)[0])
            yield message
            at += length + 3 & ~3


def attributes(message: bytes, offset: int) -> dict[int, bytes]:
    """Attributes by number, from `offset` on; a nested one is such a sequence again."""
    return dict(_attributes(message, offset))


def sequence(message: bytes) -> list[bytes]:
    """Attributes of a nested one in which a number comes more than once."""
    return [value for _, value in _attributes(message, 0)]


def _attributes(message: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(message):
        length, number = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        yield number & 0x3FFF, message[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def text(value: bytes) -> str:
    """A string attribute."""
    return value.rstrip(b"\0").decode(errors="replace")


class Changes:
    """Readable once something of `groups` has changed. Then look at the whole table: so it does not matter what the
    kernel dropped when too much came at once.
    """

    def __init__(self, groups: int) -> None:
        self._socket = _opened(groups)

    def fileno(self) -> int:
        return self._socket.fileno()

    def empty(self) -> set[int]:
        """Forget what came until now; then look: what comes from here on is heard of.

        Numbers of interfaces that went: the table does not tell those from others made anew with their number.
        """
        went: set[int] = set()
        while True:
            try:
                data = self._socket.recv(_BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return went
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise _failure(error.errno) from error
                continue
            _, kind, _, _, _ = _HEADER.unpack_from(data)  # of a change, unlike of a table, each is sent by itself
            family, ifindex = _IFINFO.unpack_from(data, _HEADER.size)
            if kind == _DELLINK and family == socket.AF_UNSPEC:  # else it only left a bridge
                went.add(ifindex)

    def close(self) -> None:
        self._socket.close()


def _opened(groups: int) -> socket.socket:
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)  # NETLINK_ROUTE
        opened.bind((0, groups))
    except OSError as error:
        raise _failure(error.errno) from error
    return opened


def _failure(number: int | None) -> KernelError:
    error = KernelError(f"netlink: {os.strerror(number or 0)}", "interfaces and addresses cannot be read")
    error.errno = number or 0
    return error
