"""A made-up history as a sink leaves it: stored in its commits, rolled up, folded."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from schemas.messages import PolicyRecord
from schemas.verdict import STRIDE
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare, rollup
from tests.support import batches

COMMIT = 122_880


@dataclass(frozen=True)
class Built:
    """What it took. `bytes`: the file before the roll-ups, and after them; seconds likewise."""

    verdicts: int
    tuples: int
    stored_bytes: int
    bytes: int
    stored_seconds: float
    rolled_seconds: float


def build(given: SinkSettings, blocks: Iterable[np.ndarray], record: PolicyRecord) -> Built:
    """Store `blocks`, each of rows in the order of one ring. The store is closed at the end."""
    begun, at = time.monotonic(), 0
    store = Store.open(given)
    store.append(Commit(records=[record]))
    for rows in blocks:
        for i in range(0, len(rows), COMMIT):
            part = rows[i : i + COMMIT]
            store.append(Commit(batches=[prepare(batches.batch(part, at * STRIDE))]))
            at += len(part)
    store.connection.execute("CHECKPOINT")
    stored, stored_bytes = time.monotonic(), given.database.stat().st_size
    while rollup.step(store):
        pass
    while rollup.fold(store):
        pass
    rolled = time.monotonic()
    (tuples,) = store.connection.execute(
        "SELECT count(*) FROM (SELECT DISTINCT src_hi, src_lo, dst_hi, dst_lo, proto, dport FROM store.pairs_1h)"
    ).fetchone() or (0,)
    store.close()
    return Built(at, tuples, stored_bytes, given.database.stat().st_size, stored - begun, rolled - stored)
