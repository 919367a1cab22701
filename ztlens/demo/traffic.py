"""The demo's machines as processes: started, told to go, listened to, ended by their own ids."""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ztlens.demo.netns import NetworkError
from ztlens.demo.network import MACHINES, DemoNetwork
from ztlens.demo.workload import DENIED_PATIENCE, ROUNDS

SOURCE = Path(__file__).resolve().parent.parent.parent
"""Where `python -m ztlens…` finds this very package."""
START_SECONDS = 60
"""Far beyond what starting Python seven times takes: reached only when something is broken."""
STOP_SECONDS = 5


@dataclass
class Report:
    """What a machine's clients have said so far: exchanges by name (`page/v4`), answered and not."""

    rounds: int = 0
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    over: bool = False


class Traffic:
    """The processes of one run.

    `start` → servers listen; `go` → clients talk; `wait_rounds`; `stop`. Call from the main thread: a process ends when
    the thread that made it does. `patience`: seconds that clients wait for what policy may deny.
    """

    def __init__(self, network: DemoNetwork, patience: float = DENIED_PATIENCE) -> None:
        self._network = network
        self._patience = patience
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._listeners: list[asyncio.Task[None]] = []
        self._ready: set[str] = set()
        self._changed = asyncio.Condition()
        self._talking = False
        self.reports = {name: Report() for name in ROUNDS}

    @property
    def pids(self) -> dict[str, int]:
        """Machine → its process."""
        return {name: process.pid for name, process in self._processes.items()}

    async def start(self) -> None:
        """Start every machine and wait until its servers listen. Raises NetworkError; then call `stop` all the same."""
        for name in MACHINES:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ztlens.demo.workload", self._network.prefix, name, str(os.getpid()),
                str(self._patience),
                cwd=SOURCE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            self._processes[name] = process
            self._listeners.append(asyncio.create_task(self._listen(name, process)))
        await self._wait(lambda: len(self._ready) == len(MACHINES), "the servers to listen")

    def go(self) -> None:
        """Let the clients talk."""
        self._talking = True
        self._tell(b"go\n")

    def _tell(self, line: bytes) -> None:
        for process in self._processes.values():
            if process.stdin and process.returncode is None:
                process.stdin.write(line)

    async def wait_rounds(self, rounds: int) -> None:
        """Wait until every client has done everything it does `rounds` times. Raises NetworkError."""
        await self._wait(lambda: all(r.rounds >= rounds for r in self.reports.values()), f"{rounds} rounds of traffic")

    async def stop(self) -> None:
        """First the clients fall silent, then every machine ends, by force if it must. Idempotent."""
        if self._talking:
            self._talking = False
            self._tell(b"stop\n")
            with contextlib.suppress(NetworkError):  # one that ended by itself has nothing more to say
                await self._wait(lambda: all(r.over for r in self.reports.values()), "silence", STOP_SECONDS)
        for process in self._processes.values():
            if process.stdin:
                process.stdin.close()
        if self._listeners:
            await asyncio.wait(self._listeners, timeout=STOP_SECONDS)
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    async def _listen(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Take in what the machine says until it ends."""
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            async with self._changed:
                if "ready" in said:
                    self._ready.add(name)
                else:
                    self.reports[name] = Report(
                        said["rounds"], Counter(said["done"]), Counter(said["failed"]), said["over"]
                    )
                self._changed.notify_all()
        await process.wait()
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        def over() -> bool:
            return condition() or any(process.returncode is not None for process in self._processes.values())

        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(over)
        except TimeoutError:
            raise NetworkError(f"waited {seconds} s for {what}", "is this machine overloaded?") from None
        if not condition():
            ended = [name for name, process in self._processes.items() if process.returncode is not None]
            raise NetworkError(f"demo machine {', '.join(ended)} ended by itself", "what it said is above")
