"""Policy and loss records as rows, each once: known by ring and time, a policy record by kind and revision too."""

from typing import TypeVar

import duckdb
import pyarrow as pa

from schemas.errors import EnvelopeError
from schemas.messages import LossRecord, PolicyRecord

R = TypeVar("R", PolicyRecord, LossRecord)
_COUNTS = pa.map_(pa.string(), pa.uint64())
_TEXTS = pa.map_(pa.string(), pa.string())
_LOSS = pa.schema([
    ("time", pa.timestamp("ns")), ("ring", pa.uint32()), ("revision", pa.uint32()), ("mode", pa.string()),
    ("stride", pa.uint32()), ("produced", pa.uint64()), ("consumed", pa.uint64()), ("ring_bytes", pa.uint64()),
    ("counters", _COUNTS), ("judged_packets", pa.uint64()), ("judged_bytes", pa.uint64()), ("flows_live", pa.uint64()),
    ("flows_packets", pa.uint64()), ("flows_bytes", pa.uint64()), ("flows_due", pa.uint64()), ("interfaces", _TEXTS),
    ("collector", _COUNTS), ("final", pa.bool_()),
])  # fmt: skip


def _loss_row(ring: int, record: LossRecord) -> dict:
    flows = record.flows
    return {
        "time": record.time, "ring": ring, "revision": record.revision, "mode": record.mode, "stride": record.stride,
        "produced": record.produced, "consumed": record.consumed, "ring_bytes": record.ring_bytes,
        "counters": list(record.counters.items()), "judged_packets": record.judged_packets,
        "judged_bytes": record.judged_bytes, "flows_live": flows and flows.live,
        "flows_packets": flows and flows.packets, "flows_bytes": flows and flows.bytes,
        "flows_due": flows and flows.due, "interfaces": list(record.interfaces.items()),
        "collector": list(record.collector.items()), "final": record.final,
    }  # fmt: skip


def loss_table(records: list[tuple[int, LossRecord]]) -> pa.Table:
    """(ring number, record) → columns of store.loss. Raises pa.ArrowException, OverflowError: a number does not fit."""
    return pa.Table.from_pylist([_loss_row(ring, record) for ring, record in records], schema=_LOSS)


def insert_loss(connection: duckdb.DuckDBPyConnection, records: list[tuple[int, LossRecord]]) -> int:
    """Store those not there yet; how many. In the caller's transaction."""
    once = {(ring, record.time): (ring, record) for ring, record in records}
    connection.register("new_loss", loss_table(list(once.values())))
    try:
        since = min(time for _, time in once)
        connection.execute(
            "INSERT INTO store.loss SELECT n.* FROM new_loss AS n ANTI JOIN"
            " (SELECT ring, time FROM store.loss WHERE time >= make_timestamp_ns($since)) AS l USING (ring, time)",
            {"since": since},
        )
        row = connection.fetchone()
        return int(row[0]) if row else 0
    finally:
        connection.unregister("new_loss")


def insert_policy(connection: duckdb.DuckDBPyConnection, ring: int, record: PolicyRecord, named: set[int]) -> bool:
    """Store a policy record unless it is there. In the caller's transaction.

    Rules and identities are stored with the first record of a revision that has one; `named` are the revisions done.
    """
    connection.execute(
        "SELECT count(*) FROM store.policy"
        " WHERE ring = ? AND kind = ? AND revision = ? AND time = make_timestamp_ns(?)",
        [ring, record.kind, record.revision, record.time],
    )
    if (connection.fetchone() or (0,))[0]:
        return False
    connection.execute(
        "INSERT INTO store.policy VALUES (make_timestamp_ns(?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            record.time, ring, record.kind, record.revision, record.mode, record.default, record.hash, record.yaml,
            record.who, record.from_revision, record.from_mode, record.from_hash, record.state, record.error,
            record.end,
        ],
    )  # fmt: skip
    if record.kind == "refused" or record.revision in named or not (record.rules or record.identities):
        return True
    named.add(record.revision)
    if record.rules:
        rules = pa.table({
            "ring": pa.array([ring] * len(record.rules), pa.uint32()),
            "revision": pa.array([record.revision] * len(record.rules), pa.uint32()),
            "id": pa.array([rule.id for rule in record.rules], pa.uint16()),
            "name": [rule.name for rule in record.rules], "action": [rule.action for rule in record.rules],
            "report_only": [rule.report_only for rule in record.rules], "text": [rule.text for rule in record.rules],
        })  # fmt: skip
        connection.register("new_rules", rules)
        connection.execute("INSERT INTO store.rules SELECT * FROM new_rules")
        connection.unregister("new_rules")
    if record.identities:
        identities = pa.table({
            "ring": pa.array([ring] * len(record.identities), pa.uint32()),
            "revision": pa.array([record.revision] * len(record.identities), pa.uint32()),
            "id": pa.array([one.id for one in record.identities], pa.uint32()),
            "name": [one.name for one in record.identities],
            "labels": pa.array([list(one.labels.items()) for one in record.identities], _TEXTS),
            "addresses": pa.array([one.addresses for one in record.identities], pa.list_(pa.string())),
        })  # fmt: skip
        connection.register("new_identities", identities)
        connection.execute("INSERT INTO store.identities SELECT * FROM new_identities")
        connection.unregister("new_identities")
    return True


def check(record: R) -> R:
    """`record`, if every number in it fits its column. Raises EnvelopeError: it could never be stored."""
    try:
        if isinstance(record, LossRecord):
            loss_table([(0, record)])
            fits = 0 <= record.time < 1 << 63 and record.stride > 0
        else:
            fits = (
                0 <= record.time < 1 << 63
                and 0 <= record.end < 1 << 64
                and all(0 <= number < 1 << 32 for number in (record.revision, record.from_revision))
                and all(0 <= rule.id < 1 << 16 for rule in record.rules)
                and all(0 <= one.id < 1 << 32 for one in record.identities)
            )
    except (pa.ArrowException, OverflowError) as error:
        raise EnvelopeError(f"a number does not fit: {error}") from error
    if not fits:
        raise EnvelopeError("a number does not fit its column")
    return record
