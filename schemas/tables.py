"""The tables of the store (DuckDB), as numbered migrations.

People query the views of `sink.history.views`, in schema `main`; what is here lies in schema `store` and may change
with any migration. Every table is INSERT-only on the hot path: one UPDATEd row keeps DuckDB from checkpointing while
any reader is open, and the write-ahead log then grows without bound. Rows of `watermarks` and `ranges` are merged
now and then, off the hot path.

A released migration is never edited; a change is a new one at the end of MIGRATIONS.
"""

from schemas.verdict import FIELDS


def _verdict_columns() -> list[tuple[str, str]]:
    """Name and DuckDB type of each stored column of a verdict: as on the wire, but for three things.

    A ring is a number (`store.rings`), `position` is the event's place in it, `time` is wall clock, and an address is
    two UBIGINT halves, which compress far better than one UHUGEINT (IPv4: the high half is constant).
    """
    columns = [("ring", "UINTEGER"), ("position", "UBIGINT")]
    for field in FIELDS:
        if field.sql == "UHUGEINT":
            columns += [(f"{field.name}_hi", "UBIGINT"), (f"{field.name}_lo", "UBIGINT")]
        else:
            columns.append((field.name, "TIMESTAMP_NS" if field.name == "time" else field.sql))
    return columns


VERDICT_COLUMNS: tuple[tuple[str, str], ...] = tuple(_verdict_columns())
"""Columns of store.verdicts in order."""


def _columns(columns: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns)


_VERSION_1 = (
    "CREATE TABLE store.rings (id UINTEGER, node VARCHAR, ring VARCHAR, stride UINTEGER, first_stored TIMESTAMP_NS)",
    f"CREATE TABLE store.verdicts ({_columns(VERDICT_COLUMNS)})",
    # Half-open [first, past), in bytes of the ring: what was stored, whether or not retention deleted it since.
    "CREATE TABLE store.ranges (ring UINTEGER, first UBIGINT, past UBIGINT)",
    # Holes between ranges that nothing can fill any more. A late arrival takes its part out again.
    "CREATE TABLE store.gaps (ring UINTEGER, first UBIGINT, past UBIGINT, time TIMESTAMP_NS, cause VARCHAR)",
    # A stream made anew, or set back, is another one: `created` alone does not tell (a restored backup keeps it).
    "CREATE TABLE store.streams (id UINTEGER, stream VARCHAR, created VARCHAR, time TIMESTAMP_NS, note VARCHAR)",
    "CREATE TABLE store.watermarks (stream UINTEGER, sequence UBIGINT)",
    # Sequences [first, last] that the stream no longer had when the sink came to read them.
    "CREATE TABLE store.stream_gaps (stream UINTEGER, first UBIGINT, last UBIGINT, time TIMESTAMP_NS)",
    """CREATE TABLE store.policy (time TIMESTAMP_NS, ring UINTEGER, kind VARCHAR, revision UINTEGER, mode VARCHAR,
        "default" VARCHAR, hash VARCHAR, yaml VARCHAR, who VARCHAR, from_revision UINTEGER, from_mode VARCHAR,
        from_hash VARCHAR, state VARCHAR, error VARCHAR, past UBIGINT)""",
    """CREATE TABLE store.rules (ring UINTEGER, revision UINTEGER, id USMALLINT, name VARCHAR, action VARCHAR,
        report_only BOOLEAN, text VARCHAR)""",
    """CREATE TABLE store.identities (ring UINTEGER, revision UINTEGER, id UINTEGER, name VARCHAR,
        labels MAP(VARCHAR, VARCHAR), addresses VARCHAR[])""",
    """CREATE TABLE store.loss (time TIMESTAMP_NS, ring UINTEGER, revision UINTEGER, mode VARCHAR, stride UINTEGER,
        produced UBIGINT, consumed UBIGINT, ring_bytes UBIGINT, counters MAP(VARCHAR, UBIGINT),
        judged_packets UBIGINT, judged_bytes UBIGINT, flows_live UBIGINT, flows_packets UBIGINT, flows_bytes UBIGINT,
        flows_due UBIGINT, interfaces MAP(VARCHAR, VARCHAR), collector MAP(VARCHAR, UBIGINT), final BOOLEAN)""",
    """CREATE TABLE store.retention (time TIMESTAMP_NS, cause VARCHAR, ring UINTEGER, rows UBIGINT,
        oldest TIMESTAMP_NS, newest TIMESTAMP_NS)""",
)

