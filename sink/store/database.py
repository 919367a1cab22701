"""Opening the file: who owns it, which version it is, what its connections may do."""

import logging
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import duckdb

from schemas import tables
from sink.errors import SinkError, StoreError
from sink.history import ledger
from sink.history.macros import MACROS
from sink.history.views import VIEWS
from sink.priority import giving_way
from sink.store.backup import back_up

log = logging.getLogger("ztlens.sink")
# DuckDB 2 says so of `execute(…).to_arrow_table()`, which both versions have. What is not small goes through
# `sink.history.query.run`.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)

STORAGE = "v1.5.0"
"""Files are written so that DuckDB 1.5 and 2 read them both."""
SPILL_MOST = "8GB"
"""What questions may put on disk when their memory is full: the database needs room there, too."""
LOCK_PATIENCE = 3.0
"""Seconds: while no sink runs, `ztlens sql` opens the file itself, and a start waits for it to be done."""


def now_ns() -> int:
    """ns since 1970 UTC."""
    return time.time_ns()


def thread_count(wanted: int) -> int:
    """DuckDB's threads: `wanted`, or one a CPU but no more than four."""
    return wanted or min(4, os.cpu_count() or 1)


def _config(memory_limit: str, threads: int, temporary: str) -> dict[str, Any]:
    """With what `lock` adds, a question can neither read files, load code, see Python's variables nor change this."""
    return {
        "storage_compatibility_version": STORAGE,
        "memory_limit": memory_limit,
        "threads": thread_count(threads),
        "temp_directory": temporary,
        "max_temp_directory_size": SPILL_MOST,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
        "python_enable_replacements": False,
        "allocator_background_threads": True,  # what a question took is given back, though nobody asks another
    }


def _version(connection: duckdb.DuckDBPyConnection) -> int:
    """The version of an open database, 0 for an empty one. Raises SinkError when it is somebody else's."""
    names = connection.execute("SELECT schema_name || '.' || table_name FROM duckdb_tables()").fetchall()
    if ("store.schema_version",) in names:
        row = connection.execute("SELECT coalesce(max(version), 0) FROM store.schema_version").fetchone()
        return int(row[0]) if row else 0
    if names:
        raise SinkError("the file is a DuckDB database, but not of ztlens", "name another file with --database")
    return 0


def _version_of(path: Path) -> int:
    """The version of a database that is not open here. Raises duckdb.Error, SinkError."""
    with duckdb.connect(str(path), read_only=True) as probe:
        return _version(probe)


def _refuse_newer(version: int, path: Path | str) -> None:
    if version > tables.VERSION:
        raise SinkError(
            f"{path} was written by a newer ztlens (tables of version {version}, this program knows {tables.VERSION})",
            "update ztlens, or name another file with --database; the file was not touched",
        )


def _in_use(error: Exception) -> bool:
    return "Could not set lock" in str(error) or "Conflicting lock" in str(error)


def opening_error(path: Path | str, error: Exception) -> SinkError:
    """What DuckDB said about opening `path`, for people."""
    text = str(error)
    if _in_use(error):
        return SinkError(f"{path} is in use by another process", "stop the other sink, or ask it over its socket")
    if "is already opened" in text or "already attached" in text or "same database file" in text:
        return SinkError(f"{path} is open in this process already", "close it first")
    if "not a valid DuckDB database" in text or "newer version" in text or "Serialization" in text:
        return SinkError(
            f"{path} cannot be read as a DuckDB database: {text.splitlines()[0]}",
            "update ztlens, or name another file with --database; the file was not touched",
        )
    if "No such file" in text or "does not exist" in text:
        return SinkError(f"there is no database {path}", "start a sink with `ztlens up` or `ztlens sink`")
    return SinkError(f"cannot open {path}: {text.splitlines()[0]}", "check the path, its permissions and free space")


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """From here on no file, no network, no other setting."""
    connection.execute("SET enable_external_access = false")  # here: in the configuration it forbids temp_directory
    connection.execute("SET lock_configuration = true")


def _foundation(connection: duckdb.DuckDBPyConnection) -> None:
    """Migrations, each in a transaction of its own, then the views of this program."""
    version = _version(connection)
    if version == 0:
        for statement in tables.FOUNDATION:
            connection.execute(statement)
    for number in range(version, tables.VERSION):
        connection.execute("BEGIN")
        for statement in tables.MIGRATIONS[number]:
            connection.execute(statement)
        connection.execute("INSERT INTO store.schema_version VALUES (?, make_timestamp_ns(?))", [number + 1, now_ns()])
        connection.execute("COMMIT")
    connection.execute("BEGIN")
    for statement in (*MACROS, *VIEWS, ledger.VIEW, ledger.LOST, ledger.CLOCK_STEPS):
        connection.execute(statement)
    connection.execute("COMMIT")


def open_memory(
    memory_limit: str = "256MB", threads: int = 1, temporary: str = "", locked: bool = True
) -> duckdb.DuckDBPyConnection:
    """An empty database in memory with the same tables, views and macros; not `locked`: call `lock` when it is full."""
    connection = duckdb.connect(":memory:", config=_config(memory_limit, threads, temporary))
    _foundation(connection)
    if locked:
        lock(connection)
    return connection


def _connect(path: Path, memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    temporary = Path(f"{path}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        # Read-only first: opening for writing replays the log into the file before anybody can look.
        version = _version_of(path)
        _refuse_newer(version, path)
        if 0 < version < tables.VERSION:
            copy = back_up(path, version, _version_of)
            log.info("%s: tables of version %d become %d; as it was: %s", path, version, tables.VERSION, copy)
    connection = duckdb.connect(str(path), config=_config(memory_limit, threads, str(temporary)))
    # A killed sink's spill files; before the file is ours they may be another's.
    shutil.rmtree(temporary, ignore_errors=True)
    return connection


def open_writer(path: Path, memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    """Open or make the file as its only owner.

    Raises SinkError: in use, from a newer version (then nothing was written), not a database, not accessible.
    """
    end = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            # DuckDB's own threads help questions most; the writer has one of its own.
            connection = giving_way(_connect, path, memory_limit, threads)
            break
        except (duckdb.Error, OSError) as error:
            if not _in_use(error) or time.monotonic() > end:
                raise opening_error(path, error) from error
        time.sleep(0.1)
    try:
        _foundation(connection)
        lock(connection)
    except duckdb.Error as error:
        connection.close()
        raise StoreError(
            f"cannot set up {path}: {str(error).splitlines()[0]}", "check free space and permissions"
        ) from error
    except SinkError:
        connection.close()
        raise
    return connection


def open_reader(path: Path, memory_limit: str = "2GB", threads: int = 0) -> duckdb.DuckDBPyConnection:
    """Open an existing file read-only: only while no sink owns it. Raises SinkError."""
    if not path.exists():
        raise opening_error(path, FileNotFoundError("No such file"))
    try:
        config = _config(memory_limit, threads, f"{path}.tmp")
        connection = duckdb.connect(str(path), read_only=True, config=config)
    except (duckdb.Error, OSError) as error:
        raise opening_error(path, error) from error
    try:
        version = _version(connection)
        _refuse_newer(version, path)
        if version < tables.VERSION:
            raise SinkError(
                f"{path} is of an older version ({version})", "start a sink on it once: it brings it up to date"
            )
    except SinkError:
        connection.close()
        raise
    lock(connection)
    return connection
