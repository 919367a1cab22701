"""A made-up history as a sink leaves it: stored in its commits, rolled up, folded. Long ones may be kept:

python -m tests.bench.stored DIR BLOCKS…    (makes what `bench.sh --keep DIR` would, of a million verdicts a block)
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from schemas.messages import PolicyRecord
from schemas.verdict import STRIDE
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare, rollup
from tests.support import batches, history
from tests.support.sinks import settings

COMMIT = 122_880
BLOCK_SECONDS = 8640.0
"""A day of ten blocks: 115 events a second."""


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


@dataclass(frozen=True)
class Kept:
    """A history of tests.support.history, closed. `fates`: what an audit of its `policy` must find."""

    directory: Path
    built: Built
    fates: dict[str, list[int]]


def traffic(directory: Path, blocks: int) -> Kept:
    """The history of so many blocks in a directory below `directory`: the one kept there, else made now."""
    home = directory / f"history-{history.FORMAT}-{blocks}"
    told = home / "built.json"
    if not told.exists():
        shutil.rmtree(home, ignore_errors=True)  # what was being made when it was killed
        fates: Counter[tuple[str, int]] = Counter()

        def counted() -> Iterator[np.ndarray]:
            for number, rows in enumerate(history.RealTraffic(BLOCK_SECONDS).blocks(blocks), 1):
                for name, sums in history.fates(rows).items():
                    fates.update({(name, i): int(n) for i, n in enumerate(sums)})
                yield rows
                print(f"bench: {number} of {blocks} blocks stored", file=sys.stderr, flush=True)

        built = build(settings(home, ""), counted(), history.record())
        names = dict.fromkeys(name for name, _ in fates)
        found = {"built": asdict(built), "fates": {name: [fates[name, i] for i in range(3)] for name in names}}
        part = told.with_suffix(".part")
        part.write_text(json.dumps(found, indent=2))
        part.rename(told)
    else:
        Store.open(settings(home, "")).close()  # tables of an older version are brought up to date off the clock
    found = json.loads(told.read_text())
    return Kept(home, Built(**found["built"]), found["fates"])


if __name__ == "__main__":
    for count in sys.argv[2:]:
        print(traffic(Path(sys.argv[1]), int(count)))
