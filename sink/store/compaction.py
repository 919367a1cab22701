"""Rewrites the database so that the file shrinks: what was deleted leaves no holes, and verdicts lie side by side with
their like.

Verdicts are sorted inside each hour, of much traffic inside shorter stretches; these stay in order, so a question about
a time still reads only its part of the file. Everything goes into a new file, which takes the old one's name once it
holds the same rows and is safe on disk; the old one is kept as `.before` until the new one has been opened. A kill at
any moment leaves one whole database under its name; `settle` takes away what else is left.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from sink.disk import sync
from sink.errors import SinkError
from sink.history.pairs import HOUR
from sink.history.parts import SECOND, pieces
from sink.store.database import lock, open_reader, open_writer, opening_error, thread_count

PIECE = 1 << 20
"""Rows sorted at a time: whole seconds of an hour."""
ORDER = {
    "verdicts": "ring, event, dport, flow_id, position",
    "loss": "ring, time",
    "pairs_1m": "ring, dport, dst_hi, dst_lo, src_hi, src_lo, time",
    "pairs_1h": "ring, dport, dst_hi, dst_lo, src_hi, src_lo, time",
}
"""How rows of an hour are sorted. Measured on 1.9 M verdicts of tests/support/sessions.py, bytes a verdict: 29.8 as
they came, 27.9 by event and position, 22.3 by event and flow, 19.4 by pair and flow, 13.6 so (all in one hour)."""
ROOM = 1.1
"""Free disk needed, as a share of the bytes in use."""
UNASKED_MOST = 256 << 20
"""A start compacts by itself where no more than this is in use, so that it takes seconds, …"""
UNASKED_FREE = 256 << 20
"""… and as much is free in the file, and more than is in use."""


@dataclass(frozen=True)
class Compacted:
    """Sizes of the file in bytes, and the verdicts in it."""

    before: int
    after: int
    verdicts: int


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def settle(path: Path) -> None:
    """After a compaction that was killed: exactly one whole database, under its name. Raises SinkError.

    Touches nothing of a file that somebody else has open.
    """
    before = _beside(path, ".before")
    if before.exists():
        if not before.samefile(path):  # the new one has taken its place: does it open?
            try:
                open_reader(path).close()
            except SinkError as error:
                if "in use" in str(error):
                    return
                before.replace(path)
                sync(path.parent)
        before.unlink(missing_ok=True)
    _clear(_beside(path, ".compact"))


def _clear(new: Path) -> None:
    for suffix in ("", ".wal"):
        _beside(new, suffix).unlink(missing_ok=True)
    shutil.rmtree(_beside(new, ".tmp"), ignore_errors=True)


def worthwhile(path: Path) -> bool:
    """Whether a start should compact without being asked: much of the file is free, and little is in use."""
    try:
        if path.stat().st_size < UNASKED_FREE:
            return False
        with open_reader(path) as connection:
            row = connection.execute(
                "SELECT block_size * used_blocks, block_size * free_blocks FROM pragma_database_size()"
            )
            used, free = row.fetchone() or (0, 0)
    except (SinkError, OSError):
        return False  # the start itself will say what is wrong
    return bool(used <= UNASKED_MOST and free >= max(UNASKED_FREE, used))


def compact(
    path: Path, memory_limit: str = "1GB", threads: int = 0, said: Callable[[str], None] = lambda line: None
) -> Compacted:
    """Rewrite the database at `path`, which no sink may have open. Raises SinkError: the file is as it was."""
    if not path.exists():
        raise opening_error(path, FileNotFoundError("No such file"))
    settle(path)
    owner = open_writer(path, memory_limit, threads)  # brings an older file up to date, and the log into the file
    owner.execute("CHECKPOINT")
    owner.close()
    size = path.stat().st_size
    new = _beside(path, ".compact")
    try:
        verdicts = _rewrite(path, new, memory_limit, threads, said)
    except (duckdb.Error, OSError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SinkError(
            f"cannot compact {path}: {text}", "the file is as it was; is there room for a second one?"
        ) from error
    finally:
        _clear(new)
    settle(path)
    return Compacted(size, path.stat().st_size, verdicts)


def _rewrite(path: Path, new: Path, memory_limit: str, threads: int, said: Callable[[str], None]) -> int:
    """Write `new` with the rows of `path`, and put it there; the verdicts. Raises SinkError, duckdb.Error, OSError."""
    open_writer(new, memory_limit, threads).close()  # tables, macros and views
    config: dict[str, Any] = {"memory_limit": memory_limit, "threads": thread_count(threads)}
    config["temp_directory"] = f"{new}.tmp"
    with duckdb.connect(":memory:", config=config) as connection:
        # Read-only still keeps others from writing, until the new file is in place.
        for file, name, how in ((path, "old", " (READ_ONLY)"), (new, "new", "")):
            connection.execute(f"ATTACH '{str(file).replace(chr(39), chr(39) * 2)}' AS {name}{how}")
        lock(connection)
        used = connection.execute(
            "SELECT block_size * used_blocks FROM pragma_database_size() WHERE database_name = 'old'"
        )
        needed, free = int((used.fetchone() or (0,))[0] * ROOM), shutil.disk_usage(new.parent).free
        if free < needed:
            raise SinkError(f"compacting {path} needs {needed} bytes of free disk, there are {free}", "free some room")
        tables = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'old' AND schema_name = 'store' ORDER BY 1"
        ).fetchall()
        connection.execute("DELETE FROM new.store.schema_version")
        for (table,) in tables:
            _copy(connection, table, said)
        connection.execute("CHECKPOINT new")
        counts = {table: _same(connection, table) for (table,) in tables}
        connection.execute("DETACH new")
        sync(new)
        if _beside(new, ".wal").exists() or _beside(path, ".wal").exists():
            raise SinkError(f"{path} has a log that is not in the file", "is another program using it?")
        _swap(path, new)
        return counts["verdicts"]


def _copy(connection: duckdb.DuckDBPyConnection, table: str, said: Callable[[str], None]) -> None:
    copied = f"INSERT INTO new.store.{table} BY NAME SELECT * FROM old.store.{table}"
    if table not in ORDER:
        connection.execute(copied)
        return
    hours = connection.execute(
        f"SELECT epoch_ns(time) // {HOUR} * {HOUR} AS hour, count(*) FROM old.store.{table} GROUP BY hour ORDER BY hour"
    ).fetchall()
    for i, (hour, rows) in enumerate(hours):
        said(f"{table}: hour {i + 1} of {len(hours)}, {rows:,} rows")
        within = f"time >= make_timestamp_ns({hour}) AND time < make_timestamp_ns({hour + HOUR})"
        seconds = connection.execute(
            f"SELECT epoch_ns(time) // {SECOND} * {SECOND} AS second, count(*) FROM old.store.{table} WHERE {within}"
            " GROUP BY second ORDER BY second"
        ).fetchall()
        for first, past in pieces(seconds, PIECE):
            connection.execute(
                f"{copied} WHERE time >= make_timestamp_ns({first}) AND time < make_timestamp_ns({past})"
                f" ORDER BY {ORDER[table]}"
            )


def _same(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """The rows of a table, the same in both files, or SinkError."""
    old, new = (
        connection.execute(f"SELECT count(*), bit_xor(hash(t)) FROM {name}.store.{table} AS t").fetchone() or ()
        for name in ("old", "new")
    )
    if old != new:
        raise SinkError(
            f"the copy of {table} is not the same: {old} and {new}", "please report it; the file is as it was"
        )
    return int(new[0])


def _swap(path: Path, new: Path) -> None:
    before = _beside(path, ".before")
    os.link(path, before)
    new.replace(path)
    sync(path.parent)
