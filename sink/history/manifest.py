"""`manifest.json` of exported history: which files it is made of, and what they hold.

An export is a directory that is a whole history by itself:

    manifest.json
    verdicts/date=YYYY-MM-DD/hour=HH/part-….parquet   also loss, pairs_1m, pairs_1h: by hour of their time, UTC
    rings/part-….parquet, policy/part-….parquet, …    every other table of schema `store`, whole

A verdict has `number`, its place in the ring in events, where the store has `position` in bytes; the rest is the same.
The manifest decides: a file it does not name is not part of the history. It is replaced by a rename, after the files it
names are safe, so an interrupted export leaves the history that was there before.

`format` is raised by a change that an older program would read wrongly. Within a format things are only added: columns
and tables a reader does not know it leaves out, those an older export has not are empty.
"""

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import msgspec

from sink.disk import sync
from sink.errors import ExportError

NAME = "manifest.json"
FORMAT = 1
"""What this program writes, and the highest it reads."""
BY_HOUR = ("verdicts", "loss", "pairs_1m", "pairs_1h")
"""Tables whose rows lie in a file an hour; the others are small and kept whole."""


class File(msgspec.Struct, frozen=True):
    """One Parquet file: `path` below the directory, `hour` in ns since 1970 UTC (None: a whole table)."""

    path: str
    table: str
    rows: int
    bytes: int
    sha256: str
    tables_version: int
    hour: int | None = None


class Manifest(msgspec.Struct):
    """What an export is. Moments in ns since 1970 UTC, None: open.

    `since` and `until`: the span that was asked for, which its verdicts have. `pairs_since` and `pairs_until`: that of
    its roll-ups, which are the whole hours it touches.
    """

    format: int = FORMAT
    tables_version: int = 0
    ztlens: str = ""
    duckdb: str = ""
    pyarrow: str = ""
    host: str = ""
    made: str = ""
    since: int | None = None
    until: int | None = None
    pairs_since: int | None = None
    pairs_until: int | None = None
    nodes: list[str] = []
    files: list[File] = []

    def of_table(self, table: str) -> list[File]:
        """The files of a table, by hour."""
        return sorted((file for file in self.files if file.table == table), key=lambda file: file.hour or 0)

    def by_hour(self, table: str) -> dict[int, list[File]]:
        """Hour → its files: one, and more where rows came after the history had deleted the first."""
        hours: dict[int, list[File]] = {}
        for file in self.of_table(table):
            if file.hour is not None:
                hours.setdefault(file.hour, []).append(file)
        return hours

    def tables(self) -> list[str]:
        """Names of the tables it has."""
        return sorted({file.table for file in self.files})


def read(directory: Path) -> Manifest:
    """The manifest of `directory`; its files are there and as long as it says. Raises ExportError."""
    path = directory / NAME
    hint = "name the directory that `ztlens export --to` or --archive has written"
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise ExportError(f"{directory} holds no exported history: it has no {NAME}", hint) from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}", hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is damaged: {error}", "export it again, or take a copy that is whole") from error
    if manifest.format > FORMAT or manifest.format < 1:
        raise ExportError(
            f"{directory} was exported in format {manifest.format}, this program reads up to {FORMAT}", "update ztlens"
        )
    below = {directory}
    for file in manifest.files:
        _check(directory, file, below)
    return manifest


def _check(directory: Path, file: File, below: set[Path]) -> None:
    """An export may come from anywhere: its manifest must not lead out of the directory. `below`: known not to."""
    path = directory / file.path
    parents = [directory / parent for parent in PurePosixPath(file.path).parents][:-1]
    outside = not file.path or file.path.startswith("/") or ".." in PurePosixPath(file.path).parts
    if outside or path.is_symlink() or any(parent.is_symlink() for parent in parents if parent not in below):
        raise ExportError(f"{directory / NAME} names {file.path!r}, which is not below it", "do not trust this export")
    below.update(parents)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}", "export it again, or take a copy that is whole") from error
    if size != file.bytes:
        raise ExportError(
            f"{path} has {size} bytes, not the {file.bytes} of {NAME}", "export it again, or take a copy that is whole"
        )


def write(directory: Path, manifest: Manifest) -> str:
    """Put the manifest in place, safe against a power cut; its SHA-256. Raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    replace(directory / NAME, text)
    return hashlib.sha256(text).hexdigest()


def replace(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, make it safe, give it its name. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sha256(path: Path) -> str:
    """Of a file, read piece by piece. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hive(table: str, hour: int) -> str:
    """The directory of an hour (ns since 1970 UTC): `verdicts/date=2026-02-03/hour=04`."""
    moment = datetime.fromtimestamp(hour // 1_000_000_000, UTC)
    return f"{table}/date={moment:%Y-%m-%d}/hour={moment:%H}"


def strays(directory: Path, manifest: Manifest) -> Iterator[Path]:
    """Files below `directory` that the manifest does not name."""
    named = {directory / file.path for file in manifest.files} | {directory / NAME}
    for path in sorted(directory.rglob("*")):
        if (path.is_file() or path.is_symlink()) and path not in named:
            yield path
