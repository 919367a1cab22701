"""Cuts the address space into regions, and gathers into classes what the rules cannot tell apart.

Every prefix named anywhere is a region: its addresses without those of the prefixes inside it. A region lies wholly
inside or wholly outside of any selector, so its bit vector of rules is exact. Work grows with the number of prefixes
and of distinct *combinations* of selectors that cover a region, never with prefixes × rules: 1,000 identities of
100 addresses under ten labels are ten combinations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from policy.errors import PolicyError
from policy.model import Labels, Named, Policy, Prefix, Reserved, Rule, Selection, Term
from schemas.codes import IdentityId

MAX_MATRIX_BYTES = 32 << 20
"""Largest matrix of bit vectors: 16,384 rules over as many classes."""

MAX_CANDIDATES = 2_000_000
"""Identities to look at for all selectors by label: more is a trap, not a policy."""

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
_NOTHING = (0, 0)

Vectors = tuple[int, int]
"""Bit vectors of the rules that something is taken into, and out of (`*_except`)."""


@dataclass(frozen=True)
class Side:
    """One end of the rules: selector → its vectors. Selectors of the same rules share them: 100,000 in 10,000 rules
    would take 60 MB otherwise."""

    vectors: dict[Term, Vectors]

    @classmethod
    def of(cls, selections: Iterable[Selection]) -> "Side":
        """The side made of one selection a rule, in order of rule number."""
        named: dict[Term, list[int]] = {}  # rule numbers, ~number where it is taken out
        for number, selection in enumerate(selections):
            for term in selection.terms:
                named.setdefault(term, []).append(number)
            for term in selection.exclude:
                named.setdefault(term, []).append(~number)
        known: dict[tuple[int, ...], Vectors] = {}
        vectors = {}
        for term, numbers in named.items():
            key = tuple(numbers)
            if key not in known:
                known[key] = _bits(n for n in key if n >= 0), _bits(~n for n in key if n < 0)
            vectors[term] = known[key]
        return cls(vectors)

    def everywhere(self, *, world: bool) -> Vectors:
        """What holds for every address, or for all that are `world`."""
        anywhere = self.vectors.get(Reserved.ANY, _NOTHING)
        return _union([anywhere, self.vectors.get(Reserved.WORLD, _NOTHING)]) if world else anywhere


def _key(vectors: Vectors) -> tuple[bytes, ...]:
    """What to find them by; see Classes."""
    return tuple([vector.to_bytes((vector.bit_length() + 7) // 8, "little") for vector in vectors])


def _bits(numbers: Iterable[int]) -> int:
    vector = 0
    for number in numbers:
        vector |= 1 << number
    return vector


def _union(vectors: Iterable[Vectors]) -> Vectors:
    covers = spares = 0
    for cover, spare in vectors:
        covers |= cover
        spares |= spare
    return covers, spares


class Classes:
    """Distinct bit vectors, numbered in order of appearance. Bit i of a vector, a Python integer, is rule i.

    They are kept as bytes: the hashes of 10,000 integers with one bit each are 61 different numbers.
    """

    def __init__(self, words: int) -> None:
        self._numbers: dict[bytes, int] = {}
        self._words = words

    def number(self, vector: int) -> int:
        """Class of what `vector` matches. Raises PolicyError if there are more than a policy should need."""
        number = self._numbers.setdefault(vector.to_bytes(8 * self._words, "little"), len(self._numbers))
        refuse_too_large(number + 1, self._words)
        return number

    def matrix(self) -> np.ndarray:
        """uint64[classes, words]."""
        return np.frombuffer(b"".join(self._numbers), "<u8").reshape(-1, self._words)


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
        for term in side.vectors:
            if isinstance(term, Prefix):
                owners.setdefault(term, [])
    order = sorted(owners)
    parents = _parents(order)
    shown = _shown_identities(order, owners, parents)
    columns = []
    matrices = []
    for side in sides:
        own = _Own(side, policy, words)
        states, chain = _states(order, owners, parents, shown, own)
        classes, matrix = _classes(side, own, chain, words)
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


class _Own:
    """The vectors of what names an identity, the host or a prefix itself, interned and numbered; 0: nothing does."""

    def __init__(self, side: Side, policy: Policy | None, words: int) -> None:
        self._words = words
        self.vectors: list[Vectors] = [_NOTHING]
        self._numbers: dict[tuple[bytes, ...], int] = {_key(_NOTHING): 0}
        self._of_selector = side.vectors
        self._by_identity = self._identities(policy)
        self._by_identity[_HOST] = self._intern(side.vectors.get(Reserved.HOST, _NOTHING))

    def of(self, prefix: Prefix, owners: list[int]) -> int:
        """Number of the vectors of all selectors that name `prefix` or one of its `owners`."""
        literal = self._of_selector.get(prefix)
        if literal is None and len(owners) == 1:
            return self._by_identity[owners[0]]
        own = {self._by_identity[owner] for owner in owners}
        return self._intern(_union([literal or _NOTHING, *(self.vectors[number] for number in own)]))

    def _intern(self, vectors: Vectors) -> int:
        number = self._numbers.setdefault(_key(vectors), len(self.vectors))
        if number == len(self.vectors):
            self.vectors.append(vectors)
            refuse_too_large(len(self.vectors), self._words)
        return number

    def _identities(self, policy: Policy | None) -> dict[int, int]:
        if policy is None:
            return {}
        with_pair: dict[tuple[str, str], set[int]] = {}
        for index, identity in enumerate(policy.identities):
            for pair in identity.labels.items():
                with_pair.setdefault(pair, set()).add(index)
        index_of = {identity.name: index for index, identity in enumerate(policy.identities)}
        candidates = {
            term: sorted((with_pair.get(pair, set()) for pair in term.pairs), key=len)
            for term in self._of_selector
            if isinstance(term, Labels)
        }
        _refuse_too_many(sum(len(smallest) for smallest, *_ in candidates.values()))
        named = [_NOTHING] * len(policy.identities)
        for term, vectors in self._of_selector.items():
            if isinstance(term, Named):
                fitting = {index_of[term.name]}
            elif isinstance(term, Labels):
                fitting = candidates[term][0].intersection(*candidates[term][1:])
            else:
                continue
            for index in fitting:
                named[index] = _union([named[index], vectors])
        return {index: self._intern(vectors) for index, vectors in enumerate(named)}


def _refuse_too_many(candidates: int) -> None:
    if candidates > MAX_CANDIDATES:
        message = f"too large: its selectors by label have more than {MAX_CANDIDATES:,} identities to look at"
        raise PolicyError(message, "say more with fewer labels, or name the identities")


@dataclass
class _Chain:
    """States a region can be in. State i is state `parents[i]`, further named by `added[i]` (a number of _Own)."""

    parents: list[int]
    added: list[int]
    world: list[bool]


def _states(
    order: list[Prefix], owners: dict[Prefix, list[int]], parents: list[int], shown: list[int], own: _Own
) -> tuple[list[int], _Chain]:
    """State per prefix. Regions that the same rules reached by the same way are in the same state."""
    chain = _Chain([_ROOT], [0], [True])
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
            chain.added.append(added)
            chain.world.append(world)
        states.append(state)
    return states, chain


def _classes(side: Side, own: _Own, chain: _Chain, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Class per state (uint32), and the vector per class. States whose vectors are equal share a class."""
    refuse_too_large(len(chain.parents), words)
    everywhere = {world: side.everywhere(world=world) for world in (False, True)}
    classes = Classes(words)
    inner: list[Vectors] = []
    of_state = []
    for state, (parent, added, world) in enumerate(zip(chain.parents, chain.added, chain.world, strict=True)):
        inner.append(_union([inner[parent], own.vectors[added]]) if state != _ROOT else _NOTHING)
        cover, spare = _union([inner[state], everywhere[world]])
        of_state.append(classes.number(cover & ~spare))
    return np.array(of_state, "<u4"), classes.matrix()


def _needed(table: np.ndarray, parents: list[int]) -> np.ndarray:
    """False where a prefix says what the next longer one around it says already."""
    if not len(table):
        return np.zeros(0, bool)
    said = np.stack([table["identity"], table["source_class"], table["destination_class"]], axis=1)
    around = np.asarray(parents)
    outer = np.where((around >= 0)[:, None], said[around], 0)  # 0: world, and class 0 of both kinds
    return (said != outer).any(axis=1)
