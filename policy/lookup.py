"""Longest-prefix match over arrays of addresses.

The prefixes of a family cut its line of addresses into intervals; each interval's entry is that of the longest prefix
around it, so a binary search finds it.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

ADDRESS = np.dtype("V16")
_MAPPED = 0xFFFF << 32  # ::ffff:0:0


_CELLS = 4
"""Cells a number: with more of them a search takes fewer steps and more cache."""


@dataclass(frozen=True)
class Starts:
    """Ascending numbers in buckets, to be searched for the last of a bucket that is not above a key.

    The range of a bucket's numbers is cut into cells of equal width, _CELLS or so a number: a few steps lead from where
    a cell begins to the answer, wherever prefixes crowd. All keys take them together. (`take` is a quarter faster than
    an index.)
    """

    values: np.ndarray
    last: np.ndarray  # per bucket (intp): index of its last number
    low: np.ndarray  # its first number
    span: np.ndarray  # from its first number to its last
    shift: np.ndarray  # bits of a cell's width
    first: np.ndarray  # intp: its first cell
    cells: np.ndarray  # intp: index of the last number before the cell
    steps: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, ends: np.ndarray) -> "Starts":
        """`ends` (intp): per bucket the index behind its last number."""
        counts = np.diff(ends, prepend=0)
        some = counts > 0
        low, span = np.zeros((2, len(ends)), values.dtype)
        low[some] = values[ends[some] - counts[some]]
        span[some] = values[ends[some] - 1] - low[some]
        bits = [np.frexp(number.astype("<f8"))[1] for number in (span, _CELLS * counts)]
        shift = np.clip(bits[0] - bits[1], 0, 8 * values.itemsize - 1).astype(values.dtype)
        cells = (span >> shift).astype(np.intp) + 1
        first = np.cumsum(cells) - cells
        bucket = np.repeat(np.arange(len(ends)), counts)
        cell = first[bucket] + ((values - low[bucket]) >> shift[bucket]).astype(np.intp)
        held = np.bincount(cell, minlength=int(cells.sum()))
        steps = tuple(1 << bit for bit in reversed(range(int(held.max()).bit_length())))
        return cls(values, ends - 1, low, span, shift, first, np.cumsum(held) - held - 1, steps)

    def find(self, keys: np.ndarray, bucket: np.ndarray) -> np.ndarray:
        """Index per key; that before the bucket if all its numbers are above the key. `bucket`: an index each."""
        low = self.low.take(bucket)
        cell = np.maximum(keys, low)
        cell -= low
        np.minimum(cell, self.span.take(bucket), out=cell)
        cell >>= self.shift.take(bucket)
        found = self.cells.take(self.first.take(bucket) + cell.astype(np.intp))
        last = self.last.take(bucket)
        for width in self.steps:
            # A step beyond the last number is one to it: it is the answer, or the next steps are short enough.
            step = np.minimum(found + np.intp(width), last)
            step -= found
            step *= self.values.take(found + step) <= keys  # a product, for masks and choices cost a branch a key
            found += step
        return found


@dataclass(frozen=True)
class Lookup:
    """Per family the intervals of addresses and the row each has; per row what policy knows of it.

    Row 0 is that of addresses in no prefix; row i + 1 that of prefix i.
    """

    v4: Starts  # uint32, by the upper 16 bits
    v4_rows: np.ndarray
    v6: Starts  # uint64: distinct upper halves, by the upper 16 bits
    v6_low: Starts  # uint64: lower half of each interval's start, by upper half
    v6_rows: np.ndarray
    identity: np.ndarray  # uint32
    source_class: np.ndarray  # intp
    destination_class: np.ndarray  # intp

    @classmethod
    def of(cls, prefixes: np.ndarray) -> "Lookup":
        """From a prefix table (regions.PREFIX_DTYPE), sorted by family, address, length."""
        starts4, rows4 = _intervals(prefixes, 4)
        starts6, rows6 = _intervals(prefixes, 6)
        high, counts = np.unique(np.array([start >> 64 for start in starts6], "<u8"), return_counts=True)
        low = np.array([start & 0xFFFFFFFFFFFFFFFF for start in starts6], "<u8")
        return cls(
            v4=_by_upper_bits(np.array(starts4, "<u4")),
            v4_rows=np.array(rows4, np.intp),
            v6=_by_upper_bits(high),
            v6_low=Starts.of(low, np.cumsum(counts)),
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
        return self.v4_rows.take(self.v4.find(keys, keys >> np.uint32(16)))

    def _rows6(self, addresses: np.ndarray) -> np.ndarray:
        halves = addresses.view(">u8").reshape(-1, 2)
        high = halves[:, 0].astype("<u8")
        half = self.v6.find(high, (high >> np.uint64(48)).view(np.intp))
        found = self.v6_low.last.take(half)  # right if the address's upper half is above that of the start
        same = np.flatnonzero(self.v6.values.take(half) == high)
        if len(same):
            found[same] = self.v6_low.find(halves[:, 1].take(same).astype("<u8"), half.take(same))
        return self.v6_rows.take(found)


def _by_upper_bits(values: np.ndarray) -> Starts:
    """Buckets of the upper 16 bits; the first of `values`, which ascend, is 0."""
    firsts = np.arange(1, 1 << 16, dtype=values.dtype) << (8 * values.itemsize - 16)
    return Starts.of(values, np.append(np.searchsorted(values, firsts), len(values)))


def line(prefixes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where ranges of addresses begin, both families on one line: upper and lower halves (uint64[n]) and the rows that
    Lookup gives them (intp[n]).

    IPv4 stands at ::ffff:0:0/96. What a policy says of IPv6 there is left out: no packet can have such an address.
    """
    starts6, rows6 = _intervals(prefixes, 6)
    starts4, rows4 = _intervals(prefixes, 4)
    before, after = bisect_left(starts6, _MAPPED), bisect_right(starts6, _MAPPED + (1 << 32))
    starts = [*starts6[:before], *(_MAPPED + start for start in starts4), _MAPPED + (1 << 32), *starts6[after:]]
    rows = [*rows6[:before], *rows4, rows6[after - 1], *rows6[after:]]
    halves = np.frombuffer(b"".join([start.to_bytes(16, "big") for start in starts]), ">u8").reshape(-1, 2)
    return halves[:, 0].astype("<u8"), halves[:, 1].astype("<u8"), np.array(rows, np.intp)


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
