"""Stdout that never holds up who writes to it: for `up`, which must go on whether or not anybody reads.

A terminal that is paused or a pipe nobody empties blocks a thread of its own; what it cannot take is left
out and counted.
"""

import contextlib
import os
import queue
import threading

from ztlens import show

WAITING = 256
"""Texts that may wait for a slow reader."""


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
            data = self._texts.get().encode()
            left_out, self.left_out = self.left_out, 0
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:  # nobody reads any more
                self._gone = True
                return
            if left_out:
                with contextlib.suppress(OSError):
                    show.say(f"{left_out} batches of live verdicts were left out: the screen is too slow for them")
