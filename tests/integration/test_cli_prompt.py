"""`ztlens sql` on a terminal: completed, remembered, and not ended by a mistake."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.support import batches

N = 30
UP, TAB, END = "\x1b[A", "\t", "\x04"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`ztlens sql` with a terminal of its own."""

    def __init__(self, state: Path) -> None:
        master, slave = pty.openpty()
        self._master = master
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZTLENS_")}
        environment = clean | {
            "ZTLENS_STATE": str(state), "ZTLENS_RUN_DIR": str(state / "run"), "TERM": "xterm", "COLUMNS": "120",
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ztlens"), "sql"], stdin=slave, stdout=slave, stderr=slave,
            env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self._said = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, seconds: float = 30.0) -> str:
        """All that was said until `pattern` matched it, and forget it."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self._said)):
            assert time.monotonic() < end, (pattern, self._said)
            if select.select([self._master], [], [], 0.1)[0]:
                self._said = _ESCAPE.sub("", self._said + os.read(self._master, 65536).decode(errors="replace"))
        said, self._said = self._said[: found.end()], self._said[found.end() :]
        return said

    def end(self) -> int:
        """Ctrl-D until it has ended: what is typed between two prompts may be lost. The exit status."""
        for _ in range(40):
            self.type(END)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(0.5)
        raise AssertionError(f"it does not end: {self._said}")

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    store = Store.open(SinkSettings(tmp_path / "ztlens.duckdb", "", tmp_path / "run"))
    store.append(Commit(batches=[prepare(batches.batch(batches.traffic(N).rows))]))
    store.close()
    yield tmp_path


def test_a_conversation(state: Path) -> None:
    with Terminal(state) as first:
        first.until("ztlens>")
        first.type("SELECT 6 * 7 AS answer,\r")
        first.until(r"\.\.\.>")
        first.type("count(*) AS n FROM verdi" + TAB)  # the only name that begins so
        first.until("verdicts")
        first.type(";\r")
        first.until(rf"42\s+{N}\b")
        first.type("SELECT nothing FROM verdicts;\r")
        first.until("error: .*nothing")
        first.type("DROP VIEW verdicts;\r")
        first.until("error: DROP is not a question")
        first.type("SELECT src_ident" + TAB)  # a column
        first.until("src_identity")
        first.type("\x03")  # Ctrl-C drops what was begun
        first.until("ztlens>")
        assert first.end() == 0
    assert (state / "sql_history").stat().st_mode & 0o777 == 0o600
    with Terminal(state) as second:
        second.until("ztlens>")
        second.type(UP)  # remembered
        second.until("DROP VIEW verdicts;")
        second.type("\r")
        second.until("error: DROP is not a question")
        assert second.end() == 0
