"""A nats-server whose disk was full refuses to store until it is started anew (tried with 2.15.1): `up` does that.

Meanwhile it writes a line for every message it refuses; the first says it all.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from ztlens.parts import Part

ROOM = 8 << 20
"""Bytes that must be free on the disk before the server is started anew."""
LOOK = 1.0
"""Seconds between two looks at the disk."""


class StoreWatch:
    """Reads the server's log for what people should see, and remembers whether its store has failed."""

    def __init__(self, directory: Path) -> None:
        self.failed = False
        self._directory = directory

    def worth_telling(self, line: str) -> bool:
        """Whether a line of the log concerns people: only what is wrong, once. (The file with the password is 0600.)"""
        if "ritical write error" in line:
            known, self.failed = self.failed, True
            return not known
        if self.failed and "failed to store" in line:
            return False
        return any(level in line for level in ("[WRN]", "[ERR]", "[FTL]")) and "Plaintext passwords" not in line

    async def keep(self, part: Part, report: Callable[[str], None]) -> None:
        """End a server whose store has failed once there is room again (its keeper starts it anew); until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            if self.failed and part.alive and self._free() >= ROOM:
                report("nats: there is room on the disk again, and it stores nothing until it is started anew")
                self.failed = False
                await part.stop(10.0)

    def _free(self) -> int:
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize
