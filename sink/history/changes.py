"""What becomes of recorded traffic under another policy, summed up as it is found: rows come by the million, sums are
few."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

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


class Key(NamedTuple):
    """What an entry is about. Numbers as in verdicts; `names` says whose `rule_before` and the identities are."""

    change: Change
    src_identity: int
    dst_identity: int
    proto: int
    dport: int
    names: int
    rule_before: int
    rule_after: int
    denied_before: bool
    denied_after: bool


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
_KEYS = ("identities", "rules", "rest")
_Rows = Mapping[str, np.ndarray]


class Changes:
    """Sums by Key of what is not unchanged, and the sums of that."""

    def __init__(self) -> None:
        self.unchanged = Sums()
        self._parts: list[pa.Table] = []
        self._waiting = 0

    def add(self, change: np.ndarray, rows: _Rows, names: int) -> None:
        """Add n rows: `change` uint8[n]; `rows` has the fields of Key but `names`, and of Sums, as arrays of n."""
        other = np.flatnonzero(change)
        if len(other) < len(change):
            self.unchanged.add(_sums(rows, None if not len(other) else np.flatnonzero(change == Change.UNCHANGED)))
        if len(other):
            self._parts.append(_packed(change, rows, names, other))
            self._waiting += len(other)
            if self._waiting >= FOLD:
                self._fold()
                self._waiting = 0

    def _fold(self) -> None:
        if self._parts:
            folded = pa.concat_tables(self._parts).group_by(list(_KEYS)).aggregate(_AGGREGATES)
            self._parts = [folded.rename_columns({f"{name}_{how}": name for name, how in _AGGREGATES})]

    def entries(self) -> list[tuple[Key, Sums]]:
        """What was added, an entry a Key."""
        self._fold()
        found = []
        for part in self._parts:
            columns = {name: part[name].to_pylist() for name in part.column_names}
            for i in range(len(part)):
                key = _unpacked(*(columns[name][i] for name in _KEYS))
                found.append((key, Sums(**{name: columns[name][i] for name, _ in _AGGREGATES})))
        return found


def _sums(rows: _Rows, some: np.ndarray | None) -> Sums:
    """Of the rows `some`, one at least; None: of all."""
    part = {name: rows[name] if some is None else rows[name][some] for name, _ in _AGGREGATES}
    flows, packets, size, crossing = (int(part[name].sum()) for name in COUNTS)
    times = int(part["first_seen"].min()), int(part["last_seen"].max())
    return Sums(flows, packets, size, crossing, *times, bool(part["lower_bound"].any()))


def _packed(change: np.ndarray, rows: _Rows, names: int, some: np.ndarray) -> pa.Table:
    """Of the rows `some` Key as three numbers of 64 bits, which group faster than ten columns, and Sums."""
    fields = {
        "identities": (("src_identity", 32), ("dst_identity", 0)),
        "rules": (("dport", 48), ("rule_before", 32), ("rule_after", 16), ("proto", 8)),
        "rest": (("denied_before", 1), ("denied_after", 0)),
    }
    table = {key: _joined(rows, some, parts) for key, parts in fields.items()}
    table["rules"] |= change[some]
    table["rest"] |= np.uint64(names << 2)
    for name, _ in _AGGREGATES:
        table[name] = rows[name][some]
    return pa.table({name: pa.array(column) for name, column in table.items()})


def _joined(rows: _Rows, some: np.ndarray, parts: tuple[tuple[str, int], ...]) -> np.ndarray:
    """Columns of the rows `some`, each shifted to its place: uint64."""
    out = np.zeros(len(some), "<u8")
    for name, shift in parts:
        out |= rows[name][some].astype("<u8") << np.uint64(shift)
    return out


def _unpacked(identities: int, rules: int, rest: int) -> Key:
    return Key(
        Change(rules & 0xFF), identities >> 32, identities & 0xFFFFFFFF, rules >> 8 & 0xFF, rules >> 48, rest >> 2,
        rules >> 32 & 0xFFFF, rules >> 16 & 0xFFFF, bool(rest & 2), bool(rest & 1),
    )  # fmt: skip
