"""Where questions come in: a Unix socket, 0600, and the HTTP server on it."""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from sink.errors import SinkError

IDLE = 60
"""Seconds an idle connection is kept: longer than by those who ask (httpx: 5), so that it is they who end it.

With uvicorn's own 5 the sink could close a connection just as a question came on it, and who asked said that the sink
does not answer.
"""


def bind(path: Path) -> socket.socket:
    """A listening Unix socket, 0600 from its first moment. Raises SinkError when somebody listens there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SinkError(f"{path} is no socket", "move it away, or choose another --run-dir")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink()  # left behind by a killed sink
            else:
                raise SinkError(f"another sink listens on {path}", "stop it, or choose another instance")
    server = socket.socket(socket.AF_UNIX)
    try:
        # fchmod before bind gives the file its mode at once; umask is the process's, not this thread's alone.
        os.fchmod(server.fileno(), 0o600)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(128)
    except OSError as error:
        server.close()
        raise SinkError(
            f"cannot listen on {path}: {error.strerror}", "check the directory and its permissions"
        ) from error
    return server


class Server(uvicorn.Server):
    """uvicorn that leaves signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield


class _NotOurs(logging.Filter):
    """An answer that broke off was logged in one line already."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], SinkError))


def server(app: ASGIApp) -> Server:
    """To be run with `serve(sockets=[bind(path)])`; stop it by `should_exit`."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_NotOurs())
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=IDLE, timeout_graceful_shutdown=2
    )
    return Server(config)
