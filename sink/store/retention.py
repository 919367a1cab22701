"""Housekeeping off the hot path: rolling deletion by age and size, and merging of ranges and watermarks.

Nothing goes silently: each deletion is a row of store.retention, and the ledger counts what was stored from ranges,
which deletion does not touch. Policy records stay for good; they are what history is read by.
"""

import contextlib
import logging

import duckdb

from sink.errors import StoreError
from sink.store.database import now_ns
from sink.store.store import Store

log = logging.getLogger("ztlens.sink")

MERGE_AT = 2_000
"""Rows of store.ranges and store.watermarks beyond those needed before they are merged."""
_SIZE_MARGIN = 0.9
"""After a deletion by size the file's content is this share of the limit, so it is not done every time."""


def merge(store: Store, at: int = MERGE_AT) -> bool:
    """Replace the rows of store.ranges and store.watermarks by the few that say the same; True if it was worth it."""
    state = store.state
    needed = sum(len(ring.held) for ring in state.rings.values()) + len(state.streams)
    if state.range_rows < needed + at:
        return False
    connection = store.connection
    with _Transaction(store):
        connection.execute("DELETE FROM store.ranges")
        connection.executemany(
            "INSERT INTO store.ranges VALUES (?, ?, ?)",
            [[ring.id, first, past] for ring in state.rings.values() for first, past in ring.held] or [[0, 0, 0]],
        )
        connection.execute("DELETE FROM store.ranges WHERE first = past")
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


def apply(store: Store, keep_age: float, keep_bytes: int) -> int:
    """Delete what is older than `keep_age` seconds, then the oldest verdicts above `keep_bytes`; 0: no limit.

    Returns the verdicts deleted. Raises StoreError (nothing deleted).
    """
    deleted = 0
    if keep_age > 0:
        before = now_ns() - int(keep_age * 1e9)
        deleted += _delete(store, before, "age")
        with _Transaction(store):
            # The last records of each ring stay: the ledger is made of them.
            store.connection.execute(
                "DELETE FROM store.loss WHERE time < make_timestamp_ns(?) AND NOT final AND (ring, time) NOT IN ("
                " SELECT (ring, max(time)) FROM store.loss GROUP BY ring UNION ALL"
                " SELECT (ring, max(time)) FROM store.loss WHERE flows_live IS NOT NULL GROUP BY ring)",
                [max(0, before)],
            )
    used = used_bytes(store) if keep_bytes > 0 else 0
    if used > keep_bytes > 0:
        row = store.connection.execute(
            "SELECT quantile_disc(epoch_ns(time), ?) FROM store.verdicts", [1 - _SIZE_MARGIN * keep_bytes / used]
        ).fetchone()
        if row and row[0] is not None:
            deleted += _delete(store, int(row[0]) + 1, "size")
    if deleted:
        with contextlib.suppress(duckdb.Error):  # a reader on an old snapshot: the next checkpoint frees the blocks
            store.connection.execute("CHECKPOINT")
    return deleted


def _delete(store: Store, before: int, cause: str) -> int:
    """Delete verdicts older than `before` (ns since 1970), with a row per ring that says so."""
    connection = store.connection
    with _Transaction(store):
        connection.execute(
            "INSERT INTO store.retention SELECT make_timestamp_ns($now), $cause, ring, count(*), min(time), max(time)"
            " FROM store.verdicts WHERE time < make_timestamp_ns($before) GROUP BY ring",
            {"now": now_ns(), "cause": cause, "before": max(0, before)},
        )
        connection.execute("DELETE FROM store.verdicts WHERE time < make_timestamp_ns(?)", [max(0, before)])
        row = connection.fetchone()
    count = int(row[0]) if row else 0
    if count:
        log.info("retention by %s: %d verdicts deleted", cause, count)
    return count


class _Transaction:
    """BEGIN … COMMIT on the writer's connection; on an error ROLLBACK and StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        self._store.connection.execute("BEGIN")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        connection = self._store.connection
        try:
            connection.execute("COMMIT" if error is None else "ROLLBACK")
        except duckdb.Error as failure:
            self._store.recover(failure)
            raise StoreError(f"housekeeping: {str(failure).splitlines()[0]}", "it is tried again") from failure
        if isinstance(error, duckdb.Error):
            self._store.recover(error)
            raise StoreError(f"housekeeping: {str(error).splitlines()[0]}", "it is tried again") from error
