"""Sets of addresses and of ports in the words of policy.yaml: `frontend`, `10.0.0.0/8 except {app: db}`, `80-89/tcp`.

A description is exact: what it selects is the set, no more and no less. It uses the names that the policies at hand
agree on, and CIDRs for what they do not name.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from policy.compile import Compiled
from policy.model import EVERY_PORT, Identity, Labels, Named, PortSpan, Prefix, Reserved, Term, port_words
from policy.space import Cells, Places, runs
from policy.words import prefix
from schemas.codes import PROTOCOLS, IdentityId, PortGroup
from schemas.structs import PORT_GROUPS

_TYPED = {PortGroup[word.upper()]: number for number, word in PROTOCOLS.items() if word in ("icmp", "icmpv6")}


class Addresses(NamedTuple):
    """Those in any of `terms` and in none of `exclude`."""

    terms: tuple[Term, ...]
    exclude: tuple[Term, ...] = ()

    @property
    def size(self) -> int:
        """Words it takes."""
        return len(self.terms) + len(self.exclude)

    def __str__(self) -> str:
        return _phrase(self.terms, self.exclude)


class Ports(NamedTuple):
    """Entries as in `ports` of policy.yaml; those of `exclude` are taken out again."""

    terms: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _phrase(self.terms, self.exclude)


def _phrase(terms: Iterable[object], exclude: Sequence[object]) -> str:
    text = ", ".join(map(str, terms))
    return f"{text} except {', '.join(map(str, exclude))}" if exclude else text


# ---- addresses


class Names:
    """The names of one family. `of`: each with the cells (intp, ascending) of the addresses it stands for."""

    def __init__(self, cells: Cells, of: dict[Term, np.ndarray]) -> None:
        self.cells = cells
        self._of = of
        there = [term for term, numbers in self._of.items() if len(numbers)]
        self._terms = sorted(there, key=lambda term: (-len(self._of[term]), _RANKS.index(type(term)), str(term)))
        sizes = [len(self._of[term]) for term in self._terms]
        self._sizes = np.array(sizes, np.intp)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)[: len(sizes)]
        self._all = np.concatenate([np.zeros(0, np.intp), *(self._of[term] for term in self._terms)])
        self._known: dict[bytes, Addresses] = {}

    def describe(self, mask: np.ndarray) -> Addresses:
        """What selects exactly the cells of `mask`, of which there is one at least."""
        key = np.packbits(mask).tobytes()
        if key not in self._known:
            self._known[key] = self._describe(mask, names=True)
        return self._known[key]

    def literally(self, mask: np.ndarray) -> Addresses:
        """The same without names in `terms`: it selects nothing of the other family."""
        return self._describe(mask, names=False)

    def selected(self, what: Addresses) -> np.ndarray:
        """bool[cells]: what `what` selects in this family."""
        return self._mask(what.terms) & ~self._mask(what.exclude)

    def _mask(self, terms: Iterable[Term]) -> np.ndarray:
        mask = np.zeros(len(self.cells), bool)
        for term in terms:
            if isinstance(term, Prefix):
                mask[self.cells.slice(term)] = True
            else:
                mask[slice(None) if term is Reserved.ANY else self._of[term]] = True
        return mask

    def _describe(self, mask: np.ndarray, *, names: bool) -> Addresses:
        if names and mask.all():
            return Addresses((Reserved.ANY,))
        around = self.cells.around(mask)
        bases: list[Term] = [around]
        if names:
            bases = [*self._smallest_around(mask), around if around.length else Reserved.ANY]
        rests = [self._mask([base]) & ~mask for base in bases]
        whole = [base for base, rest in zip(bases, rests, strict=True) if not rest.any()]
        if whole:
            return Addresses((whole[0],))
        # The simpler ones first: what comes later must be shorter, and is dropped when it is seen not to be.
        ways: list[tuple[tuple[Term, ...], np.ndarray]] = [((), mask)]
        ways += [((base,), rest) for base, rest in zip(bases, rests, strict=True)]
        best: Addresses | None = None
        for base, part in sorted(ways, key=lambda way: sum(1 for _ in runs(way[1]))):
            limit = best.size - len(base) if best is not None else None
            found = self._listed(part, names=names or bool(base), limit=limit)
            if found is not None:
                best = Addresses(base, found) if base else Addresses(found)
        assert best is not None
        return best

    def _smallest_around(self, mask: np.ndarray) -> list[Term]:
        """The name with the fewest cells that has all of `mask`, if there is one."""
        if not self._terms:
            return []
        common = np.add.reduceat(mask[self._all].astype(np.intp), self._offsets)
        holders = np.flatnonzero(common == np.count_nonzero(mask))
        return [self._terms[holders[np.argmin(self._sizes[holders])]]] if len(holders) else []

    def _listed(self, mask: np.ndarray, *, names: bool, limit: int | None) -> tuple[Term, ...] | None:
        """Names and CIDRs that together are `mask`; a name only where it saves a CIDR. None: not fewer than `limit`."""
        chosen = self._inside(mask) if names else []
        covered = np.zeros(len(mask), bool)
        for term in chosen:
            covered[self._of[term]] = True
        bare = np.concatenate([[0], np.cumsum(mask & ~covered)]).tolist()  # cells without a name before each
        kept: list[Term] = []
        saved = np.zeros(len(mask), bool)
        for begin, end in runs(mask):
            if bare[begin] == bare[end]:
                saved[begin:end] = True
                continue
            for cidr in self.cells.spanning(begin, end):
                at = self.cells.slice(cidr)
                if bare[at.start] == bare[at.stop]:
                    saved[at] = True
                else:
                    kept.append(cidr)
            if limit is not None and len(kept) >= limit:
                return None
        useful = [term for term in chosen if saved[self._of[term]].any()]
        return (*useful, *kept) if limit is None or len(useful) + len(kept) < limit else None

    def _inside(self, mask: np.ndarray) -> list[Term]:
        """Names all of whose cells are in `mask`, the large first, each with cells that those before have not."""
        if not self._terms:
            return []
        covered = np.zeros(len(mask), bool)
        chosen = []
        for number in np.flatnonzero(np.logical_and.reduceat(mask[self._all], self._offsets)).tolist():
            cells = self._of[self._terms[number]]
            if not covered[cells].all():
                covered[cells] = True
                chosen.append(self._terms[number])
        return chosen


_RANKS = (Reserved, Named, Labels)


def names_of(compiled: Sequence[Compiled], cells: Sequence[Cells]) -> dict[int, Names]:
    """By family, the names that mean the same in each policy of `compiled`; `cells` are cut by all their prefixes."""
    common = _common_names(compiled)
    found = {part.family: {term: _numbers(part, prefixes) for term, prefixes in common.items()} for part in cells}
    worlds = {part.family: [_world(each, part) for each in compiled] for part in cells}
    if all(np.array_equal(one, other) for masks in worlds.values() for one, other in pairwise(masks)):
        for family, masks in worlds.items():
            found[family][Reserved.WORLD] = np.flatnonzero(masks[0])
    return {part.family: Names(part, found[part.family]) for part in cells}


def _common_names(compiled: Iterable[Compiled]) -> dict[Term, list[Prefix]]:
    """Identities, labels of rules and `host`: those that mean the same in every policy where they mean anything."""
    meanings: dict[Term, set[frozenset[Prefix]]] = {}
    labels = {term for each in compiled for term in _labels(each)}
    for each in compiled:
        if each.host:
            meanings.setdefault(Reserved.HOST, set()).add(frozenset(prefix(address) for address in each.host))
        identities: tuple[Identity, ...] = each.policy.identities if each.policy is not None else ()
        for identity in identities:
            meanings.setdefault(Named(identity.name), set()).add(frozenset(identity.addresses))
        for term in labels:
            fitting = [i.addresses for i in identities if set(term.pairs) <= i.labels.items()]
            if fitting:
                meanings.setdefault(term, set()).add(frozenset(p for addresses in fitting for p in addresses))
    return {term: sorted(next(iter(found))) for term, found in meanings.items() if len(found) == 1}


def _labels(compiled: Compiled) -> set[Labels]:
    sides = [side for rule in compiled.order for side in (rule.source, rule.destination)]
    return {term for side in sides for term in (*side.terms, *side.exclude) if isinstance(term, Labels)}


def _numbers(cells: Cells, prefixes: Iterable[Prefix]) -> np.ndarray:
    parts = [np.arange(at.start, at.stop) for at in map(cells.slice, prefixes)]
    return np.unique(np.concatenate([np.zeros(0, np.intp), *parts]))


def _world(compiled: Compiled, cells: Cells) -> np.ndarray:
    return compiled.lookup.identity[cells.rows(compiled)] == IdentityId.WORLD


# ---- ports


class PortNames:
    """Words for sets of pieces of the line of ports."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._known: dict[tuple[bytes, bytes], tuple[str, ...] | None] = {}

    def describe(self, masks: dict[int, np.ndarray]) -> Ports | None:
        """What matches exactly the pieces `masks[family]` (bool, reachable ones, one set at least) of each family it
        has; None: there are no words for both families together."""
        reachable = np.logical_or.reduce([self.places.reachable(family) for family in masks])
        wanted = np.logical_or.reduce(list(masks.values()))
        if any((wanted & self.places.reachable(family) != mask).any() for family, mask in masks.items()):
            return None
        rest = reachable & ~wanted
        if not rest.any():
            return Ports(tuple(port_words(EVERY_PORT)))
        words, others = self._words(wanted, reachable), self._words(rest, reachable)
        if others is not None and (words is None or len(others) + 1 < len(words)):
            return Ports(("any",), others)
        return Ports(words) if words is not None else None

    def _words(self, mask: np.ndarray, reachable: np.ndarray) -> tuple[str, ...] | None:
        """In words; `reachable` are the pieces that matter. None: it cannot be said."""
        key = (np.packbits(mask).tobytes(), np.packbits(reachable).tobytes())
        if key not in self._known:
            self._known[key] = self._new_words(mask, reachable)
        return self._known[key]

    def _new_words(self, mask: np.ndarray, reachable: np.ndarray) -> tuple[str, ...] | None:
        places = self.places
        other = places.group("OTHER")
        protocols = set(np.flatnonzero(mask[other]).tolist())
        spans = [
            PortSpan(group, first, last)
            for group in PortGroup if group != PortGroup.OTHER for first, last in places.spans(group.name, mask)
        ]  # fmt: skip
        for group, number in _TYPED.items():
            types = places.group(group.name)
            whole, matters = mask[types].all(), reachable[types].any()
            if number in protocols and matters and not whole:
                return None  # `proto:1` has all of ICMP in it
            if number not in protocols and whole and not reachable[other][number]:
                protocols.add(number)
            elif number in protocols and not matters:
                spans.append(PortSpan(group, 0, PORT_GROUPS[group.name][1] - 1))
        spans += [PortSpan(PortGroup.OTHER, number, number) for number in protocols]
        return tuple(port_words(tuple(sorted(spans))))
