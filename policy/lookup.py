"""Longest-prefix match over arrays of addresses.

The prefixes of a family cut its line of addresses into intervals; each interval's entry is that of the longest prefix
around it, so a binary search finds it.
"""

from dataclasses import dataclass

import numpy as np

ADDRESS = np.dtype("V16")


_BUCKET_BITS = 16


@dataclass(frozen=True)
class Starts:
    """Ascending numbers, the first 0, to be searched for the last one that is not above a key.

    All keys take their steps together, without branches: among 6,000 a random key takes 38 ns, with np.searchsorted
    76 ns (1 M uint32 keys, 16,384 at a time). `values` is padded at its end so that no step leaves it.
    """

    values: np.ndarray
    size: int
    steps: tuple[int, ...]

    @classmethod
    def of(cls, numbers: np.ndarray, longest: int) -> "Starts":
        """`longest`: the most that an answer is above the position a search begins at."""
        steps = tuple(1 << bit for bit in reversed(range(longest.bit_length())))
        padding = np.full(sum(steps), np.iinfo(numbers.dtype).max, numbers.dtype)
        return cls(np.concatenate([numbers, padding]), len(numbers), steps)

    def find(self, keys: np.ndarray, begin: np.ndarray) -> np.ndarray:
        """Position per key. `begin` (intp, changed): a position that is not above the answer."""
        for step in self.steps:
            begin += (self.values[begin + step] <= keys) * np.intp(step)
        if self.steps:
            np.minimum(begin, self.size - 1, out=begin)  # the highest key is not below the padding
        return begin


@dataclass(frozen=True)
class Lookup:
    """Per family the intervals of addresses and the row each has; per row what policy knows of it.

    Row 0 is that of addresses in no prefix; row i + 1 that of prefix i.
    """

    v4: Starts  # uint32
    v4_buckets: np.ndarray  # upper 16 bits → interval that holds the first address with them
    v4_rows: np.ndarray
    v6: Starts  # uint64: distinct upper halves
    v6_ends: np.ndarray  # per upper half: index behind its last interval
    v6_low: np.ndarray  # uint64: lower half of each interval's start
    v6_rows: np.ndarray
    identity: np.ndarray  # uint32
    source_class: np.ndarray  # intp
    destination_class: np.ndarray  # intp

    @classmethod
    def of(cls, prefixes: np.ndarray) -> "Lookup":
        """From a prefix table (regions.PREFIX_DTYPE), sorted by family, address, length."""
        starts4, rows4 = _intervals(prefixes, 4)
        starts6, rows6 = _intervals(prefixes, 6)
        v4 = np.array(starts4, "<u4")
        firsts = np.arange(1 << _BUCKET_BITS, dtype="<u4") << np.uint32(32 - _BUCKET_BITS)
        buckets = np.searchsorted(v4, firsts, "right") - 1
        widest = int(np.diff(np.append(buckets, len(v4) - 1)).max())
        high, ends = np.unique(np.array([start >> 64 for start in starts6], "<u8"), return_counts=True)
        return cls(
            v4=Starts.of(v4, widest),
            v4_buckets=buckets.astype(np.intp),
            v4_rows=np.array(rows4, np.intp),
            v6=Starts.of(high, len(high) - 1),
            v6_ends=np.cumsum(ends),
            v6_low=np.array([start & 0xFFFFFFFFFFFFFFFF for start in starts6], "<u8"),
            v6_rows=np.array(rows6, np.intp),
            identity=np.concatenate([np.zeros(1, "<u4"), prefixes["identity"]]),
            source_class=np.concatenate([[0], prefixes["source_class"]]).astype(np.intp),
            destination_class=np.concatenate([[0], prefixes["destination_class"]]).astype(np.intp),
        )

    def rows(self, addresses: np.ndarray, family: np.ndarray) -> np.ndarray:
        """Row per address. `addresses`: V16[n], `family`: uint8[n]; other families than 4 and 6 get row 0."""
        is4, is6 = family == 4, family == 6
        if is4.all():
            return self._rows4(addresses)
        if is6.all():
            return self._rows6(addresses)
        out = np.zeros(len(addresses), np.intp)
        out[is4] = self._rows4(addresses[is4])
        out[is6] = self._rows6(addresses[is6])
        return out

    def _rows4(self, addresses: np.ndarray) -> np.ndarray:
        keys = addresses.view(">u4").reshape(-1, 4)[:, 3].astype("<u4")
        begin = self.v4_buckets[keys >> np.uint32(32 - _BUCKET_BITS)]
        return self.v4_rows[self.v4.find(keys, begin)]

    def _rows6(self, addresses: np.ndarray) -> np.ndarray:
        halves = addresses.view(">u8").reshape(-1, 2)
        high = halves[:, 0].astype("<u8")
        half = self.v6.find(high, np.zeros(len(high), np.intp))
        found = self.v6_ends[half] - 1  # right if the address's upper half is above that of the start
        same = np.flatnonzero(self.v6.values[half] == high)
        if len(same):
            found[same] = self._among_lower_halves(half[same], halves[same, 1].astype("<u8"))
        return self.v6_rows[found]

    def _among_lower_halves(self, half: np.ndarray, low: np.ndarray) -> np.ndarray:
        """The last interval that starts in upper half `half` with a lower half not above `low`, or the one before."""
        last = self.v6_ends[half] - 1
        found = np.where(half > 0, self.v6_ends[half - 1], 0) - 1
        for bit in reversed(range(int((last - found).max()).bit_length())):
            # A step beyond the last interval is one to it: it is the answer, or the next steps are short enough.
            step = np.minimum(found + np.intp(1 << bit), last)
            step -= found
            step *= self.v6_low[found + step] <= low  # a product, for masks and choices cost a branch a key
            found += step
        return found


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
