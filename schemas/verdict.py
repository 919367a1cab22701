"""The verdict event: 112 bytes in the ring, the columns of the wire, the columns of the store.

Each field is described here and nowhere else; C, numpy, wire and docs are made from FIELDS.
"""

from dataclasses import dataclass

import numpy as np

from schemas.structs import Field, Struct
from schemas.structs import dtype as struct_dtype


@dataclass(frozen=True)
class Column(Field):
    """A field with the type its raw value has in DuckDB (`sql`) and its unit."""

    sql: str = ""
    unit: str = ""


FIELDS: tuple[Column, ...] = (
    Column("time", "u64", "new: first packet; sample, change: this packet; end: last packet", sql="UBIGINT",
           unit="ns since boot (CLOCK_MONOTONIC); wall clock after adding the envelope's `clock`"),
    Column("flow_id", "u64", "unique within the ring; 0: untracked", sql="UBIGINT"),
    Column("src", "u8", "the opener's address; IPv4 in the last 4 bytes", 16, sql="UHUGEINT"),
    Column("dst", "u8", "the responder's address", 16, sql="UHUGEINT"),
    Column("packets_original", "u64", "so far, from the opener", sql="UBIGINT", unit="packets"),
    Column("bytes_original", "u64", "so far, from the opener", sql="UBIGINT", unit="bytes, layer 2 without FCS"),
    Column("packets_reply", "u64", "so far, back to the opener", sql="UBIGINT", unit="packets"),
    Column("bytes_reply", "u64", "so far, back to the opener", sql="UBIGINT", unit="bytes, layer 2 without FCS"),
    Column("revision", "u32", "of the policy that decided", sql="UINTEGER"),
    Column("src_identity", "u32", "number within the revision", sql="UINTEGER"),
    Column("dst_identity", "u32", "number within the revision", sql="UINTEGER"),
    Column("ifindex", "u32", "interface of this packet", sql="UINTEGER"),
    Column("sport", "u16", "the opener's port; ICMP: the id", sql="USMALLINT"),
    Column("dport", "u16", "the responder's port; ICMP: the opener's type", sql="USMALLINT"),
    Column("rule", "u16", "number within the revision; below 64: RuleId", sql="USMALLINT"),
    Column("family", "u8", "4 or 6; 0: not known (malformed)", sql="UTINYINT"),
    Column("proto", "u8", "IANA protocol number", sql="UTINYINT"),
    Column("event", "u8", "EventKind", sql="UTINYINT"),
    Column("decision", "u8", "Decision", sql="UTINYINT"),
    Column("outcome", "u8", "Outcome", sql="UTINYINT"),
    Column("reason", "u8", "Reason", sql="UTINYINT"),
    Column("direction", "u8", "Direction of this packet", sql="UTINYINT"),
    Column("tcp_flags_original", "u8", "all flags seen so far", sql="UTINYINT"),
    Column("tcp_flags_reply", "u8", "all flags seen so far", sql="UTINYINT"),
    Column("flags", "u8", "Flag bits", sql="UTINYINT"),
)  # fmt: skip

VERDICT_EVENT = Struct("verdict_event", "One record of the ring; all have this size.", FIELDS)
DTYPE: np.dtype = struct_dtype(VERDICT_EVENT)
SIZE = DTYPE.itemsize
STRIDE = (SIZE + 8 + 7) // 8 * 8
"""Bytes from one record to the next in the ring: 8 of header, then the record, rounded up to 8."""
