"""Exported history as a database: in memory, the same tables, views and macros; the large tables lie in Parquet.

A question can open the files that the manifest names, for reading, and nothing else: DuckDB's `allowed_paths` is that
list, so no new file can be made, and `sink.history.query` lets nothing through that would write into one.
"""

import shutil
import tempfile
from pathlib import Path

import duckdb

from sink.errors import ExportError
from sink.history import manifest as manifests
from sink.history.manifest import BY_HOUR, File, Manifest
from sink.store.database import lock, open_memory

DAY = 86_400_000_000_000
DAYS_MOST = 60
"""Of a longer history several days are taken together: each part of a view costs time in every question."""


class Exported:
    """An open export. Close it: spilled files of large questions go with it."""

    def __init__(self, directory: Path, memory_limit: str = "2GB", threads: int = 0) -> None:
        """Raises ExportError: not an export, damaged, of a newer format."""
        self.directory = directory.absolute()
        self.manifest: Manifest = manifests.read(self.directory)
        self._spill = Path(tempfile.mkdtemp(prefix="ztlens-spill-"))
        self.connection = open_memory(memory_limit, threads, str(self._spill / "tmp"), locked=False)
        try:
            self._fill()
        except duckdb.Error as error:
            self.close()
            raise ExportError(
                f"{self.directory} cannot be read: {str(error).splitlines()[0]}",
                "`ztlens evidence check` says what is wrong",
            ) from error

    def _fill(self) -> None:
        connection = self.connection
        connection.execute("SET parquet_metadata_cache = true")
        tables: dict[str, list[tuple[str, str, str]]] = {}
        for table, column, kind, default in connection.execute(
            "SELECT table_name, column_name, data_type, coalesce(column_default, 'NULL') FROM duckdb_columns()"
            " WHERE schema_name = 'store' AND NOT internal ORDER BY table_name, column_index"
        ).fetchall():
            tables.setdefault(table, []).append((column, kind, default))
        allowed: list[str] = []
        for table in sorted(tables, key=lambda name: name in BY_HOUR):  # rings before verdicts
            columns = tables[table]
            files = self.manifest.of_table(table)
            if not files:
                continue
            relation = " UNION ALL ".join(self._spans(part, columns) for part in _by_version(files))
            if table in BY_HOUR:
                connection.execute(f"DROP TABLE store.{table}")
                connection.execute(f"CREATE VIEW store.{table} AS {relation}")
                allowed += (str(self.directory / file.path) for file in files)
            else:
                connection.execute(f"INSERT INTO store.{table} {relation}")
        # As text: of a parameter DuckDB looks for pandas anew with every string.
        connection.execute(f"SET allowed_paths = [{', '.join(map(_text, allowed))}]")
        lock(connection)

    def _spans(self, files: list[File], columns: list[tuple[str, str, str]]) -> str:
        """Files of one version, day by day: a question about a time opens the files of its days alone.

        DuckDB sees that a day's bounds and the question's exclude each other; of single files it knows no bounds.
        """
        hours = [file.hour for file in files if file.hour is not None]
        if not hours:
            return self._relation(files, columns)
        length = DAY * (1 + (max(hours) - min(hours)) // (DAY * DAYS_MOST))
        spans: dict[int, list[File]] = {}
        for file in files:
            spans.setdefault((file.hour or 0) // length, []).append(file)
        return " UNION ALL ".join(
            f"(SELECT * FROM ({self._relation(part, columns)}) WHERE time >= make_timestamp_ns({number * length})"
            f" AND time < make_timestamp_ns({(number + 1) * length}))"
            for number, part in spans.items()
        )

    def _relation(self, files: list[File], columns: list[tuple[str, str, str]]) -> str:
        """Files of one version of the tables, as the columns of today's."""
        names = ", ".join(_text(str(self.directory / file.path)) for file in files)
        source = f"read_parquet([{names}], hive_partitioning = false)"
        if files[0].table == "verdicts":
            source = f"(SELECT *, (number * {self._stride()})::UBIGINT AS position FROM {source})"
        there = {row[0] for row in self.connection.execute(f"DESCRIBE FROM {source}").fetchall()}
        chosen = ", ".join(
            f'"{name}"::{kind} AS "{name}"' if name in there else f'({default})::{kind} AS "{name}"'
            for name, kind, default in columns
        )
        return f"SELECT {chosen} FROM {source}"

    def _stride(self) -> str:
        """Bytes of a ring for each number in it; of all rings the same, but for the age of some."""
        strides = dict(self.connection.execute("SELECT id, stride FROM store.rings").fetchall())
        if len(set(strides.values())) <= 1:
            return str(next(iter(strides.values()), 1))
        return f"CASE ring {' '.join(f'WHEN {ring} THEN {stride}' for ring, stride in strides.items())} END"

    def close(self) -> None:
        """Let go of the files."""
        self.connection.close()
        shutil.rmtree(self._spill, ignore_errors=True)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _by_version(files: list[File]) -> list[list[File]]:
    versions = sorted({file.tables_version for file in files})
    return [[file for file in files if file.tables_version == version] for version in versions]
