"""Following the interfaces: a look whenever the kernel tells of a change, now and then for what it does not tell."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from collector.errors import CollectorError
from collector.kernel.interface import Datapath, Look

log = logging.getLogger("ztlens.collector")

LOOK_AFTER = 10.0  # seconds between two looks without word of a change: a program taken off is not told of
FEW = 8  # names in a line


class Interfaces:
    """Those of one datapath. `notice` tells the operator; `came` is called after some are watched anew."""

    def __init__(
        self,
        datapath: Datapath,
        call: Callable[..., Awaitable[Any]],
        notice: Callable[[str], None],
        came: Callable[[], Awaitable[None]],
    ) -> None:
        self._datapath, self._call, self._notice, self._came = datapath, call, notice, came
        self._unwatched: dict[str, str] = {}
        self._fault = ""

    async def run(self) -> None:
        """For ever."""
        loop, fd = asyncio.get_running_loop(), self._datapath.interface_changes()
        while True:
            changed = asyncio.Event()
            loop.add_reader(fd, changed.set)
            try:
                await asyncio.wait_for(changed.wait(), LOOK_AFTER)
            except TimeoutError:
                pass
            finally:
                loop.remove_reader(fd)
            try:
                look: Look = await self._call(self._datapath.look_after)
                self._tell(look)
                if look.came:
                    await self._came()
                self._fault = ""
            except (CollectorError, OSError) as error:
                if str(error) != self._fault:
                    self._notice(f"interfaces: {error}")
                self._fault = str(error)

    def _tell(self, look: Look) -> None:
        if look.came:
            log.info("watching %s", few([f"{name} ({self._datapath.interfaces.get(name)})" for name in look.came]))
        if look.went:
            log.info("not watching %s any more: gone", few(look.went))
        before, self._unwatched = self._unwatched, look.unwatched
        for line in look.notices:
            self._notice(line)
        for name, why in look.unwatched.items():
            if before.get(name) != why:
                self._notice(f"{name} is {why}; what passes it is not seen")


def few(names: list[str]) -> str:
    """`a, b, c, d, e, f, g, h and 12 more`; "" if there are none."""
    rest = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {rest} more" if rest > 0 else "")
