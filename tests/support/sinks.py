"""A sink in a process of its own, to be killed and started again."""

import asyncio
import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from sink.client import History
from sink.errors import SinkError
from sink.settings import SinkSettings
from sink.store import Commit, Store
from tests.support.until import PATIENCE, pause


def settings(directory: Path, url: str, **fields: Any) -> SinkSettings:
    """A sink below `directory`: a short deadline, and it keeps the made-up traffic of 2026, whatever the date."""
    given: dict[str, Any] = {"gap_deadline": 1.0, "keep_age": 0.0, "keep_minutes": 0.0, "keep_hours": 0.0} | fields
    return SinkSettings(database=directory / "history.duckdb", nats_url=url, run_dir=directory / "run", **given)


def configured(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let commands of this process find an installation below `directory`; where its database is."""
    file = directory / "ztlens.toml"
    file.write_text(f'state = "{directory / "state"}"\nrun_dir = "{directory / "run"}"\n')
    monkeypatch.setenv("ZTLENS_CONFIG", str(file))
    return directory / "state" / "ztlens.duckdb"


def recorded(directory: Path, monkeypatch: pytest.MonkeyPatch, commit: Commit) -> Path:
    """The same, with a history that holds `commit` and no sink."""
    path = configured(directory, monkeypatch)
    store = Store.open(SinkSettings(database=path, nats_url="", run_dir=directory / "run"))
    store.append(commit)
    store.close()
    return path


def wait_for(true: Callable[[], Any], what: str, deadline: float = PATIENCE) -> Any:
    """Ask again and again; what `true` gave once it was true. A SinkError counts as not yet."""
    end = time.monotonic() + deadline
    last: object = None
    while (begin := time.monotonic()) < end:
        try:
            last = true()
            if last:
                return last
        except SinkError as error:
            last = error
        time.sleep(pause(time.monotonic() - begin))
    raise AssertionError(f"not within {deadline:g} s: {what}; last: {last}")


class SinkProcess:
    """`with SinkProcess(settings(tmp_path, url)) as sink:` – started, answering; SIGTERM at the end."""

    def __init__(self, given: SinkSettings) -> None:
        self.settings = given
        self.process: subprocess.Popen[bytes] | None = None
        self._log = given.database.parent / "sink.log"

    def start(self, wait: bool = True) -> None:
        """Start; with `wait` return when it answers."""
        given = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self.settings).items()}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.sinks", json.dumps(given)],
                stdout=log, stderr=log, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        if wait:
            wait_for(self._answers, "the sink answers")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the sink ended with {self.process.returncode}:\n{self.log()}")
        return bool(self.ask(lambda history: history.status())["running"])

    def ask(self, question: Callable[[History], Any]) -> Any:
        """Give `question` a History of this sink."""
        with History.over_socket(self.settings.socket) as history:
            return question(history)

    def value(self, sql: str) -> Any:
        """The one value of a question."""
        return self.ask(lambda history: history.sql(sql).column(0)[0].as_py())

    def log(self) -> str:
        """All it has written."""
        return self._log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.end(signal.SIGKILL)

    def end(self, how: signal.Signals = signal.SIGTERM, deadline: float = PATIENCE) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(how)
        return process.wait(deadline)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped, and going on afterwards."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> "SinkProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.end(signal.SIGTERM if kind is None else signal.SIGKILL)


def main() -> int:
    """Be the sink that the first argument describes."""
    from sink import service  # noqa: PLC0415 (only the process needs it)

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    given = json.loads(sys.argv[1])
    for name in ("database", "run_dir", "archive"):
        given[name] = given[name] and Path(given[name])
    try:
        asyncio.run(service.run(SinkSettings(**given)))
    except SinkError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
