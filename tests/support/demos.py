"""A demo as people run it, for tests: started, listened to, ended, and looked for when it is gone."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.netns import wait_for
from tests.support.until import PATIENCE
from ztlens import config
from ztlens.demo import leftovers
from ztlens.demo.netns import NETNS_DIR
from ztlens.demo.network import DemoNetwork
from ztlens.parts import ztlens_command


class Demo:
    """A running `ztlens demo`; its temporary files go below `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.stdout, self.stderr = folder.parent / "stdout", folder.parent / "stderr"
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                ztlens_command("demo", *arguments),
                stdout=out, stderr=err, env=os.environ | {"TMPDIR": str(folder)}, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid
        self.network = DemoNetwork(f"ztd{self.pid}")
        self.run_dir = config.RUN / f"demo-{self.pid}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)

    def wait(self) -> int:
        """Its exit status; what it said goes with a failure of the test."""
        status = self.process.wait(PATIENCE)
        print(self.stderr.read_text())
        return status

    def until_said(self, text: str) -> None:
        """Wait for `text` on stderr."""

        def said() -> bool:
            assert self.process.poll() is None, self.stderr.read_text()
            return text in self.stderr.read_text()

        wait_for(said, f"{text!r} on stderr")

    def processes(self) -> list[str]:
        """Command lines of everything it started: its state, namespace prefix or run directory is in them."""
        mark = re.compile(rf"(demo-|ztd){self.pid}\b|{re.escape(str(self.folder))}/")
        return [line for line in _command_lines() if mark.search(line)]

    def remains(self) -> list[str]:
        """Whatever of it is still there."""
        mark = re.compile(rf"(demo-|ztd){self.pid}\b")
        folders = (NETNS_DIR, config.PINS, config.RUN, leftovers.RECORDS)
        found = [str(path) for folder in folders if folder.exists() for path in folder.iterdir()]
        return [path for path in found if mark.search(path)] + list(map(str, self.folder.iterdir())) + self.processes()


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
