"""Writes history as Parquet: a directory that is a whole history by itself (`sink.history.manifest` says how it looks).

The history is asked over its SQL, a piece of bounded size at a time, so the sink goes on writing meanwhile and needs no
right to write anywhere; each piece is sorted and becomes a row group. What a directory holds already stays: hours it
lacks are added, an hour that has grown is replaced, and rows it has that the history deleted since are kept.

Files get their names when all are safe on disk, the manifest last, so an interrupted export leaves what was there.
"""

import fcntl
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet

from schemas import tables
from sink.disk import sync
from sink.errors import ExportError
from sink.history import manifest as manifests
from sink.history import moments
from sink.history.ledger import needed, rfc3339
from sink.history.manifest import BY_HOUR, File, Manifest
from sink.history.pairs import FOR_EVER, HOUR
from sink.history.parts import PIECE, SECOND, Parts, Source, pieces
from sink.store.database import now_ns

ROLLED_UP = ("pairs_1m", "pairs_1h", "open_flows")
"""Written together with what `rolled` and `folded` say of them, or sums would count events twice or not at all."""
STEADY_TRIES = 30


@dataclass
class Done:
    """What was done. `seen`: rows the history held of a table and hour, all of which the directory now has."""

    manifest: Manifest
    manifest_sha256: str
    seen: dict[tuple[str, int], int] = field(default_factory=dict)
    files: int = 0
    rows: int = 0
    bytes: int = 0


def export(
    source: Source,
    directory: Path,
    since: int | None = None,
    until: int | None = None,
    *,
    said: Callable[[str], None] = lambda line: None,
    piece: int = PIECE,
) -> Done:
    """Bring `directory` up to date with the history between two moments (ns since 1970 UTC; None: open).

    `said` is told of each hour that is written; `piece`: rows sorted at a time.

    Raises ExportError (not a directory for it, another store's export, somebody else is writing), SinkError, OSError.
    """
    moments.check(since, until)
    with _locked(directory):
        for left in directory.glob(".export-*"):  # of a killed one: nobody else writes here
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=".export-", dir=directory))
        try:
            return _Export(source, directory, work, said, piece).run(since, until)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The only one who writes there; made if it is not there."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as error:
        raise ExportError(f"{directory} is not a directory", "name a directory, new or of an earlier export") from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ExportError(f"another export is writing into {directory}", "wait for it to end") from error
    finally:
        os.close(number)


def _known(directory: Path) -> Manifest:
    """What is there already: an export, or nothing. What an interrupted export left behind is taken away."""
    if not (directory / manifests.NAME).exists():
        strange = [path for path in directory.rglob("*") if path.is_file() and not _ours(path.relative_to(directory))]
        if strange:
            raise ExportError(
                f"{directory} holds other files, such as {strange[0].name}", "name a directory that is new or empty"
            )
        known = Manifest()
    else:
        known = manifests.read(directory)
    for path in manifests.strays(directory, known):
        if _ours(path.relative_to(directory)):
            path.unlink()
    return known


def _ours(path: Path) -> bool:
    return len(path.parts) in (2, 4) and path.name.startswith("part-") and path.suffix == ".parquet"


