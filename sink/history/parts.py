"""Parquet files of an export: pieces of a table, sorted and encoded so that they become small.

Measured on 1 M verdicts of tests/support/sessions.py over ten minutes: 9.7 bytes a verdict; unsorted 14.5, with the
position in bytes instead of the number 10.5, with zstd's level 1 10.0. What is left is time (4), number (2) and what
tells flows of a pair apart.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet

SECOND = 1_000_000_000
PIECE = 1 << 20
"""Rows sorted and written at a time, whole seconds of a table: about 300 MB while it is done."""
SORTED = {
    "verdicts": ("ring", "dst_hi", "dst_lo", "dport", "src_hi", "src_lo", "flow_id", "number"),
    "loss": ("ring", "time"),
    "pairs_1m": ("ring", "dst_hi", "dst_lo", "dport", "src_hi", "src_lo", "time"),
    "pairs_1h": ("ring", "dst_hi", "dst_lo", "dport", "src_hi", "src_lo", "time"),
}
"""Order within a piece, chosen for size: what compresses best is a run of equal values."""
DELTA = ("number", "time", "flow_id", "sport", "first_seen", "last_seen")
"""Columns whose neighbours differ by little; the others have few values, so a dictionary."""
LEVEL = 6
"""Of zstd: a tenth smaller than 1 for half as much time again."""
KEYS = {"verdicts": ("ring", "number"), "loss": ("ring", "time")}
"""What makes a row the same row; of the other tables the whole row."""


def pieces(seconds: list[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """[first, past) of runs of seconds with at most `most` rows each, where one second alone has not more."""
    first, rows = seconds[0][0], 0
    for second, n in seconds:
        if rows and rows + n > most:
            yield first, second
            first, rows = second, 0
        rows += n
    yield first, seconds[-1][0] + SECOND


class Source(Protocol):
    """What is asked: `sink.client.History`."""

    def sql(self, sql: str, parameters: Any = None) -> pa.Table: ...
    def batches(self, sql: str, parameters: Any = None) -> Any: ...


class Parts:
    """Writes files into the directory `work`, each complete and safe on disk when it is returned."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._count = 0

    def _next(self) -> Path:
        self._count += 1
        return self._work / f"{self._count}.parquet"

    def write(self, table: str, source: Source, questions: list[str]) -> Path:
        """The answer to each question as a row group. Raises SinkError, OSError."""
        path = self._next()
        writer = None
        try:
            for question in questions:
                with source.batches(question) as answer:
                    piece = pa.Table.from_batches(list(answer), schema=answer.schema)
                order = [name for name in SORTED.get(table, ()) if name in piece.column_names]
                piece = piece.sort_by([(name, "ascending") for name in order]) if order else piece
                writer = writer or _writer(path, piece.schema)
                writer.write_table(piece, row_group_size=max(1, piece.num_rows))
        finally:
            if writer is not None:
                writer.close()
        _safe(path)
        return path

    def compared(self, table: str, new: Path, old: list[Path]) -> tuple[int, int]:
        """How many rows of `old` are not in `new`, and how many of `new` not in `old`."""
        with self._database(new, old) as connection:
            counts = [
                connection.execute(f"SELECT count(*) FROM {a} ANTI JOIN {b} ON {_same(table, connection)}").fetchone()
                for a, b in (("old", "new"), ("new", "old"))
            ]
        lacking, added = (int(row[0]) if row else 0 for row in counts)
        return lacking, added

    def only_new(self, table: str, new: Path, old: list[Path]) -> Path:
        """A file of the rows of `new` that are not in `old`."""
        path = self._next()
        with self._database(new, old) as connection:
            found = connection.sql(f"SELECT new.* FROM new ANTI JOIN old ON {_same(table, connection)}")
            reader = found.to_arrow_reader(PIECE)
            with _writer(path, reader.schema) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        _safe(path)
        new.unlink()
        return path

    @contextmanager
    def _database(self, new: Path, old: list[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect(":memory:", config={"memory_limit": "512MB", "threads": 2}) as connection:
            connection.execute(f"SET temp_directory = '{self._work}/spill'")
            for view, files in (("new", [new]), ("old", old)):
                connection.read_parquet([str(file) for file in files], hive_partitioning=False).create_view(view)
            yield connection


def _safe(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _same(table: str, connection: duckdb.DuckDBPyConnection) -> str:
    """The condition that makes rows of `old` and `new` the same; columns only a newer version has do not count."""
    columns = connection.execute("SELECT column_name FROM (DESCRIBE old)").fetchall()
    names = KEYS.get(table, tuple(name for (name,) in columns))
    return " AND ".join(f'old."{name}" IS NOT DISTINCT FROM new."{name}"' for name in names)


def _writer(path: Path, schema: pa.Schema) -> pa.parquet.ParquetWriter:
    delta = [name for name in DELTA if name in schema.names]
    return pa.parquet.ParquetWriter(
        path, schema, compression="zstd", compression_level=LEVEL,
        use_dictionary=[name for name in schema.names if name not in delta],
        column_encoding=dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
    )  # fmt: skip
