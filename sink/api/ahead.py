"""Pages that were read before they were asked for.

Rows sorted by anything but time lie scattered over all history, and to read a few of each row group costs what it costs
to read one: milliseconds a group, however few columns. So ten pages are read for the first.
"""

import threading
import time
from collections import OrderedDict
from typing import Any

import msgspec

from schemas import http

STANDS = 60.0
"""Seconds a page that was read ahead may be old."""
KEPT = 20_000
"""Rows kept, of some 700 bytes."""


class Ahead:
    """The next pages of `flows`, encoded, by the question for each. From any thread."""

    def __init__(self, encoder: msgspec.json.Encoder) -> None:
        self._encoder = encoder
        self._pages: OrderedDict[str, tuple[float, int, bytes]] = OrderedDict()
        self._rows = 0
        self._lock = threading.Lock()

    def get(self, asked: http.FlowsAsked) -> bytes | None:
        """The page that answers, if it was read."""
        with self._lock:
            self._forget()
            found = self._pages.get(repr(asked))
        return found and found[2]

    def keep(self, asked: http.FlowsAsked, pages: list[dict[str, Any]]) -> bytes:
        """The first of `pages`; the others are the ones after it, kept for who asks for them."""
        first, *others = pages
        last = first
        with self._lock:
            for page in others:
                key = repr(msgspec.structs.replace(asked, cursor=last["next"]))
                self._drop(key)
                self._pages[key] = time.monotonic(), len(page["flows"]), self._encoder.encode(page)
                self._rows += len(page["flows"])
                last = page
            self._forget()
        return self._encoder.encode(first)

    def _forget(self) -> None:
        """What is too old, and the oldest of what is too much."""
        while self._pages:
            key = next(iter(self._pages))
            if self._rows <= KEPT and time.monotonic() - self._pages[key][0] < STANDS:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._rows -= self._pages.pop(key, (0.0, 0, b""))[1]
