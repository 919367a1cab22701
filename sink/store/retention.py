"""Housekeeping off the hot path: rolling deletion by age and size, and merging of ranges and watermarks.

Nothing goes silently: each deletion is a row of store.retention, and the ledger counts what was stored from ranges,
which deletion does not touch. Only verdicts that are rolled up go, and only minutes that are folded into hours. Policy
records stay for good; they are what history is read by.
"""

import contextlib
import logging
from typing import Protocol

import duckdb

from sink.history.ledger import needed
from sink.history.pairs import HOUR
from sink.settings import SinkSettings
from sink.store import rollup
from sink.store.database import now_ns
from sink.store.rollup import folded, rolled_below
from sink.store.state import load_deleted
from sink.store.store import Store

log = logging.getLogger("ztlens.sink")

MERGE_AT = 2_000
"""Rows of store.ranges, store.rolled and store.watermarks beyond those needed before they are merged."""
_SIZE_MARGIN = 0.85
"""After a deletion by size the file's content is this share of the limit, so it is not done every time."""


def merge(store: Store, at: int = MERGE_AT) -> bool:
    """Replace the rows of ranges and watermarks by the few that say the same; True if it was worth it."""
    state = store.state
    rings = state.rings.values()
    needed = sum(len(ring.held) + len(ring.rolled) for ring in rings) + len(state.streams)
    if state.range_rows < needed + at:
        return False
    held = [(ring.id, first, past) for ring in rings for first, past in ring.held]
    rolled = [(ring.id, first, past) for ring in rings for first, past in ring.rolled]
    with store.transaction("housekeeping") as connection:
        for table, rows in (("ranges", held), ("rolled", rolled)):
            connection.execute(f"DELETE FROM store.{table}")
            if rows:
                connection.executemany(f"INSERT INTO store.{table} VALUES (?, ?, ?)", rows)
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE last_marks AS SELECT stream, max(sequence) AS sequence FROM store.watermarks"
            " GROUP BY stream"
        )
        connection.execute("DELETE FROM store.watermarks")
        connection.execute("INSERT INTO store.watermarks SELECT * FROM last_marks")
    state.range_rows = needed
    return True


def used_bytes(store: Store) -> int:
    """Bytes of the file that hold data (free blocks inside it are used again, but never given back)."""
    row = store.connection.execute("SELECT block_size * used_blocks FROM pragma_database_size()").fetchone()
    return int(row[0]) if row else 0


def _share_of_verdicts(store: Store) -> float:
    """Of the bytes used, by rows: a row of verdicts and one of a roll-up need about the same room."""
    counts = [store.connection.execute(f"SELECT count(*) FROM store.{name}").fetchone() or (0,)
              for name in ("verdicts", "pairs_1m", "pairs_1h")]  # fmt: skip
    total = sum(count for (count,) in counts)
    return counts[0][0] / total if counts[0][0] else 1.0


class Archive(Protocol):
    """Where rows must be before they are deleted: `sink.archive.Archive`."""

    def holds(self, store: Store, table: str, before: int) -> str: ...


def horizon(store: Store, settings: SinkSettings) -> int:
    """The start of the hour (ns since 1970) before which `apply` may delete something."""
    now = now_ns()
    ages = [age for age in (settings.keep_age, settings.keep_minutes, settings.keep_hours) if age > 0]
    moments = [now - int(age * 1e9) for age in ages]
    if settings.keep_bytes:
        moments.append(_oversize(store, settings.keep_bytes))
    return max([0, *moments]) // HOUR * HOUR