PAIR_KEYS: tuple[tuple[str, str], ...] = (
    ("src_hi", "UBIGINT"), ("src_lo", "UBIGINT"), ("dst_hi", "UBIGINT"), ("dst_lo", "UBIGINT"), ("family", "UTINYINT"),
    ("proto", "UTINYINT"), ("dport", "USMALLINT"), ("src_identity", "UINTEGER"), ("dst_identity", "UINTEGER"),
    ("revision", "UINTEGER"), ("rule", "USMALLINT"), ("decision", "UTINYINT"), ("outcome", "UTINYINT"),
    ("reason", "UTINYINT"), ("flags", "UTINYINT"), ("duplicate", "BOOLEAN"),
)  # fmt: skip
"""What a row of a roll-up stands for, beside its ring and time: who spoke to whom, and what was decided by which rule.

`duplicate`: another node counts these conversations already."""
PAIR_SUMS: tuple[tuple[str, str], ...] = (
    ("flows", "UBIGINT"), ("packets_original", "UBIGINT"), ("bytes_original", "UBIGINT"), ("packets_reply", "UBIGINT"),
    ("bytes_reply", "UBIGINT"),
)  # fmt: skip
"""`flows`: opened in this minute or hour; the rest: what its events added to their flows."""

_PAIRS = (
    f"(ring UINTEGER, time TIMESTAMP_NS, {_columns(PAIR_KEYS)}, {_columns(PAIR_SUMS)},"
    " first_seen TIMESTAMP_NS, last_seen TIMESTAMP_NS)"
)
_VERSION_2 = (
    # Roll-ups (sink.store.rollup): `time` is the start of the minute or the hour, UTC.
    f"CREATE TABLE store.pairs_1m {_PAIRS}",
    f"CREATE TABLE store.pairs_1h {_PAIRS}",
    # Half-open [first, past) of a ring, in bytes, whose events are in store.pairs_1m.
    "CREATE TABLE store.rolled (ring UINTEGER, first UBIGINT, past UBIGINT)",
    # Hours before this one are in store.pairs_1h; the last row counts.
    "CREATE TABLE store.folded (before TIMESTAMP_NS)",
    # The last event of each flow that had not ended when it was rolled up: what its next event is compared with.
    # `ended`: kept a while, so that another node's record of the same conversation is known when it comes later.
    f"""CREATE TABLE store.open_flows (ring UINTEGER, flow_id UBIGINT, position UBIGINT, time TIMESTAMP_NS,
        first_seen TIMESTAMP_NS, sport USMALLINT, {_columns(PAIR_KEYS)}, {_columns(PAIR_SUMS[1:])}, ended BOOLEAN)""",
)

_VERSION_3 = (
    # Of a deletion of verdicts: the position behind the last of them. Of one before it was recorded: where roll-ups
    # ended, for nothing behind that was deleted.
    "ALTER TABLE store.retention ADD COLUMN past UBIGINT",
    """UPDATE store.retention SET past = (SELECT max(r.past) FROM store.rolled AS r WHERE r.ring = retention.ring)
        WHERE cause IN ('age', 'size')""",
    # By how many ns a node's wall clock is ahead of the ring's own, from the event at `position` (of `time`) on: a row
    # where it was first known, and one where it was set.
    "CREATE TABLE store.clocks (ring UINTEGER, position UBIGINT, time TIMESTAMP_NS, clock BIGINT)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2, _VERSION_3)
"""MIGRATIONS[i] takes a database of version i to version i + 1."""

VERSION = len(MIGRATIONS)
"""The version this program writes. A database of a higher one is left alone."""

FOUNDATION = (
    "CREATE SCHEMA IF NOT EXISTS store",
    "CREATE TABLE IF NOT EXISTS store.schema_version (version UINTEGER, time TIMESTAMP_NS)",
)
