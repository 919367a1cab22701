"""A part of `up`: a child process that is started, awaited, restarted with back-off when it dies, and stopped.

Children get their own session, so that Ctrl-C reaches only `up`, which stops them in order; and the kernel sends them
SIGTERM should `up` be killed (`setpriv --pdeathsig`), so that none is left over. The collector leaves the datapath
running on SIGTERM: the next `up` takes it over. It alone has all of root's privilege (ztlens/privilege.py).
"""

import asyncio
import collections
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from ztlens.errors import BAD_INPUT, MISSING, CliError, Missing, one_line
from ztlens.privilege import without

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
HEALTHY = 60.0
"""Seconds a part must have run for its next death to be answered at once again."""

_PASSED_ON = {"ZTLENS_BYTECODE_CACHE", "ZTLENS_PRETEND_MISSING"}
"""No setting: where tests keep what the compiler made (collector/kernel/loader_bcc.py)."""

Report = Callable[[str], None]


class Part:
    """One child. `ready` returns once it works and raises what it raises as long as it does not.

    `changed` is called whenever `pid` is another, or none. `kept`: the capabilities left to it; None: all.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        ready: Callable[[], Awaitable[None]],
        report: Report,
        changed: Callable[[], None],
        *,
        environment: Mapping[str, str] | None = None,
        kept: Iterable[str] | None = None,
        worth_telling: Callable[[str], bool] = bool,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._command = ["setpriv", "--pdeathsig", "TERM", *([] if kept is None else without(kept)), "--", *command]
        self._ready = ready
        self._report = report
        self._changed = changed
        self._environment = environment
        self._worth_telling = worth_telling
        self._said: collections.deque[str] = collections.deque(maxlen=50)
        self._quiet = True
        self._reader: asyncio.Task[None] | None = None

    async def start(self, patience: float) -> None:
        """Start it and wait until it is ready. What it says is told by `keep`: of a start that fails, only why.

        Raises CliError in the child's own words, with its exit status, when it ends, and Missing when it takes longer
        than `patience` seconds.
        """
        self._quiet = True
        await self._spawn()
        process = self.process
        assert process is not None
        ended = asyncio.ensure_future(process.wait())
        deadline = time.monotonic() + patience
        why = "it did not answer"
        try:
            while not ended.done():
                try:
                    await asyncio.wait_for(self._ready(), max(0.1, deadline - time.monotonic()))
                    break
                except Exception as error:
                    why = one_line(str(error)) or type(error).__name__
                if time.monotonic() > deadline:
                    await self.stop(5.0)
                    raise Missing(f"{self.name} was not ready within {patience:.0f} s: {why}", self._last_words())
                await asyncio.wait([ended], timeout=0.05)
        finally:
            if not ended.done():
                ended.cancel()
        if process.returncode is not None:
            await self._finish_reading()
            raise self._death(process.returncode)

    def _speak(self) -> None:
        """Tell what it has said since its start, and from now on what it says."""
        self._quiet = False
        for line in filter(self._worth_telling, self._said):
            self._report(f"{self.name}: {line}")

    async def _spawn(self) -> None:
        self._said.clear()
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=None if self._environment is None else dict(self._environment), start_new_session=True,
        )  # fmt: skip
        self._changed()
        self._reader = asyncio.ensure_future(self._follow(self.process))

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """To its end."""
        await self._read(process)
        await process.wait()
        self._changed()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                raw = await process.stderr.readline()
            except ValueError:  # a line beyond the stream's limit
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            self._said.append(line)
            if not self._quiet and self._worth_telling(line):
                self._report(f"{self.name}: {line}")

    async def _finish_reading(self) -> None:
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=1.0)

    def _death(self, status: int) -> CliError:
        """The child's last error line and hint as an error of ours."""
        said = list(self._said)
        for i in range(len(said) - 1, -1, -1):
            if said[i].startswith("error: "):
                hint = said[i + 1].removeprefix("hint: ") if said[i + 1 : i + 2] else ""
                exit_status = status if status in (BAD_INPUT, MISSING) else MISSING
                return CliError(said[i].removeprefix("error: "), hint or self._last_words(), exit_status)
            if "[FTL]" in said[i]:  # nats-server's log
                return Missing(f"{self.name}: {said[i].partition('[FTL]')[2].strip()}", "see `ztlens doctor`")
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return Missing(f"{self.name} ended at once ({how})", self._last_words())

    def _last_words(self) -> str:
        said = [line for line in self._said if line.strip()]
        return f"its last words: {said[-1]}" if said else f"run `ztlens {self.name} --debug` to see why"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.alive else None

    async def keep(self, patience: float) -> None:
        """Tell what it says, and restart it whenever it dies, later and later while it keeps dying; until cancelled."""
        wait = FIRST_WAIT
        self._speak()
        while True:
            process = self.process
            assert process is not None
            since = time.monotonic()
            status = await process.wait()
            await self._finish_reading()
            if time.monotonic() - since > HEALTHY:
                wait = FIRST_WAIT
            self._report(f"{one_line(str(self._death(status)))}; restarting {self.name} in {wait:g} s")
            while True:
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT)
                try:
                    await self.start(patience)
                except (CliError, OSError) as error:
                    self._report(f"{self.name} does not start: {one_line(str(error))}; trying again in {wait:g} s")
                    continue
                self.restarts += 1
                self._report(f"{self.name} is back (restart {self.restarts})")
                self._speak()
                break

    async def stop(self, patience: float) -> int | None:
        """SIGTERM, then SIGKILL after `patience` seconds. Its exit status; None if it was not running."""
        process = self.process
        if process is None or process.returncode is not None:
            return None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            self._report(f"{self.name} did not end within {patience:.0f} s: killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            status = await process.wait()
        await self._finish_reading()
        return status


def ztlens_command(*arguments: str) -> list[str]:
    """How to run this very ztlens again."""
    return [sys.executable, "-m", "ztlens.main", *arguments]


def clean_environment() -> dict[str, str]:
    """The environment without ZTLENS_*: children read their settings from the file they are given."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ZTLENS_") or name in _PASSED_ON}
