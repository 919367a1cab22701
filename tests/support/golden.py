"""Golden files: a database, the messages it was made of and its answers, as the program of each version wrote them.

    python -m tests.support.golden make DIR        # with the code of the version that is to be kept
    tests/golden/v<version of the tables>/         # what is kept; never made anew

`history.duckdb.xz` is the database, `messages.xz` a msgpack list of [subject, data], `answers.json.xz` what each view
answered: {view: [row, …]}, in the order of ORDER BY ALL. The database has more than the messages: a deletion and a gap.
"""

import json
import lzma
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from schemas import messages, subjects
from schemas.codes import EventKind, Outcome
from schemas.messages import FlowSums
from schemas.verdict import STRIDE
from sink.client import History
from sink.consume import decode
from sink.history import output
from sink.settings import SinkSettings
from sink.store import Commit, Store
from tests.support import batches
from tests.support.rollups import keep

GOLDEN = Path(__file__).parents[1] / "golden"
NODES = (("n1", "r1"), ("n2", "r2"))
EVENTS = 150
OF_MESSAGES = ("verdicts", "flows", "violations", "changes", "policy_revisions", "rules", "identities")
"""Views that messages alone make; what the others say depends on deletions, gaps and the clock, too."""
VIEWS = (*OF_MESSAGES, "loss", "ledger", "gaps", "retention", "pairs_1m", "node_pairs_1m")


def kept(version: str, name: str) -> bytes:
    """What is in the file `name`.xz of a version (`v1`)."""
    return lzma.decompress((GOLDEN / version / f"{name}.xz").read_bytes())


def traffic(seed: int) -> np.ndarray:
    """EVENTS rows of one node, with drops, a change of policy, and two events without a flow."""
    rows = batches.traffic(EVENTS - 2, seed=seed, flow_events=4).rows[: EVENTS - 2]
    rows["outcome"][rows["decision"] == 2] = Outcome.DROPPED
    late = len(rows) // 2
    rows["revision"][late:] = 2
    rows["event"][late:][rows["event"][late:] == EventKind.SAMPLE] = EventKind.CHANGE
    last = int(rows["time"].max())
    return np.concatenate([rows, batches.untracked(time=last + 1), batches.untracked(time=last + 2, family=0)])


def sent(node: str, ring: str, seed: int) -> list[tuple[str, bytes]]:
    """(subject, data) of what a collector of `node` sends: batches, overlapping by ten rows, and records."""
    rows = traffic(seed)
    start = batches.CLOCK
    flows = FlowSums(live=2, packets=40, bytes=4000, due=1)
    records: list[Any] = [
        batches.policy_record("start", node=node, ring=ring, revision=1, time=start),
        batches.policy_record("revision", node=node, ring=ring, revision=2, time=start + 10**9, who="é(1000) file"),
        batches.policy_record("mode", node=node, ring=ring, revision=2, time=start + 2 * 10**9, mode="enforce",
                              from_mode="monitor", state="pending"),
        batches.policy_record("refused", node=node, ring=ring, revision=2, time=start + 3 * 10**9, error="line 1"),
        batches.loss_record(len(rows) - 9, node=node, ring=ring, time=start + 4 * 10**9, lost=3, held_back=1,
                            flows=None),
        batches.loss_record(len(rows), node=node, ring=ring, time=start + 5 * 10**9, live=flows, pending=1),
    ]  # fmt: skip
    out = [(subjects.verdicts(node), batches.packed(rows[a:b], a * STRIDE, node=node, ring=ring))
           for a, b in ((0, 60), (50, 110), (110, len(rows)))]  # fmt: skip
    for record in records:
        subject = subjects.policy(node) if isinstance(record, messages.PolicyRecord) else subjects.loss(node)
        out.append((subject, messages.encode(record)))
    return out


def fill(store: Store, given: list[tuple[str, bytes]]) -> None:
    """Store messages as a sink does."""
    for number, (subject, data) in enumerate(given, start=1):
        stream = subjects.VERDICTS_STREAM if ".verdicts." in subject else subjects.RECORDS_STREAM
        store.stream(stream, "2026-09-21T00:00:00Z", 10**6)
        content = decode(stream, subject, data)
        is_batch = stream == subjects.VERDICTS_STREAM
        commit = Commit(batches=[content] if is_batch else [], records=[] if is_batch else [content], messages=1)  # type: ignore[list-item]
        commit.marks[stream] = number
        store.append(commit)


def answers(history: History, views: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """View → its rows, as JSON has them."""
    found = {}
    for view in views:
        table = history.sql(f"SELECT * FROM {view} ORDER BY ALL")
        found[view] = [row for batch in table.to_batches() for row in output.records(batch)]
    return json.loads(msgspec.json.encode(found))  # type: ignore[no-any-return]


def make(directory: Path) -> None:
    """Write the three files of this program's version below `directory`."""
    directory.mkdir(parents=True)
    given = [message for seed, (node, ring) in enumerate(NODES) for message in sent(node, ring, seed + 1)]
    settings = SinkSettings(database=directory / "history.duckdb", nats_url="", run_dir=directory)
    store = Store.open(settings)
    fill(store, given)
    old = batches.verdict(time=1, flow_id=9)
    fill(store, [(subjects.verdicts("n3"), batches.packed(old, node="n3", ring="r3"))])
    store.declare_gaps([(store.state.rings["n1", "r1"], EVENTS * STRIDE, (EVENTS + 7) * STRIDE, "golden")])
    deleted = keep(store, keep_age=time.time() - batches.CLOCK / 1e9 - 1800)
    assert deleted == 1
    found = answers(History.on_store(store), VIEWS)
    store.close()
    data = settings.database.read_bytes()
    settings.database.unlink()
    (directory / "history.duckdb.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    (directory / "messages.xz").write_bytes(lzma.compress(msgspec.msgpack.encode(given)))
    (directory / "answers.json.xz").write_bytes(lzma.compress(json.dumps(found).encode()))


if __name__ == "__main__":
    make(Path(sys.argv[2]))
