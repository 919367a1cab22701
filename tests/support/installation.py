"""A whole ztlens of a test's own, run by its command line: started, asked, killed, and looked after when it is gone.

with Lab() as lab:
    one = Installation(lab, tmp_path, netns=lab.namespace("near"))
    with one:
        up = one.up("--policy", one.policy(POLICY))
        …
        one.down()
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from collector.control.client import request
from collector.errors import CollectorError
from collector.kernel.removal import remove_datapath
from sink.client import History
from sink.errors import SinkError
from tests.support.netns import Lab, wait_for
from tests.support.until import PATIENCE
from ztlens.config import PINS
from ztlens.parts import clean_environment, ztlens_command

KNOBS = {"FLOWS_MAX": 4096, "RING_BYTES": 1 << 20}
"""As in tests/integration/test_cli_up.py, so that both share what is compiled."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def told(self) -> tuple[int, str, str]:
        """Exit status, error and hint: all that a command which fails may say."""
        lines = self.stderr.splitlines()
        assert self.stdout == "" and len(lines) == 2, self
        assert lines[0].startswith("error: ") and lines[1].startswith("hint: "), self
        return self.status, lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")


class Process:
    """A command that runs on; what it says on stderr goes to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        """Everything on stderr so far."""
        return self.log.read_text(errors="replace")

    def until_said(self, text: str) -> None:
        """Wait for `text`; its end before that fails the test with all it said."""
        wait_for(lambda: text in self.said() or not self.alive, f"{text!r} from {self.log.name}")
        assert text in self.said(), self.said()

    def kill(self) -> None:
        """kill -9."""
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.popen.send_signal(how)
        return self.popen.wait(PATIENCE)


class Installation:
    """One instance. `settings` are lines of ztlens.toml; leaving it ends what it started and takes away its pins."""

    def __init__(
        self, lab: Lab, directory: Path, *, netns: str = "", interfaces: Sequence[str] = ("veth0",),
        knobs: Mapping[str, int] = KNOBS, timeouts: Mapping[str, int] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.name = f"{lab.prefix}-{directory.name}".replace(".", "-")
        self.state, self.run_dir, self.pins = directory / "state", directory / "run", PINS / self.name
        self.database = self.state / "ztlens.duckdb"
        given = {
            "instance": self.name, "node": "n1", "state": str(self.state), "run_dir": str(self.run_dir),
            "netns": netns, "interfaces": list(interfaces), "web": "off",
        } | settings  # fmt: skip
        lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
        for table, values in (("knobs", knobs), ("timeouts", timeouts or {})):
            lines += [f"[{table}]", *(f"{name} = {value}" for name, value in values.items())]
        self.file = directory / "ztlens.toml"
        self.file.write_text("\n".join(lines) + "\n")
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            if process.alive:
                process.kill()
            if kind is not None:
                print(f"--- {process.log.name}\n{process.said()}")
        wait_for(lambda: not self.processes(), "children to end with their parents")
        remove_datapath(self.pins)

    # ── running it ──────────────────────────────────────────────────────────────────────────────────────────────

    def environment(self) -> dict[str, str]:
        return clean_environment() | {"ZTLENS_CONFIG": str(self.file)}

    def start(self, *arguments: str, prefix: Sequence[str] = ()) -> Process:
        """Start `ztlens arguments`, behind the words of `prefix` (`setpriv …`)."""
        log = self.directory / f"{len(self._started)}-{arguments[0]}.log"
        process = Process([*prefix, *ztlens_command(*arguments)], self.environment(), log)
        self._started.append(process)
        return process

    def up(self, *arguments: str) -> Process:
        """`ztlens up`, until it tells what to try next."""
        process = self.start("up", *arguments)
        process.until_said("Ctrl-C ends it")
        return process

    def collector(self, *arguments: str, wait: bool = True) -> Process:
        """`ztlens collector`; with `wait` until it answers."""
        process = self.start("collector", *arguments)
        if wait:
            wait_for(lambda: self.answers("collector") or not process.alive, "the collector")
            assert process.alive, process.said()
        return process

    def sink(self, *arguments: str, wait: bool = True) -> Process:
        """`ztlens sink`; with `wait` until it answers."""
        process = self.start("sink", *arguments)
        if wait:
            wait_for(lambda: self.answers("sink") or not process.alive, "the sink")
            assert process.alive, process.said()
        return process

    def answers(self, part: str) -> bool:
        """Whether the collector or the sink answers on its socket."""
        try:
            self.status() if part == "collector" else self.sink_status()
        except (CollectorError, SinkError):
            return False
        return True

    def run(self, *arguments: str, status: int | None = 0, prefix: Sequence[str] = (), **environment: str) -> Done:
        """Run `ztlens arguments` to its end; `status` is what it must exit with, None: anything."""
        done = subprocess.run(
            [*prefix, *ztlens_command(*arguments)], env=self.environment() | environment, capture_output=True,
            stdin=subprocess.DEVNULL, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert status is None or done.returncode == status, done
        assert "Traceback" not in done.stderr, done
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str) -> Any:
        """The document that a command prints with `-o json`."""
        return json.loads(self.run(*arguments, "-o", "json").stdout)

    def down(self, process: Process, how: signal.Signals = signal.SIGINT) -> dict[str, Any]:
        """End `up` as Ctrl-C does; the ledger of its history, which must balance."""
        assert process.end(how) == 0, process.said()
        assert "the ledger is balanced" in process.said(), process.said()
        ledger = self.ledger()
        assert ledger["balanced"] is True, ledger
        return ledger

    # ── asking it ───────────────────────────────────────────────────────────────────────────────────────────────

    def policy(self, text: str) -> str:
        """Write policy.yaml; its path."""
        path = self.directory / "policy.yaml"
        path.write_text(text)
        return str(path)

    def status(self) -> dict[str, Any]:
        """The collector's. Raises CollectorError."""
        answer: dict[str, Any] = request(self.run_dir, "status")
        return answer

    def sink_status(self) -> dict[str, Any]:
        """The sink's. Raises SinkError."""
        with History.over_socket(self.run_dir / "sink.sock") as history:
            return history.status()

    def sql(self, question: str) -> list[dict[str, Any]]:
        """The rows, of the running sink or of the file; times in ns since 1970."""
        with History.find(self.run_dir, self.database) as history:
            table = history.sql(question)
        for i, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                table = table.set_column(i, field.name, table.column(i).cast(pa.int64()))
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def value(self, question: str) -> Any:
        """The only value of the only row."""
        (row,) = self.sql(question)
        (value,) = row.values()
        return value

    def ledger(self) -> dict[str, Any]:
        """The document of `ztlens ledger -o json`."""
        with History.find(self.run_dir, self.database) as history:
            return history.ledger()

    def settled(self) -> bool:
        """Whether every ring of the ledger is closed, with all its events stored or accounted for."""
        rings = self.ledger()["rings"]
        return bool(rings) and all(ring["final"] and not ring["events"]["in_flight"] for ring in rings)

    def flows(self, where: str) -> list[dict[str, Any]]:
        """Rows of the view `flows`."""
        return self.sql(f"SELECT * FROM flows WHERE {where} ORDER BY first_seen")

    # ── what is left of it ──────────────────────────────────────────────────────────────────────────────────────

    def processes(self) -> list[str]:
        """Command lines of live processes that have to do with this installation's directory."""
        out, mine = [], os.fsencode(self.directory)
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command, state = (path / "cmdline").read_bytes(), (path / "stat").read_text().rpartition(")")[2].split()
                if state[0] != "Z" and (mine in command or mine in (path / "environ").read_bytes()):
                    out.append(command.replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return out

    def leftovers(self) -> list[str]:
        """What may not be there once all is down: pins, files in the run directory, locks, processes."""
        there = [
            self.pins,
            self.pins.with_name(self.pins.name + "+new"),
            *self.run_dir.glob("*"),
            *PINS.glob(f"{self.name}+*"),
        ]
        locks = Path("/run/ztlens").glob(f"*{self.name}*") if Path("/run/ztlens").is_dir() else ()
        return [str(path) for path in (*there, *locks) if path.exists()] + self.processes()
