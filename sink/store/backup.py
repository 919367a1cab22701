"""A copy of the database before its tables are brought up to date, for the program of before: `<database>.v1.bak`.

It is made while nobody has the file open, and never touches it. DuckDB locks by fcntl: closing any descriptor of an
open database would give its lock away, so nothing here reads a file that this process has open.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from sink.disk import sync
from sink.errors import SinkError

SPARE = 16 << 20
"""Bytes that must be free beyond the copy's: the new tables need some, too."""


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def copy_of(path: Path, version: int) -> Path:
    """Where the copy of version `version` stands."""
    return _beside(path, f".v{version}.bak")


def back_up(path: Path, version: int, version_of: Callable[[Path], int]) -> Path:
    """Copy the database of `version` and its log; the copy was opened once (`version_of`) and is safe on disk.

    Raises SinkError: no room, somebody opened the database meanwhile, or the copy does not open. Then there is none.
    """
    target = copy_of(path, version)
    part = _beside(target, ".part")
    sources = [(suffix, _beside(path, suffix)) for suffix in ("", ".wal") if _beside(path, suffix).exists()]
    before = [_state(source) for _, source in sources]
    needed = sum(source.stat().st_size for _, source in sources) + SPARE
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise SinkError(
            f"no room for a copy of {path} before its tables are brought up to date: {needed >> 20} MiB needed,"
            f" {free >> 20} MiB free",
            "free space on its file system; the file was not touched",
        )
    try:
        for suffix, source in sources:
            _copy(source, _beside(part, suffix))
        if [_state(source) for _, source in sources] != before or version_of(part) != version:
            raise SinkError(f"{path} is in use by another process", "stop the other sink")
        _beside(target, ".wal").unlink(missing_ok=True)
        for suffix, _ in reversed(sources):  # the log first: without it the file would pass for a whole one
            _beside(part, suffix).replace(_beside(target, suffix))
        sync(path.parent)
    except OSError as error:
        raise SinkError(
            f"cannot copy {path} before its tables are brought up to date: {error.strerror}",
            "free space on its file system; the file was not touched",
        ) from error
    finally:
        for suffix in ("", ".wal"):
            _beside(part, suffix).unlink(missing_ok=True)
    return target


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
    sync(target)
