"""The policy file: read at the start, watched from then on. What cannot be used changes nothing and is told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from collector.errors import RefusedError
from policy import source
from policy.compile import compile_policy
from policy.errors import PolicyError

if TYPE_CHECKING:
    from policy.compile import Compiled

log = logging.getLogger("ztlens.collector")

POLL = 1.0  # seconds between looks; a file is read once it stayed as it is for one of them: no editor is interrupted

Apply = Callable[[str], Awaitable[None]]
"""`await apply(text)` makes it the policy. Raises RefusedError, having told so."""
Refuse = Callable[[RefusedError], None]


def compile_text(text: str, file: str, host: Sequence[str] = ()) -> "Compiled":
    """Parse and compile; `host`: the node's addresses. Raises RefusedError with the place of the fault."""
    try:
        return source.compile_text(text, file, host=host)
    except PolicyError as error:
        raise RefusedError(str(error), error.hint) from error


def read_policy(path: Path) -> str:
    """The file's text. Raises RefusedError."""
    try:
        return source.read_text(path)
    except PolicyError as error:
        raise RefusedError(str(error), error.hint) from error
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}", "name a readable policy file, or none") from error


@dataclass(frozen=True)
class Wanted:
    """The policy file as found at the start: `compiled`, or why there is none."""

    file: str
    text: str = ""
    compiled: "Compiled | None" = None
    problem: RefusedError | None = None

    @classmethod
    def read(cls, path: Path) -> "Wanted":
        """Read and compile; never raises for what is in the file."""
        text = ""
        try:
            text = read_policy(path)
            return cls(str(path), text, compile_text(text, str(path)))
        except RefusedError as error:
            return cls(str(path), text, None, error)

    def on(self, host: Sequence[str]) -> "Wanted":
        """The same for a node of these addresses."""
        if self.compiled is None or not host:
            return self
        try:
            return replace(self, compiled=compile_policy(self.compiled.policy, host=host))
        except PolicyError as error:
            return replace(self, compiled=None, problem=RefusedError(str(error), error.hint))


class PolicyFile:
    """Keeps the node's policy at what the file says. `run` is the task, `reload` what SIGHUP asks for."""

    def __init__(self, path: Path, apply: Apply, refuse: Refuse, wait: Callable[[], bool]) -> None:
        """`wait()`: True while nothing can be changed; the file is looked at afterwards."""
        self.path = path
        self.error = ""  # why the file as it is now is not in force
        self._apply, self._refuse, self._wait = apply, refuse, wait
        self._text: str | None = None
        self._seen: object = None
        self._settling: object = None
        self._lock = asyncio.Lock()

    def begin(self, wanted: Wanted, *, dealt_with: bool) -> None:
        """What became of the file at the start. Not `dealt_with`: it is looked at as soon as `wait` allows."""
        self.error = str(wanted.problem or "")
        self._text = wanted.text if dealt_with else None

    async def run(self) -> None:
        """Look at the file for ever. Editors replace it: device, inode, size and time tell whether it is another."""
        while True:
            await asyncio.sleep(POLL)
            if self._wait():
                continue
            now = await asyncio.to_thread(_signature, self.path)
            if now == self._seen:
                continue
            if now != self._settling:
                self._settling = now
                continue
            await self.reload(changed_only=True)

    async def reload(self, *, changed_only: bool = False) -> None:
        """Read and apply it; with `changed_only` if it says something else than last time."""
        async with self._lock:
            self._seen = await asyncio.to_thread(_signature, self.path)
            try:
                text = await asyncio.to_thread(read_policy, self.path)
            except RefusedError as error:
                self._text = None
                if not changed_only or str(error) != self.error:
                    self.error = str(error)
                    self._refuse(error)
                return
            if changed_only and text == self._text:
                return
            before, self._text = self._text, text
            try:
                await self._apply(text)
                self.error = ""
            except RefusedError as error:
                if self._wait():  # by SIGHUP, or in the meantime: what it says anew is looked at afterwards
                    self._text, self._seen = before, None
                else:
                    self.error = str(error)


def _signature(path: Path) -> tuple[int, ...] | str:
    try:
        stat = path.stat()
    except OSError as error:
        return str(error.strerror)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
