"""Stdout that never holds up who writes to it: for `up`, which must go on whether or not anybody reads.

A terminal that is paused or a pipe nobody empties blocks a thread of its own; what it cannot take is left
out and counted.
"""

import contextlib
import os
import queue
import select
import threading
from collections.abc import Iterator

from ztlens import show

WAITING = 256
"""Texts that may wait for a slow reader."""


def _whole_lines(text: str) -> Iterator[bytes]:
    """Lines together up to PIPE_BUF bytes: a pipe takes such a write whole or not at all, so that the end of the
    program never cuts a line that a slow reader had no room for.
    """
    part = b""
    for line in text.encode().splitlines(keepends=True):
        if part and len(part) + len(line) > select.PIPE_BUF:
            yield part
            part = b""
        part += line
    yield part


class Screen:
    """Give it texts with `write`. The thread is a daemon and uses the descriptor itself: a blocked write keeps no lock
    that the end of the interpreter would wait for."""

    def __init__(self, descriptor: int = 1) -> None:
        self.left_out = 0
        self._descriptor = descriptor
        self._texts: queue.Queue[str] = queue.Queue(WAITING)
        self._gone = False
        threading.Thread(target=self._run, name="screen", daemon=True).start()

    def write(self, text: str) -> None:
        """Show `text` soon, or leave it out."""
        try:
            if not self._gone:
                self._texts.put_nowait(text)
        except queue.Full:
            self.left_out += 1

    def flush(self) -> None:
        """Nothing is held back."""

    def _run(self) -> None:
        while True:
            text = self._texts.get()
            left_out, self.left_out = self.left_out, 0
            try:
                for part in _whole_lines(text):
                    data = part
                    while data:
                        data = data[os.write(self._descriptor, data) :]
            except OSError:  # nobody reads any more
                self._gone = True
                return
            if left_out:
                with contextlib.suppress(OSError):
                    show.say(f"{left_out} batches of live verdicts were left out: the screen is too slow for them")