class _Export:
    """One run of `export`."""

    def __init__(self, source: Source, directory: Path, work: Path, said: Callable[[str], None], piece: int) -> None:
        self._source = source
        self._directory = directory
        self._parts = Parts(work)
        self._known = _known(directory)
        self._said = said
        self._piece = piece
        self._new: list[tuple[Path, File]] = []
        self._gone: set[str] = set()
        self._seen: dict[tuple[str, int], int] = {}
        self._columns: dict[str, list[str]] = {}

    def run(self, since: int | None, until: int | None) -> Done:
        found = self._source.sql(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE schema_name = 'store'"
            " AND table_name <> 'schema_version' ORDER BY table_name, column_index"
        )
        for table, column in zip(*(c.to_pylist() for c in found.columns), strict=True):
            self._columns.setdefault(table, []).append(column)
        self._strides = self._rings()
        self._rolled_up(since, until)
        for table in ("verdicts", "loss"):
            self._hours(table, self._where(table, since, until))
        for table in self._columns:
            if table not in BY_HOUR and table not in (*ROLLED_UP, "rolled", "folded"):
                self._whole(table)
        return self._finish(since, until)

    def _rings(self) -> dict[int, int]:
        """Ring → stride. Rings are numbers of their store: another store's would be taken for this one's."""
        rings = self._source.sql("SELECT id, node, ring, stride FROM store.rings ORDER BY id").to_pylist()
        mine = {row["id"]: (row["node"], row["ring"]) for row in rings}
        for file in self._known.of_table("rings"):
            columns = ["id", "node", "ring"]
            for row in pyarrow.parquet.read_table(self._directory / file.path, columns=columns).to_pylist():
                if mine.get(row["id"]) != (row["node"], row["ring"]):
                    raise ExportError(
                        f"{self._directory} holds the history of another store (its ring {row['id']} is {row['ring']})",
                        "name a directory of its own for each store",
                    )
        return {row["id"]: row["stride"] for row in rings}

    def _where(self, table: str, since: int | None, until: int | None) -> str:
        """The rows of a span. Roll-ups by whole hours; of loss what the ledger needs too, however old."""
        if table in ROLLED_UP:
            since, until = _whole_hours(since, until)
        before = "true" if until is None else f"time < make_timestamp_ns({max(0, until)})"
        if table == "verdicts":  # a ring that began meanwhile is for the next time
            before += f" AND ring <= {max(self._strides, default=0)}"
        if since is None:
            return before
        after = f"time >= make_timestamp_ns({max(0, since)})"
        if table != "loss":
            return f"{after} AND {before}"
        return f"{before} AND ({after} OR final OR (ring, time) IN ({needed(before)}))"

    def _rolled_up(self, since: int | None, until: int | None) -> None:
        """Roll-ups as they were at one moment: written again when one was made meanwhile."""
        if "rolled" not in self._columns:
            return
        state = self._state()
        for _ in range(STEADY_TRIES):
            kept, gone = len(self._new), set(self._gone)
            for table in ROLLED_UP:
                if table in BY_HOUR:
                    self._hours(table, self._where(table, since, until))
                else:
                    self._whole(table)
            for table in ("rolled", "folded"):
                self._whole(table)
            before, state = state, self._state()
            if before == state:
                return
            del self._new[kept:]
            self._gone = gone
        raise ExportError("roll-ups were made faster than they could be read", "try again when there is less traffic")

    def _state(self) -> list[Any]:
        """Of the tables that say what is rolled up, whatever order their rows are in."""
        return [
            self._source.sql(f"SELECT count(*) AS n, bit_xor(hash(t)) AS h FROM store.{table} AS t").to_pylist()
            for table in ("rolled", "folded")
        ]

    def _hours(self, table: str, where: str) -> None:
        """Every hour of `table` that the directory lacks or has less of."""
        hours = self._counts(table, where, HOUR)
        for i, (hour, rows) in enumerate(hours):
            self._seen[table, hour] = rows
            old = self._known.by_hour(table).get(hour, [])
            if rows != sum(file.rows for file in old):
                self._said(f"{table}: hour {i + 1} of {len(hours)}, {rows:,} rows")
                within = f"({where}) AND {_between(hour, hour + HOUR)}"
                self._hour(table, within, hour, list(pieces(self._counts(table, within, SECOND), self._piece)), old)

    def _counts(self, table: str, where: str, length: int) -> list[tuple[int, int]]:
        """(start in ns, rows) of each stretch of `length` ns that has any, in order."""
        found = self._source.sql(
            f"SELECT epoch_ns(time) // {length} * {length} AS start, count(*) AS n FROM store.{table} WHERE {where}"
            " GROUP BY start ORDER BY start"
        )
        return list(zip(found["start"].to_pylist(), found["n"].to_pylist(), strict=True))

    def _hour(self, table: str, where: str, hour: int, pieces: list[tuple[int, int]], old: list[File]) -> None:
        name = self._write(table, [f"({where}) AND {_between(first, past)}" for first, past in pieces])
        if old:
            before = [self._directory / file.path for file in old]
            lacking, added = self._parts.compared(table, name, before)
            if not added:
                name.unlink()
                return
            if lacking:
                name = self._parts.only_new(table, name, before)
            else:
                self._gone |= {file.path for file in old}
        self._add(table, name, hour)

    def _whole(self, table: str) -> None:
        name = self._write(table, ["true"])
        old = self._known.of_table(table)
        if [file.sha256 for file in old] == [manifests.sha256(name)]:
            name.unlink()
            return
        self._gone |= {file.path for file in old}
        self._add(table, name, None)

    def _write(self, table: str, wheres: list[str]) -> Path:
        chosen = ", ".join(self._column(table, name) for name in self._columns[table])
        return self._parts.write(
            table, self._source, [f"SELECT {chosen} FROM store.{table} WHERE {where}" for where in wheres]
        )

    def _column(self, table: str, name: str) -> str:
        """Of a verdict its number in the ring, not the position in bytes: their common factor does not compress."""
        if table != "verdicts" or name != "position":
            return f'"{name}"'
        strides = set(self._strides.values()) or {1}
        whens = " ".join(f"WHEN {ring} THEN {stride}" for ring, stride in self._strides.items())
        stride = strides.pop() if len(strides) == 1 else f"CASE ring {whens} END"
        return f"(position // {stride})::UBIGINT AS number"

    def _add(self, table: str, path: Path, hour: int | None) -> None:
        digest = manifests.sha256(path)
        parent = table if hour is None else manifests.hive(table, hour)
        rows = pyarrow.parquet.read_metadata(path).num_rows
        file = File(
            path=f"{parent}/part-{digest[:16]}.parquet", table=table, rows=rows, bytes=path.stat().st_size,
            sha256=digest, tables_version=tables.VERSION, hour=hour,
        )  # fmt: skip
        self._new.append((path, file))

    def _finish(self, since: int | None, until: int | None) -> Done:
        """Give the files their names, the manifest last; then take away what it names no more."""
        known = self._known
        kept = [file for file in known.files if file.path not in self._gone]
        if known.files:
            since, until = _widest(min, since, known.since), _widest(max, until, known.until)
        nodes = self._source.sql("SELECT DISTINCT node FROM store.rings ORDER BY node")["node"].to_pylist()
        manifest = Manifest(
            tables_version=tables.VERSION, ztlens=importlib.metadata.version("ztlens"), duckdb=duckdb.__version__,
            pyarrow=pa.__version__, host=platform.node(), made=rfc3339(now_ns()) or "",
            since=since, until=until,
            pairs_since=_whole_hours(since, until)[0], pairs_until=_whole_hours(since, until)[1],
            nodes=nodes,
            files=sorted([*kept, *(file for _, file in self._new)], key=lambda file: file.path),
        )  # fmt: skip
        parents = set()
        for path, file in self._new:
            target = self._directory / file.path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.replace(target)
            parents |= {target.parent, *target.parent.parents} & {self._directory, *self._below(target.parent)}
        for parent in parents:
            sync(parent)
        digest = manifests.write(self._directory, manifest)
        for name in self._gone - {file.path for _, file in self._new}:
            (self._directory / name).unlink(missing_ok=True)
        return Done(
            manifest, digest, self._seen, len(self._new), sum(file.rows for _, file in self._new),
            sum(file.bytes for _, file in self._new),
        )  # fmt: skip

    def _below(self, path: Path) -> Iterator[Path]:
        while path != self._directory:
            yield path
            path = path.parent


def _between(first: int, past: int) -> str:
    return f"time >= make_timestamp_ns({first}) AND time < make_timestamp_ns({past})"


def _whole_hours(since: int | None, until: int | None) -> tuple[int | None, int | None]:
    """The hours that the span touches; the last one there is, is not whole."""
    first = None if since is None else since // HOUR * HOUR
    return first, None if until is None else min(FOR_EVER, -(-until // HOUR) * HOUR)


def _widest(choose: Callable[[int, int], int], a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else choose(a, b)
