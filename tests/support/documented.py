"""A page of docs/ as somebody who follows it: its marked steps, taken on a host in a namespace, and what they print."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.docs import Block
from tests.support.netns import Lab
from tests.support.until import PATIENCE
from ztlens.config import PINS
from ztlens.parts import clean_environment


class Host:
    """A host with eth0 (192.0.2.10) in a namespace, and its neighbour (192.0.2.2); its installation lives in
    `directory` and has pins of its own. `steps`: blocks of shell, each one line, by name."""

    def __init__(self, lab: Lab, directory: Path, steps: Mapping[str, Block]) -> None:
        self.directory = directory
        self.steps = steps
        self.namespace = lab.namespace("host")
        self.neighbour = lab.namespace("neighbour")
        lab.link(self.namespace, "eth0", self.neighbour, "eth0")
        lab.address(self.namespace, "eth0", "192.0.2.10/24")
        lab.address(self.neighbour, "eth0", "192.0.2.2/24")
        self.pins = PINS / lab.prefix
        self.up: subprocess.Popen[str] | None = None

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return clean_environment() | {
            "PATH": path, "ZTLENS_CONFIG": os.devnull, "ZTLENS_NODE": "gw1",
            "ZTLENS_STATE": str(self.directory / "state"), "ZTLENS_RUN_DIR": str(self.directory / "run"),
            "ZTLENS_PINS": str(self.pins),
        }  # fmt: skip

    def command(self, step: str) -> list[str]:
        """A step's line, without sudo, as a shell in the namespace (but in this mount namespace, where bpffs is)."""
        line = self.steps[step].text.strip().removeprefix("sudo ")
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "bash", "-c", f"exec {line}"]

    def start(self, step: str) -> None:
        with (self.directory / "errors").open("w") as errors:
            self.up = subprocess.Popen(
                self.command(step), cwd=self.directory, env=self.environment(), text=True,
                stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    def said(self) -> str:
        return (self.directory / "errors").read_text()

    def run(self, step: str) -> str:
        """What a step prints, stdout and stderr."""
        done = subprocess.run(
            self.command(step), cwd=self.directory, env=self.environment(), capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def end(self) -> None:
        """Whatever happened, nothing stays."""
        if self.up is not None and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            self.up.wait(timeout=120)
        if self.pins.exists():
            subprocess.run(
                [sys.executable, "-m", "ztlens.main", "down"], env=self.environment(), check=False, timeout=PATIENCE
            )


def alike(text: str, host: Host | None = None) -> str:
    """`text` without what differs from run to run: times, free ports, hashes, directories, the width of columns."""
    if host is not None:
        text = text.replace(str(host.directory / "state"), "/var/lib/ztlens")
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)", "TIME", text)
    text = re.sub(r"(192\.0\.2\.10|127\.0\.0\.1):\d{4,5}", r"\1:PORT", text)
    text = re.sub(r"\([0-9a-f]{12}\)", "(HASH)", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
