"""Which `up` runs here: a lock that the kernel drops with the process, and a private file saying what it runs.

The file may be stale, the lock never is: what the file says counts only while somebody holds the lock.
"""

import fcntl
import json
import os
import select
import signal
from pathlib import Path
from typing import Any

from ztlens.config import Settings
from ztlens.errors import BadInput, Missing
from ztlens.nats import write_private

LOCK, INFO = "up.lock", "up.json"


class Lock:
    """Held as long as this process lives or until `release`. Raises BadInput if another `up` holds it."""

    def __init__(self, settings: Settings) -> None:
        try:
            settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(settings.run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise Missing(f"{settings.run_dir}: {error.strerror}", "run it as root, or give --run-dir") from error
        self._info = settings.run_dir / INFO
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            pid = _read(self._info).get("pid", "?")
            raise BadInput(
                f"instance {settings.instance} is already up (process {pid})",
                "stop it with `ztlens down`, or start another with --instance NAME",
            ) from error

    def publish(self, info: dict[str, Any]) -> None:
        """Say what runs; `info` may hold the NATS password, so only the owner can read it."""
        write_private(self._info, json.dumps({"pid": os.getpid()} | info))

    def release(self) -> None:
        """Forget it all."""
        self._info.unlink(missing_ok=True)
        (self._info.parent / LOCK).unlink(missing_ok=True)
        os.close(self._descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def find(run_dir: Path) -> dict[str, Any] | None:
    """What the `up` of this run directory published; None if none runs. Raises PermissionError for strangers."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(run_dir / INFO)
    finally:
        os.close(descriptor)
    return None


def stop(info: dict[str, Any], run_dir: Path, patience: float) -> bool:
    """SIGTERM to that `up` and wait until it ended; False if it did not within `patience` seconds."""
    try:
        process = os.pidfd_open(int(info["pid"]))
    except (KeyError, ValueError, ProcessLookupError):
        return find(run_dir) is None
    try:
        if find(run_dir) is None:  # it ended in between: the number may be somebody else's by now
            return True
        signal.pidfd_send_signal(process, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        return bool(waiting.poll(patience * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(process)


def nats_url(settings: Settings) -> str:
    """The NATS to talk to: the one that was set, else that of the running `up`. Raises Missing."""
    if settings.nats:
        return settings.nats
    info = find(settings.run_dir)
    if info and info.get("nats"):
        return str(info["nats"])
    raise Missing(
        f"nothing is up for instance {settings.instance}, so there is no NATS to follow",
        "start it with `ztlens up -i INTERFACE`, or give --nats URL",
    )
