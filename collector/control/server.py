"""The listening side: JSON lines on a Unix socket, 0600, each request answered in order.

    {"op": "mode", "args": {"mode": "enforce"}}
    {"ok": true, "result": {…}}   or   {"ok": false, "error": "…", "hint": "…", "exit": 2}

Whoever connects is known from the kernel (SO_PEERCRED) and named in the records of what he changed. Garbage gets
an answer and nothing else; a client that vanishes loses only its answer.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from collector.errors import CollectorError

log = logging.getLogger("ztlens.collector")

LINE_MAX = 32 << 20  # bytes of a request: a policy with 100,000 addresses has 2 MB
CLIENTS_MAX = 32
QUIET_SECONDS = 60.0  # a client that says nothing for so long is let go

Handler = Callable[[dict[str, Any], str], Awaitable[Any]]
"""`await handler(args, who)` → what msgspec can write as JSON. Raises CollectorError."""


class Request(msgspec.Struct):
    """One line from a client."""

    op: str
    args: dict[str, Any] = {}


def peer(writer: asyncio.StreamWriter) -> tuple[int, str]:
    """(uid, `name(uid) via control socket`) of the other side."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid = struct.unpack("3i", raw)[1]
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "?"
    return uid, f"{name}({uid}) via control socket"


def reply(result: Any) -> bytes:
    return msgspec.json.encode({"ok": True, "result": result}) + b"\n"


def refusal(error: str, hint: str = "", status: int = 2) -> bytes:
    return msgspec.json.encode({"ok": False, "error": error, "hint": hint, "exit": status}) + b"\n"


class ControlServer:
    """Serves `handlers` (op → Handler) on `path`."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self._path, self._handlers = path, handlers
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises CollectorError when somebody else does, or the directory cannot be written."""
        try:
            listener = _listen(self._path)
            self._server = await asyncio.start_unix_server(self._client, sock=listener, limit=LINE_MAX)
        except OSError as error:
            raise CollectorError(
                f"control socket {self._path}: {error.strerror or error}", "check the run directory"
            ) from error

    async def stop(self) -> None:
        """Listen no more, let clients go, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the collector ends
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid, who = peer(writer)
        if uid not in {0, os.geteuid()}:
            writer.write(refusal("permission denied", "run this as root", 3))
            return await writer.drain()
        if len(self._clients) > CLIENTS_MAX:
            writer.write(refusal(f"{CLIENTS_MAX} clients are connected already", "try again", 3))
            return await writer.drain()
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    line = await reader.readline()
            except ValueError:  # longer than LINE_MAX; what follows is the rest of it
                writer.write(refusal(f"the request exceeds {LINE_MAX} bytes"))
                return await writer.drain()
            if not line:
                return None
            writer.write(await self._answer(line, who))
            await writer.drain()

    async def _answer(self, line: bytes, who: str) -> bytes:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return refusal(f"not a request: {error}", 'send {"op": "status"}')
        handler = self._handlers.get(request.op)
        if handler is None:
            return refusal(f"unknown op {request.op!r}", f"known: {', '.join(sorted(self._handlers))}")
        try:
            return reply(await handler(request.args, who))
        except CollectorError as error:
            return refusal(str(error), error.hint, error.exit_status)
        except Exception as error:
            log.error("op %s: %s: %s", request.op, type(error).__name__, error, exc_info=log.isEnabledFor(10))
            return refusal(f"{type(error).__name__}: {error}", "this is a fault of ztlens; see the collector's log", 3)


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, 0600 before anybody can connect. A dead collector's socket is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise CollectorError(f"a collector listens at {path} already", "stop it first: `ztlens down`")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))  # nobody can connect before listen()
        path.chmod(0o600)
        listener.listen(64)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