def apply(store: Store, settings: SinkSettings, archive: Archive | None = None) -> int:
    """Delete what is older than its `keep_` setting says, then the oldest verdicts above `keep_bytes`.

    With an `archive` only what it holds, by whole hours. Returns the verdicts deleted. Raises StoreError: what was
    deleted before it stays so, the rest is tried again.
    """
    now, deleted = now_ns(), 0
    if settings.keep_age > 0:
        before = now - int(settings.keep_age * 1e9)
        deleted += _delete_verdicts(store, before, "age", archive)
        held = _held(store, archive, "loss", before)
        with store.transaction("housekeeping") as connection:
            # The last records of each ring stay: the ledger is made of them.
            connection.execute(
                f"DELETE FROM store.loss WHERE time < make_timestamp_ns(?) AND ({held})"
                f" AND NOT final AND (ring, time) NOT IN ({needed()})",
                [max(0, before)],
            )
    if settings.keep_minutes > 0:
        before = min(now - int(settings.keep_minutes * 1e9), folded(store.connection))
        before = before // HOUR * HOUR
        _delete(store, "pairs_1m", before, "minutes", _held(store, archive, "pairs_1m", before))
    if settings.keep_hours > 0:
        before = (now - int(settings.keep_hours * 1e9)) // HOUR * HOUR
        _delete(store, "pairs_1h", before, "hours", _held(store, archive, "pairs_1h", before))
    if settings.keep_bytes:
        deleted += _delete_verdicts(store, _oversize(store, settings.keep_bytes), "size", archive)
    rollup.forget(store, now - int(settings.keep_age * 1e9) if settings.keep_age > 0 else 0)
    if deleted:
        with contextlib.suppress(duckdb.Error):  # a reader on an old snapshot: the next checkpoint frees the blocks
            store.connection.execute("CHECKPOINT")
    return deleted


def _oversize(store: Store, keep_bytes: int) -> int:
    """The moment (ns since 1970) up to which verdicts must go for _SIZE_MARGIN of `keep_bytes` to be used; 0: none.

    Asked once a time, not until it is so: under a reader's snapshot nothing is freed yet, and everything would go.
    """
    used = used_bytes(store)
    if used <= keep_bytes:
        return 0
    share = (used - _SIZE_MARGIN * keep_bytes) / (used * _share_of_verdicts(store))
    row = (
        store.cursor()
        .execute("SELECT quantile_disc(epoch_ns(time), ?) FROM store.verdicts", [min(1.0, share)])
        .fetchone()
    )
    return int(row[0]) + 1 if row and row[0] is not None else 0


def _held(store: Store, archive: Archive | None, table: str, before: int) -> str:
    """The condition that makes rows of a table deletable."""
    return "true" if archive is None else archive.holds(store, table, before)


def _delete_verdicts(store: Store, before: int, cause: str, archive: Archive | None) -> int:
    """Those rolled up and older than `before` (ns since 1970); how many."""
    rolled = [f"(ring = {ring.id} AND position < {rolled_below(ring)})" for ring in store.state.rings.values()]
    if not rolled:
        return 0
    held = _held(store, archive, "verdicts", before)
    stride = "(SELECT r.stride FROM store.rings AS r WHERE r.id = verdicts.ring)"
    past = f"max(position + {stride})"
    count = _delete(store, "verdicts", before, cause, f"({' OR '.join(rolled)}) AND ({held})", past)
    if count:
        load_deleted(store.connection, store.state.rings.values())
    return count


def _delete(  # noqa: PLR0917 – what is deleted, and what is said of it
    store: Store, table: str, before: int, cause: str, which: str, past: str = "NULL"
) -> int:
    """Delete `which` rows older than `before` (ns since 1970), with a row per ring in store.retention that says so."""
    where = f"time < make_timestamp_ns({max(0, before)}) AND ({which})"
    with store.transaction("housekeeping") as connection:
        connection.execute(
            "INSERT INTO store.retention SELECT make_timestamp_ns($now), $cause, ring, count(*), min(time), max(time),"
            f" {past} FROM store.{table} WHERE {where} GROUP BY ring",
            {"now": now_ns(), "cause": cause},
        )
        row = connection.execute(f"DELETE FROM store.{table} WHERE {where}").fetchone()
    count = int(row[0]) if row else 0
    if count:
        log.info("retention by %s: %d rows of %s deleted", cause, count, table)
    return count
