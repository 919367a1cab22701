"""Which stretches of a ring are held: sets of half-open ranges [first, past) of byte positions.

Few ranges exist at any time (acknowledged batches merge at once), so sorted lists and bisection do.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """Disjoint, sorted, merged ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._pasts: list[int] = []
        for first, past in sorted(ranges):
            self.add(first, past)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._pasts, strict=True)

    def __len__(self) -> int:
        return len(self._firsts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def copy(self) -> "RangeSet":
        """An independent one."""
        out = RangeSet()
        out._firsts, out._pasts = self._firsts.copy(), self._pasts.copy()
        return out

    def add(self, first: int, past: int) -> None:
        """Add [first, past), merging what touches it."""
        if first >= past:
            return
        i = bisect_left(self._pasts, first)  # the first range that ends at or behind `first`
        j = bisect_right(self._firsts, past)  # behind the last range that begins at or before `past`
        if i < j:
            first, past = min(first, self._firsts[i]), max(past, self._pasts[j - 1])
        self._firsts[i:j], self._pasts[i:j] = [first], [past]

    def remove(self, first: int, past: int) -> None:
        """Take [first, past) out."""
        rest = RangeSet([(first, past)])
        parts = [part for a, b in self for part in rest.missing(a, b)]
        self._firsts, self._pasts = [a for a, _ in parts], [b for _, b in parts]

    def missing(self, first: int, past: int) -> list[tuple[int, int]]:
        """The parts of [first, past) that are not held, in order."""
        out = []
        i = bisect_right(self._pasts, first)  # the first range that ends behind `first`
        while first < past:
            if i == len(self._firsts) or self._firsts[i] >= past:
                out.append((first, past))
                break
            if self._firsts[i] > first:
                out.append((first, self._firsts[i]))
            first = self._pasts[i]
            i += 1
        return out

    def within(self, first: int, past: int) -> int:
        """How many bytes of [first, past) are held."""
        return max(0, past - first) - sum(b - a for a, b in self.missing(first, past))

    def total(self) -> int:
        """How many bytes are held."""
        return sum(self._pasts) - sum(self._firsts)
