"""What becomes of recorded traffic under another policy, summed up as it is found: rows come by the million, sums are
few."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa


class Change(IntEnum):
    """What becomes of a row. From MIDSTREAM on it cannot be told; the word is the cause."""

    UNCHANGED = 0
    NEWLY_DENIED = 1
    NEWLY_ALLOWED = 2
    MIDSTREAM = 3  # nobody saw who had begun it
    HEADLESS_FRAGMENT = 4  # its ports were in a packet that was not seen
    ICMP_UNRELATED = 5  # what it quotes was not known
    BUILTIN = 6  # a built-in rule that was off then might allow it: that takes more than a tuple
    HOST_UNKNOWN = 7  # a rule speaks of the node's own addresses, and they were not recorded
    ROLLED_UP = 8  # of an hour that the span cuts only the whole is known
    UNTRACKED = 9  # without a flow it is judged both ways, and of the other way the port is not known


@dataclass
class Sums:
    """Of some rows; times in ns since 1970 UTC, None if there are none. `crossing`: flows older than the span."""

    flows: int = 0
    packets: int = 0
    bytes: int = 0
    crossing: int = 0
    first_seen: int | None = None
    last_seen: int | None = None
    lower_bound: bool = False

    def add(self, other: "Sums") -> None:
        """Both together."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_seen = min((t for t in (self.first_seen, other.first_seen) if t is not None), default=None)
        self.last_seen = max((t for t in (self.last_seen, other.last_seen) if t is not None), default=None)
        self.lower_bound |= other.lower_bound


COUNTS = ("flows", "packets", "bytes", "crossing")
FOLD = 1 << 20
"""Rows that changed are gathered up to so many, then summed: at most 100 MB."""
_AGGREGATES = [*((name, "sum") for name in COUNTS), ("first_seen", "min"), ("last_seen", "max"), ("lower_bound", "any")]
KEY = {
    "identities": {"src_identity": (32, 32), "dst_identity": (0, 32)},
    "rules": {"dport": (48, 16), "rule_before": (32, 16), "rule_after": (16, 16), "proto": (8, 8), "change": (0, 8)},
    "rest": {"names": (2, 62), "denied_before": (1, 1), "denied_after": (0, 1)},
}
"""What an entry is about: number of 64 bits → field → its place and width in it. Three numbers group faster than ten.

Numbers as in verdicts; `names` says whose `rule_before` and the identities are."""
Columns = dict[str, np.ndarray]
_Rows = Mapping[str, np.ndarray]


class Changes:
    """Sums by KEY of what is not unchanged, and the sums of that."""

    def __init__(self) -> None:
        self.unchanged = Sums()
        self._parts: list[pa.Table] = []
        self._waiting = 0

    def add(self, change: np.ndarray, rows: _Rows, names: int) -> None:
        """Add n rows: `change` uint8[n]; `rows` has the other fields of KEY, and those of Sums, as arrays of n."""
        other = np.flatnonzero(change)
        if len(other) < len(change):
            self.unchanged.add(added(rows, None if not len(other) else np.flatnonzero(change == Change.UNCHANGED)))
        if len(other):
            self._parts.append(_packed(change, rows, names, other))
            self._waiting += len(other)
            if self._waiting >= FOLD:
                self._fold()
                self._waiting = 0

    def _fold(self) -> None:
        if self._parts:
            folded = pa.concat_tables(self._parts).group_by(list(KEY)).aggregate(_AGGREGATES)
            self._parts = [folded.rename_columns({f"{name}_{how}": name for name, how in _AGGREGATES})]

    def columns(self) -> Columns:
        """What was added, a row a key: the fields of KEY and of Sums as arrays of n."""
        self._fold()
        if not self._parts:
            return {}
        packed = {name: self._parts[0][name].to_numpy() for name in self._parts[0].column_names}
        key = {
            name: packed[column] >> np.uint64(shift) & np.uint64((1 << bits) - 1)
            for column, fields in KEY.items()
            for name, (shift, bits) in fields.items()
        }
        return key | {name: packed[name] for name, _ in _AGGREGATES}


def added(rows: _Rows, some: np.ndarray | None = None) -> Sums:
    """The sums of the rows `some`, one at least; None: of all."""
    part = {name: rows[name] if some is None else rows[name][some] for name, _ in _AGGREGATES}
    flows, packets, size, crossing = (int(part[name].sum()) for name in COUNTS)
    times = int(part["first_seen"].min()), int(part["last_seen"].max())
    return Sums(flows, packets, size, crossing, *times, bool(part["lower_bound"].any()))


def _packed(change: np.ndarray, rows: _Rows, names: int, some: np.ndarray) -> pa.Table:
    """Of the rows `some` KEY and Sums."""
    given = {"change": change[some], "names": np.full(len(some), names)}
    table = {}
    for column, fields in KEY.items():
        table[column] = np.zeros(len(some), "<u8")
        for name, (shift, _) in fields.items():
            values = given[name] if name in given else rows[name][some]
            table[column] |= values.astype("<u8") << np.uint64(shift)
    for name, _ in _AGGREGATES:
        table[name] = rows[name][some]
    return pa.table({name: pa.array(column) for name, column in table.items()})
