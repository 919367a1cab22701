"""A whole ztlens on a veth pair of its own: `ztlens up` in a scratch directory, and the wire to send on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.policies import policy_text
from tests.support.netns import Lab, write_sysctls
from tests.support.pages import Published

ZTLENS = Path(sys.executable).parent / "ztlens"


TOLD = 40
"""Lines."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float, pause: float = 0.05) -> Any:
    """The first true value of `condition()`; RuntimeError after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return value


class Installation:
    """Running within its context. `pids`: nats, sink, collector, up. Frames go into `wire` of namespace `outside`."""

    def __init__(self, *, rules: int = 1000, **settings: str) -> None:
        """`settings`: names of `ztlens config`."""
        self._rules, self._settings = rules, settings
        self.pids: dict[str, int] = {}
        self.wire = "veth1"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ztlens-bench-")))
        lab = self._stack.enter_context(Lab())
        inside, self.outside = lab.namespace("in"), lab.namespace("out")
        for netns in (inside, self.outside):  # nobody else talks on the pair
            write_sysctls(netns, {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"})
        lab.link(inside, "veth0", self.outside, self.wire)
        policy = scratch / "policy.yaml"
        policy.write_text(policy_text(self._rules))
        self.run_dir, self.state, self.log = scratch / "run", scratch / "state", scratch / "up.log"
        instance = f"bench-{os.getpid()}"
        values = {
            "instance": instance, "run_dir": str(self.run_dir), "state": str(self.state), "node": "bench",
            "interfaces": "veth0:ingress", "netns": inside, "policy": str(policy), "mode": "enforce", **self._settings,
        }  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ZTLENS_")}
        cache = os.environ.get("ZTLENS_BYTECODE_CACHE")
        environment |= {f"ZTLENS_{name.upper()}": value for name, value in values.items()}
        if cache:
            environment["ZTLENS_BYTECODE_CACHE"] = cache
        config = scratch / "none.toml"
        config.touch()
        environment["ZTLENS_CONFIG"] = str(config)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([str(ZTLENS), "up", "--quiet"], stdout=log, stderr=log, env=environment)
        self._stack.callback(self._stop)
        self._stack.callback(self._tell)
        info = wait_until(self._running, "ztlens up", 180)
        self.url: str = info["nats"]
        self.pids = {**info["parts"], "up": info["pid"]}

    @property
    def page(self) -> Published:
        """The page, for a browser; it is there with the setting `web`."""
        return Published((self.run_dir / "web.url").read_text())

    def _running(self) -> dict[str, Any] | None:
        if self._process.poll() is not None:
            raise RuntimeError(f"ztlens up ended: {' '.join(self.log.read_text().split())[-500:]}")
        try:
            info = json.loads((self.run_dir / "up.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return info if "parts" in info else None

    def _tell(self) -> None:
        """What `up` said, if a part had to be restarted: the log goes with the scratch directory."""
        said = self.log.read_text(errors="replace").splitlines()
        if any("; restarting " in line for line in said):
            print("bench: a part of ztlens up died; its last words:", *said[-TOLD:], sep="\nbench:   ", file=sys.stderr)

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
