"""Pages that were read before they were asked for.

Rows sorted by anything but time lie scattered over all history, and to read a few of each row group costs what it costs
to read one: milliseconds a group, however few columns. So ten pages are read for the first.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from typing import Any

import msgspec

from schemas import http

STANDS = 60.0
"""Seconds a page that was read ahead may be old."""
KEPT = 16 << 20
"""Bytes kept; a page of a hundred flows takes 70,000."""


class Ahead:
    """The next pages of `flows`, encoded, by the question for each. From any thread."""

    def __init__(self, encoder: msgspec.json.Encoder) -> None:
        self._encoder = encoder
        self._pages: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, asked: http.FlowsAsked) -> bytes | None:
        """The page that answers, if it was read."""
        key = _key(asked)
        with self._lock:
            self._forget()
            found = self._pages.get(key)
        return found and found[1]

    def keep(self, asked: http.FlowsAsked, pages: list[dict[str, Any]]) -> bytes:
        """The first of `pages`; the others are the ones after it, kept for who asks for them."""
        first, *others = (self._encoder.encode(page) for page in pages)
        keys = [_key(msgspec.structs.replace(asked, cursor=page["next"])) for page in pages[: len(others)]]
        with self._lock:
            for key, page in zip(keys, others, strict=True):
                self._drop(key)
                self._pages[key] = time.monotonic(), page
                self._bytes += len(page)
            self._forget()
        return first

    def _forget(self) -> None:
        """What is too old, and the oldest of what is too much."""
        while self._pages:
            key = next(iter(self._pages))
            if self._bytes <= KEPT and time.monotonic() - self._pages[key][0] < STANDS:
                return
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        self._bytes -= len(self._pages.pop(key, (0.0, b""))[1])


def _key(asked: http.FlowsAsked) -> bytes:
    """Of a question that may be long."""
    return hashlib.sha256(repr(asked).encode()).digest()
