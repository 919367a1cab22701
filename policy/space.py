"""The space of tuples cut into cells, so that questions about all of it have finite answers.

Addresses are cut wherever a prefix of any of the given policies begins or ends, the line of ports wherever a rule's
span does: what holds for the first of a cell or piece holds for all of it. Some places of the line can be met in one
family only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from policy.compile import Compiled
from policy.evaluate import matching_rule, reachable_places
from policy.model import BITS, Policy, Prefix
from policy.words import prefix
from schemas.structs import PORT_GROUPS

FAMILIES = (4, 6)
_CHUNK = 1 << 20
_DOCUMENTATION = {4: 0xC6336401, 6: 0x20010DB8 << 96 | 1}  # 198.51.100.1, 2001:db8::1


@dataclass(frozen=True)
class Cells:
    """The addresses of one family. Cell i reaches from `starts[i]` to before `starts[i + 1]`, the last one to the end.

    `first`: V16[n], the first address of each, as `evaluate` takes it. `known`: the prefixes it was cut by, and the
    one that holds everything.
    """

    family: int
    starts: list[int]
    first: np.ndarray
    known: frozenset[Prefix]

    @classmethod
    def of(cls, family: int, prefixes: Iterable[Prefix]) -> "Cells":
        """Cut at both ends of every one of `prefixes` that is of `family`."""
        known = {Prefix(family, 0, 0), *(item for item in prefixes if item.family == family)}
        edges = {edge for item in known for edge in (item.addr, item.last + 1)}
        starts = sorted(edges - {1 << BITS[family]})
        first = np.frombuffer(b"".join([s.to_bytes(16, "big") for s in starts]), "V16")
        return cls(family, starts, first, frozenset(known))

    def __len__(self) -> int:
        return len(self.starts)

    def slice(self, item: Prefix) -> slice:
        """The cells that hold addresses of a prefix; none if it is of the other family."""
        if item.family != self.family:
            return slice(0, 0)
        return slice(bisect_right(self.starts, item.addr) - 1, bisect_left(self.starts, item.last + 1))

    def around(self, mask: np.ndarray) -> Prefix:
        """The longest known prefix that holds all cells of `mask`, of which there is one at least."""
        inside = np.flatnonzero(mask)
        lowest, highest = self.starts[inside[0]], self._end(int(inside[-1])) - 1
        bits = BITS[self.family]
        for length in range(bits - (lowest ^ highest).bit_length(), -1, -1):
            found = Prefix(self.family, lowest >> (bits - length) << (bits - length), length)
            if found in self.known:
                return found
        raise AssertionError("the prefix of length 0 is known")

    def example(self, chosen: np.ndarray) -> int:
        """An address in one of the cells `chosen` (intp, ascending) that people would take: one for documentation,
        else not the network's own if there is another."""
        known = _DOCUMENTATION[self.family]
        if self.slice(Prefix(self.family, known, BITS[self.family])).start in chosen:
            return known
        cell = int(chosen[0])
        return self.starts[cell] + (self._end(cell) - self.starts[cell] > 1)

    def _end(self, cell: int) -> int:
        return self.starts[cell + 1] if cell + 1 < len(self) else 1 << BITS[self.family]

    def inside(self, prefixes: Iterable[Prefix]) -> np.ndarray:
        """bool[cells]: which of them are in any of `prefixes`, whose ends are cuts."""
        mask = np.zeros(len(self), bool)
        for item in prefixes:
            mask[self.slice(item)] = True
        return mask

    def rows(self, compiled: Compiled) -> np.ndarray:
        """Rows of `compiled.lookup` by cell, intp[cells]."""
        return compiled.lookup.rows(self.first, np.full(len(self), self.family, "u1"))

    def prefixes(self, mask: np.ndarray) -> list[Prefix]:
        """The fewest prefixes that hold exactly the cells of `mask`, ascending."""
        return [item for begin, end in runs(mask) for item in self.spanning(begin, end)]

    def spanning(self, begin: int, end: int) -> Iterator[Prefix]:
        """The fewest prefixes that make up the cells from `begin` to before `end`."""
        start, stop = self.starts[begin], self._end(end - 1)
        bits = BITS[self.family]
        while start < stop:
            size = (start & -start) or 1 << bits
            if size > stop - start:
                size = 1 << (stop - start).bit_length() - 1
            yield Prefix(self.family, start, bits + 1 - size.bit_length())
            start += size


def runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """(begin, end) of the stretches of True, ends exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def unnamed(family: int, prefixes: Iterable[Prefix]) -> Prefix:
    """An address of `family` that is in none of `prefixes` (but for the shortest, if they hold every address)."""
    usual = Prefix(family, _DOCUMENTATION[family] + 1, BITS[family])
    known = {item for item in prefixes if item.family == family}
    cells = Cells.of(family, {*known, usual})
    for shortest in range(1, BITS[family] + 1):
        free = ~cells.inside(item for item in known if item.length >= shortest)
        if free[cells.slice(usual)].all():
            return usual
        if free.any():
            return Prefix(family, cells.example(np.flatnonzero(free)), BITS[family])
    raise AssertionError("no policy names every address by itself")


def prefixes_of(policy: Policy | None, host: Iterable[str]) -> set[Prefix]:
    """Every prefix that `policy` and the node's addresses name."""
    found = {prefix(address) for address in host}
    if policy is not None:
        found.update(address for identity in policy.identities for address in identity.addresses)
        selections = [side for rule in policy.rules for side in (rule.source, rule.destination)]
        found.update(t for s in selections for t in (*s.terms, *s.exclude) if isinstance(t, Prefix))
    return found


REACHABLE = {family: reachable_places(family) for family in FAMILIES}
"""Family → bool[PORTS_PER_SLOT]: which places of `ports` a packet of it can fall on."""


@dataclass(frozen=True)
class Places:
    """The `ports` table in pieces: places side by side that no given table tells apart, of one group, and each place
    of the group OTHER by itself. Piece i reaches from `starts[i]` to before `starts[i + 1]`, the last is one place."""

    starts: np.ndarray

    @classmethod
    def of(cls, *tables: np.ndarray) -> "Places":
        """Cut where any of `tables` (Compiled.ports) changes."""
        cuts = [np.flatnonzero(np.diff(table)) + 1 for table in tables]
        groups = [first for first, _ in PORT_GROUPS.values()]
        other, size = PORT_GROUPS["OTHER"]
        return cls(np.unique(np.concatenate([*cuts, groups, np.arange(other, other + size)])).astype(np.intp))

    def reachable(self, family: int) -> np.ndarray:
        """bool[pieces]: those that a packet of `family` can fall on."""
        return REACHABLE[family][self.starts]

    def group(self, name: str) -> slice:
        """The pieces of a group."""
        first, size = PORT_GROUPS[name]
        begin, end = np.searchsorted(self.starts, [first, first + size])
        return slice(int(begin), int(end))

    def spans(self, name: str, mask: np.ndarray) -> list[tuple[int, int]]:
        """(first, last) port of the stretches of `mask` (bool[pieces]) in a group."""
        base, size = PORT_GROUPS[name]
        at = self.group(name)
        edges = np.append(self.starts[at], base + size) - base
        return [(int(edges[begin]), int(edges[end]) - 1) for begin, end in runs(mask[at])]


def first_rules(compiled: Compiled, sources: np.ndarray, destinations: np.ndarray, port: int) -> np.ndarray:
    """`matching_rule` for every pair of a source and a destination class (intp[s], intp[d]): intp[s, d]."""
    out = np.empty((len(sources), len(destinations)), np.intp)
    at_a_time = max(1, _CHUNK // max(1, len(destinations)))
    for begin in range(0, len(sources), at_a_time):
        part = sources[begin : begin + at_a_time]
        pairs = len(part) * len(destinations)
        found = matching_rule(
            compiled, np.repeat(part, len(destinations)), np.tile(destinations, len(part)), np.full(pairs, port)
        )
        out[begin : begin + at_a_time] = found.reshape(len(part), -1)
    return out


def bits_of(vector: np.ndarray) -> np.ndarray:
    """Numbers of the bits set in a rule vector, uint64[words]: intp, ascending."""
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(vector).view("u1"), bitorder="little"))


def distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows of uint64[n, words]: (index of one row a kind, intp[kinds]; the kind of each row, intp[n])."""
    mixed = np.zeros(len(vectors), "<u8")
    for column in vectors.T:  # rows that are alike get the same number; others hardly ever do, which is checked
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    _, first, kind = np.unique(mixed, return_index=True, return_inverse=True)
    if np.array_equal(vectors[first[kind]], vectors):
        return first, kind
    _, first, kind = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    return first, kind.reshape(-1)
