"""Cuts the address space into regions, and gathers into classes what the rules cannot tell apart.

Every prefix named anywhere is a region: its addresses without those of the prefixes inside it. A region lies wholly
inside or wholly outside of any selector, so its bit vector of rules is exact. Work grows with the number of prefixes
and of distinct *combinations* of selectors that cover a region, never with prefixes × rules: 1,000 identities of
100 addresses under ten labels are ten combinations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from policy.errors import PolicyError
from policy.model import Labels, Named, Policy, Prefix, Reserved, Rule, Selection, Term
from schemas.codes import IdentityId

MAX_MATRIX_BYTES = 512 << 20
"""Largest matrix of bit vectors; 65,472 rules × 65,472 classes are just above it."""

PREFIX_DTYPE = np.dtype(
    [
        ("family", "u1"),
        ("length", "u1"),
        ("addr", "V16"),
        ("identity", "<u4"),
        ("source_class", "<u4"),
        ("destination_class", "<u4"),
    ]
)
"""An entry of the prefix table: the longest that holds an address says what policy knows of it."""

_HOST = -1  # stands for the host among indices of identities
_ROOT = 0  # the state of addresses in no prefix


@dataclass
class Side:
    """One end of the rules. `covers`, `spares`: selector → bit vector of the rules it is taken into, and out of."""

    covers: dict[Term, int] = field(default_factory=dict)
    spares: dict[Term, int] = field(default_factory=dict)

    @classmethod
    def of(cls, selections: Iterable[Selection]) -> "Side":
        """The side made of one selection a rule, in order of rule number."""
        side = cls()
        for number, selection in enumerate(selections):
            for term in selection.terms:
                side.covers[term] = side.covers.get(term, 0) | 1 << number
            for term in selection.exclude:
                side.spares[term] = side.spares.get(term, 0) | 1 << number
        return side

    @property
    def terms(self) -> list[Term]:
        """Every selector of this side, once."""
        return list(dict.fromkeys((*self.covers, *self.spares)))


class Classes:
    """Distinct bit vectors, numbered in order of appearance. Bit i of a vector, a Python integer, is rule i."""

    def __init__(self, words: int) -> None:
        self._numbers: dict[int, int] = {}
        self._words = words

    def number(self, vector: int) -> int:
        """Class of what `vector` matches. Raises PolicyError if there are more than a policy should need."""
        number = self._numbers.setdefault(vector, len(self._numbers))
        refuse_too_large(number + 1, self._words)
        return number

    def matrix(self) -> np.ndarray:
        """uint64[classes, words]."""
        rows = b"".join([vector.to_bytes(8 * self._words, "little") for vector in self._numbers])
        return np.frombuffer(rows, "<u8").reshape(-1, self._words)


def refuse_too_large(vectors: int, words: int) -> None:
    """Raise PolicyError if so many vectors of `words` 64-bit words are more than MAX_MATRIX_BYTES."""
    if vectors * words * 8 > MAX_MATRIX_BYTES:
        message = f"too large: {words * 64:,} rules over more than {vectors - 1:,} distinct kinds of addresses or ports"
        raise PolicyError(message, "say more in one rule: lists, labels, CIDRs, ranges of ports")


@dataclass(frozen=True)
class Regions:
    """`prefixes` (PREFIX_DTYPE), and per class the bit vector of rules, uint64[classes, words]; class 0: no prefix."""

    prefixes: np.ndarray
    source_rules: np.ndarray
    destination_rules: np.ndarray


def divide(policy: Policy | None, rules: Sequence[Rule], host: Sequence[Prefix], words: int) -> Regions:
    """Regions of `policy` with its `rules` in order of credit. Raises PolicyError if the vectors would be too large."""
    identities = policy.identities if policy is not None else ()
    sides = (Side.of(r.source for r in rules), Side.of(r.destination for r in rules))
    owners: dict[Prefix, list[int]] = {}
    for index, identity in enumerate(identities):
        for prefix in identity.addresses:
            owners.setdefault(prefix, []).append(index)
    for prefix in host:
        owners.setdefault(prefix, []).append(_HOST)
    for side in sides:
        for term in side.terms:
            if isinstance(term, Prefix):
                owners.setdefault(term, [])
    order = sorted(owners)
    parents = _parents(order)
    shown = _shown_identities(order, owners, parents)
    columns = []
    matrices = []
    for side in sides:
        states, chain = _states(order, owners, parents, shown, _OwnTerms(side.terms, policy))
        classes, matrix = _classes(side, chain, words)
        columns.append(classes[np.asarray(states, dtype=np.intp)])
        matrices.append(matrix)
    table = np.empty(len(order), PREFIX_DTYPE)
    table["family"] = [p.family for p in order]
    table["length"] = [p.length for p in order]
    table["addr"] = np.frombuffer(b"".join([p.addr.to_bytes(16, "big") for p in order]), "V16")
    table["identity"] = shown
    table["source_class"], table["destination_class"] = columns
    return Regions(table[_needed(table, parents)], *matrices)


def _parents(order: list[Prefix]) -> list[int]:
    """Per prefix the index of the smallest other one that holds it; -1: none."""
    parents = []
    stack: list[tuple[int, int, int]] = []  # family, last address, index
    for index, prefix in enumerate(order):
        family, addr, _ = prefix
        while stack and (stack[-1][1] < addr or stack[-1][0] != family):
            stack.pop()
        parents.append(stack[-1][2] if stack else -1)
        stack.append((family, prefix.last, index))
    return parents


def _shown_identities(order: list[Prefix], owners: dict[Prefix, list[int]], parents: list[int]) -> list[int]:
    """Per prefix the identity number that verdicts carry: of the longest prefix, then first in the file, then host."""
    shown: list[int] = []
    for prefix, parent in zip(order, parents, strict=True):
        own = owners[prefix]
        if not own:
            shown.append(shown[parent] if parent >= 0 else int(IdentityId.WORLD))
        elif own[0] == _HOST:  # owners come in the order of the file, the host last
            shown.append(int(IdentityId.HOST))
        else:
            shown.append(IdentityId.FIRST + own[0])
    return shown


class _OwnTerms:
    """Which selectors name an identity, the host or a prefix itself, as interned sets of selector numbers."""

    def __init__(self, terms: list[Term], policy: Policy | None) -> None:
        self.sets: list[frozenset[int]] = [frozenset()]
        self._numbers: dict[frozenset[int], int] = {frozenset(): 0}
        self.term_numbers = {term: number for number, term in enumerate(terms)}
        self._combined: dict[tuple[int, ...], int] = {}
        self._by_identity = self._identities(policy)
        host = self.term_numbers.get(Reserved.HOST)
        self._by_identity[_HOST] = self._intern(frozenset(() if host is None else (host,)))

    def of(self, prefix: Prefix, owners: list[int]) -> int:
        """Number of the set of selectors that name `prefix` or one of its `owners`."""
        literal = self.term_numbers.get(prefix)
        if literal is None and len(owners) == 1:
            return self._by_identity[owners[0]]
        own = tuple(sorted({self._by_identity[owner] for owner in owners}))
        if literal is not None:
            return self._intern(frozenset((literal,)).union(*(self.sets[number] for number in own)))
        if own not in self._combined:
            self._combined[own] = self._intern(frozenset().union(*(self.sets[number] for number in own)))
        return self._combined[own]

    def _intern(self, members: frozenset[int]) -> int:
        number = self._numbers.setdefault(members, len(self.sets))
        if number == len(self.sets):
            self.sets.append(members)
        return number

    def _identities(self, policy: Policy | None) -> dict[int, int]:
        if policy is None:
            return {}
        with_pair: dict[tuple[str, str], set[int]] = {}
        for index, identity in enumerate(policy.identities):
            for pair in identity.labels.items():
                with_pair.setdefault(pair, set()).add(index)
        index_of = {identity.name: index for index, identity in enumerate(policy.identities)}
        named: list[list[int]] = [[] for _ in policy.identities]
        for term, number in self.term_numbers.items():
            if isinstance(term, Named):
                named[index_of[term.name]].append(number)
            elif isinstance(term, Labels):
                for index in set.intersection(*(with_pair.get(pair, set()) for pair in term.pairs)):
                    named[index].append(number)
        return {index: self._intern(frozenset(numbers)) for index, numbers in enumerate(named)}


@dataclass
class _Chain:
    """States a region can be in. State i is state `parents[i]`, further covered by the selectors `added[i]`."""

    parents: list[int]
    added: list[list[Term]]
    world: list[bool]


def _states(
    order: list[Prefix], owners: dict[Prefix, list[int]], parents: list[int], shown: list[int], own: _OwnTerms
) -> tuple[list[int], _Chain]:
    """State per prefix. Regions that the same selectors reached by the same way are in the same state."""
    terms = list(own.term_numbers)
    chain = _Chain([_ROOT], [[]], [True])
    known: dict[tuple[int, int, bool], int] = {}
    states: list[int] = []
    for index, prefix in enumerate(order):
        parent = parents[index]
        outer = states[parent] if parent >= 0 else _ROOT
        added = own.of(prefix, owners[prefix])
        world = shown[index] == IdentityId.WORLD
        if not added and world == chain.world[outer]:
            states.append(outer)
            continue
        state = known.setdefault((outer, added, world), len(chain.parents))
        if state == len(chain.parents):
            chain.parents.append(outer)
            chain.added.append([terms[number] for number in own.sets[added]])
            chain.world.append(world)
        states.append(state)
    return states, chain


def _classes(side: Side, chain: _Chain, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Class per state (uint32), and the vector per class. States whose vectors are equal share a class."""
    refuse_too_large(len(chain.parents), words)
    covers, spares = _vectors(side.covers, chain), _vectors(side.spares, chain)
    classes = Classes(words)
    of_state = [classes.number(cover & ~spare) for cover, spare in zip(covers, spares, strict=True)]
    return np.array(of_state, "<u4"), classes.matrix()


def _vectors(rules_of: dict[Term, int], chain: _Chain) -> list[int]:
    """Per state the rules that have one of the selectors which cover it."""
    inner: list[int] = []
    for state, (parent, added) in enumerate(zip(chain.parents, chain.added, strict=True)):
        vector = inner[parent] if state != _ROOT else 0
        for term in added:
            vector |= rules_of.get(term, 0)
        inner.append(vector)
    everywhere = rules_of.get(Reserved.ANY, 0)
    world = everywhere | rules_of.get(Reserved.WORLD, 0)
    return [vector | (world if is_world else everywhere) for vector, is_world in zip(inner, chain.world, strict=True)]


def _needed(table: np.ndarray, parents: list[int]) -> np.ndarray:
    """False where a prefix says what the next longer one around it says already."""
    if not len(table):
        return np.zeros(0, bool)
    said = np.stack([table["identity"], table["source_class"], table["destination_class"]], axis=1)
    around = np.asarray(parents)
    outer = np.where((around >= 0)[:, None], said[around], 0)  # 0: world, and class 0 of both kinds
    return (said != outer).any(axis=1)
