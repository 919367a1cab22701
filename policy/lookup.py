"""Longest-prefix match over arrays of addresses.

The prefixes of a family cut its line of addresses into intervals; each interval's entry is that of the longest prefix
around it, so one binary search finds it.
"""

from dataclasses import dataclass

import numpy as np

ADDRESS = np.dtype("V16")
_HALVES = np.dtype([("high", ">u8"), ("low", ">u8")])


@dataclass(frozen=True)
class Lookup:
    """Per family: where the intervals begin, and the row of `identity`, `source_class`, … that each has.

    Row 0 is that of addresses in no prefix; row i + 1 that of prefix i.
    """

    v4_starts: np.ndarray  # uint32
    v4_rows: np.ndarray
    v6_high: np.ndarray  # uint64
    v6_low: np.ndarray  # uint64
    v6_rows: np.ndarray
    identity: np.ndarray  # uint32
    source_class: np.ndarray  # intp
    destination_class: np.ndarray  # intp

    @classmethod
    def of(cls, prefixes: np.ndarray) -> "Lookup":
        """From a prefix table (regions.PREFIX_DTYPE), sorted by family, address, length."""
        starts4, rows4 = _intervals(prefixes, 4)
        starts6, rows6 = _intervals(prefixes, 6)
        return cls(
            v4_starts=np.array(starts4, "<u4"),
            v4_rows=np.array(rows4, np.intp),
            v6_high=np.array([start >> 64 for start in starts6], "<u8"),
            v6_low=np.array([start & 0xFFFFFFFFFFFFFFFF for start in starts6], "<u8"),
            v6_rows=np.array(rows6, np.intp),
            identity=np.concatenate([np.zeros(1, "<u4"), prefixes["identity"]]),
            source_class=np.concatenate([[0], prefixes["source_class"]]).astype(np.intp),
            destination_class=np.concatenate([[0], prefixes["destination_class"]]).astype(np.intp),
        )

    def rows(self, addresses: np.ndarray, family: np.ndarray) -> np.ndarray:
        """Row per address. `addresses`: V16[n], `family`: uint8[n]; other families than 4 and 6 get row 0."""
        is6 = family == 6
        if not is6.any():
            found = self._rows4(addresses)
            return found if (family == 4).all() else np.where(family == 4, found, 0)
        if is6.all():
            return self._rows6(addresses)
        out = np.zeros(len(addresses), np.intp)
        is4 = family == 4
        out[is4] = self._rows4(addresses[is4])
        out[is6] = self._rows6(addresses[is6])
        return out

    def _rows4(self, addresses: np.ndarray) -> np.ndarray:
        keys = addresses.view(">u4").reshape(-1, 4)[:, 3].astype("<u4")
        return self.v4_rows[np.searchsorted(self.v4_starts, keys, "right") - 1]

    def _rows6(self, addresses: np.ndarray) -> np.ndarray:
        halves = addresses.view(_HALVES)
        high, low = halves["high"].astype("<u8"), halves["low"].astype("<u8")
        begin = np.searchsorted(self.v6_high, high, "left")
        end = np.searchsorted(self.v6_high, high, "right")
        # Among starts with the same upper half: how many have a lower half that is not above the address's.
        todo = np.flatnonzero(begin < end)
        while len(todo):
            middle = (begin[todo] + end[todo]) >> 1
            right = self.v6_low[middle] <= low[todo]
            begin[todo] = np.where(right, middle + 1, begin[todo])
            end[todo] = np.where(right, end[todo], middle)
            todo = todo[begin[todo] < end[todo]]
        return self.v6_rows[begin - 1]


def _intervals(prefixes: np.ndarray, family: int) -> tuple[list[int], list[int]]:
    """Starts (ascending, the first 0) and rows of the intervals of one family."""
    bits = 32 if family == 4 else 128
    top = 1 << bits
    starts, rows = [0], [0]
    open_prefixes: list[tuple[int, int]] = []  # end (exclusive), row around it

    def begin(start: int, row: int) -> None:
        if starts[-1] == start:
            rows[-1] = row
        else:
            starts.append(start)
            rows.append(row)

    def close(until: int) -> None:
        while open_prefixes and open_prefixes[-1][0] <= until:
            end, outer = open_prefixes.pop()
            if end < top:
                begin(end, outer)

    chosen = np.flatnonzero(prefixes["family"] == family)
    raw = np.ascontiguousarray(prefixes["addr"]).tobytes()
    lengths = prefixes["length"].tolist()
    for index in chosen.tolist():
        addr = int.from_bytes(raw[16 * index : 16 * index + 16], "big")
        close(addr)
        outer = rows[-1]
        begin(addr, index + 1)
        open_prefixes.append((addr + (1 << (bits - lengths[index])), outer))
    close(top)
    return starts, rows
