"""What stands for addresses in a suggestion: a known name, a network, an address; each a number, its unit.

A triple (source unit, destination unit, place in `Compiled.ports`) allows every tuple of one family from one unit to
the other.
"""

from collections.abc import Iterable
from enum import StrEnum

import numpy as np

from policy.model import BITS, Prefix, Term
from policy.space import REACHABLE
from policy.tuples import Known, Tuples
from schemas.structs import PORT_GROUPS

Triple = tuple[int, int, int]


class Generality(StrEnum):
    """How much a suggestion allows beyond the record."""

    EXACT = "exact"  # nothing: addresses as they are, a name where all of its addresses did the same
    SERVICE = "service"  # known names stand for all of their addresses, other addresses for themselves
    NETWORK = "network"  # clients without a name stand for their network, too


LISTED = 64
"""Networks of one family that are listed for one service; more are seen as parts of a larger one."""
WIDTHS = {4: (24, 16, 8, 0), 6: (64, 48, 32, 0)}
"""Lengths of a family's networks, the narrow first."""
_UNSPEAKABLE = frozenset(PORT_GROUPS["OTHER"][0] + proto for proto in (1, 58))
"""ICMP of the other family: policy.yaml has no word for it alone."""
_MANY = 1 << 30
_SHIFT = 22  # bits of a unit in a key; a place takes 18


class Units:
    """Numbers of terms, and the addresses each stands for."""

    def __init__(self, known: Known) -> None:
        self._meaning = known.meaning()
        self.terms: list[Term] = list(self._meaning)
        """By number: names first, in order."""
        self.names = len(self.terms)
        self._numbers = {term: number for number, term in enumerate(self.terms)}

    def number(self, term: Term) -> int:
        """Of a term, a new one if need be."""
        found = self._numbers.setdefault(term, len(self.terms))
        if found == len(self.terms):
            self.terms.append(term)
        return found

    def prefixes(self, number: int) -> list[Prefix]:
        """What a unit stands for, without those inside others, ascending."""
        term = self.terms[number]
        return [term] if isinstance(term, Prefix) else disjoint(self._meaning[term])

    def sizes(self) -> dict[int, np.ndarray]:
        """By family the number of addresses of each unit, int64, at most _MANY."""
        out = {family: np.zeros(len(self.terms), "<i8") for family in BITS}
        for number in range(len(self.terms)):
            for family, size in sizes(self.prefixes(number)).items():
                out[family][number] = min(size, _MANY)
        return out

    def overlap(self, numbers: Iterable[int]) -> bool:
        """Whether two of `numbers` share addresses."""
        each = [self.prefixes(number) for number in numbers]
        together = sizes(disjoint(item for items in each for item in items))
        return any(sum(sizes(items)[family] for items in each) != size for family, size in together.items())

    def around(self, numbers: Iterable[int]) -> dict[int, set[int]]:
        """Of units that are inside others of `numbers`, these others. Of equal ones the later is inside the first."""
        chosen = sorted(numbers)
        owners: dict[Prefix, set[int]] = {}
        for number in chosen:
            for item in self.prefixes(number):
                owners.setdefault(item, set()).add(number)
        lengths = {family: sorted({item.length for item in owners if item.family == family}) for family in BITS}
        found: dict[int, set[int]] = {}
        for number in chosen:
            holders: set[int] | None = None
            for item in self.prefixes(number):
                around = {
                    owner for length in lengths[item.family] if length <= item.length
                    for owner in owners.get(network(item, length), ())
                }  # fmt: skip
                holders = around if holders is None else holders & around
            if holders is not None and len(holders) > 1:
                found[number] = holders - {number}
        equal = [(a, b) for a, around in found.items() for b in around if a < b and a in found.get(b, ())]
        for first, later in equal:
            found[first].discard(later)
        return {number: around for number, around in found.items() if around}


def disjoint(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """Without those that others hold, ascending."""
    kept: list[Prefix] = []
    for item in sorted(prefixes):
        if not (kept and kept[-1].family == item.family and kept[-1].last >= item.last):
            kept.append(item)
    return kept


def sizes(prefixes: Iterable[Prefix]) -> dict[int, int]:
    """By family the number of addresses of disjoint prefixes."""
    out = dict.fromkeys(BITS, 0)
    for item in prefixes:
        out[item.family] += 1 << (BITS[item.family] - item.length)
    return out


def network(item: Prefix, length: int) -> Prefix:
    """The prefix of that length around `item`."""
    shift = BITS[item.family] - length
    return Prefix(item.family, item.addr >> shift << shift, length)


def triples(tuples: Tuples, known: Known, generality: Generality) -> tuple[Units, set[Triple]]:
    """What allows all of `tuples`, and how much more is a matter of `generality`. No triple is inside another."""
    units = Units(known)
    addresses, src, dst = tuples.ends()
    terms = known.terms(addresses)
    exact = generality == Generality.EXACT
    own = [units.number(item) if exact or term is None else 0
           for item, term in zip(addresses.prefixes(), terms, strict=True)]  # fmt: skip
    named = np.array([number if term is None else units.number(term)
                      for number, term in zip(own, terms, strict=True)], "<i8")  # fmt: skip
    if exact:
        return units, _exact(units, np.array(own, "<i8"), named, (src, dst), tuples.places)
    keys = np.unique(_key(named[src], named[dst], tuples.places))
    found = _unpacked(keys)
    if generality == Generality.NETWORK:
        found = _widened_servers(_widened_clients(found, units), units)
    return units, _outermost(found, units)


def _key(source: np.ndarray, destination: np.ndarray, place: np.ndarray) -> np.ndarray:
    return source << (_SHIFT + 18) | destination << 18 | place


def _unpacked(keys: np.ndarray) -> set[Triple]:
    mask = (1 << _SHIFT) - 1
    return {(key >> (_SHIFT + 18), key >> 18 & mask, key & 0x3FFFF) for key in keys.tolist()}


def _exact(
    units: Units, own: np.ndarray, named: np.ndarray, ends: tuple[np.ndarray, np.ndarray], places: np.ndarray
) -> set[Triple]:
    """Names only where every tuple they allow is there: at both ends, else at one, else at none."""
    size = units.sizes()
    src, dst = ends
    left = np.arange(len(places))
    found: set[Triple] = set()
    for sources, destinations in ((named, named), (named, own), (own, named), (own, own)):
        keys = _key(sources[src[left]], destinations[dst[left]], places[left])
        kinds, kind, count = np.unique(keys, return_inverse=True, return_counts=True)
        mask = (1 << _SHIFT) - 1
        source, destination, place = kinds >> (_SHIFT + 18), kinds >> 18 & mask, kinds & 0x3FFFF
        room = sum(size[f][source] * size[f][destination] * REACHABLE[f][place] for f in BITS)
        speakable = ~np.isin(place, list(_UNSPEAKABLE)) | (source >= units.names) | (destination >= units.names)
        whole = (count == room) & speakable
        found |= _unpacked(kinds[whole])
        left = left[~whole[kind.reshape(-1)]]
    assert not len(left)
    return found


def _widened_clients(found: set[Triple], units: Units) -> set[Triple]:
    """Clients without a name as networks, no more than LISTED for a service."""
    clients: dict[tuple[int, int], set[int]] = {}
    for source, destination, place in sorted(found):
        clients.setdefault((destination, place), set()).add(source)
    return {(source, *service) for service, numbers in clients.items() for source in _networks(numbers, units, least=0)}


def _widened_servers(found: set[Triple], units: Units) -> set[Triple]:
    """Servers without a name that are more than LISTED for the same clients and port, as networks."""
    clients: dict[tuple[int, int], set[int]] = {}
    for source, destination, place in sorted(found):
        clients.setdefault((place, destination), set()).add(source)
    servers: dict[tuple[int, frozenset[int]], set[int]] = {}
    for (place, destination), sources in clients.items():
        servers.setdefault((place, frozenset(sources)), set()).add(destination)
    return {
        (source, destination, place)
        for (place, sources), numbers in servers.items()
        for destination in _networks(numbers, units, least=LISTED)
        for source in sources
    }


def _networks(numbers: Iterable[int], units: Units, *, least: int) -> set[int]:
    """`numbers`, of those without a name, if they are more than `least`, the narrowest networks that are no more than
    LISTED."""
    out: set[int] = set()
    by_family: dict[int, list[Prefix]] = {family: [] for family in BITS}
    for number in sorted(numbers):
        term = units.terms[number]
        if isinstance(term, Prefix):
            by_family[term.family].append(term)
        else:
            out.add(number)
    for family, items in by_family.items():
        chosen = set(items)
        for width in WIDTHS[family] if len(chosen) > least else ():
            chosen = {network(item, min(width, item.length)) for item in items}
            if len(chosen) <= LISTED:
                break
        out.update(units.number(item) for item in sorted(chosen))
    return out


def _outermost(found: set[Triple], units: Units) -> set[Triple]:
    """Without those that another one holds."""
    around = [units.around({triple[axis] for triple in found}) for axis in (0, 1)]
    if not any(around):
        return found
    kept = set()
    for source, destination, place in found:
        wider = [{number, *side.get(number, ())} for side, number in zip(around, (source, destination), strict=True)]
        holders = ((s, d, place) in found for s in wider[0] for d in wider[1] if (s, d) != (source, destination))
        if not any(holders):
            kept.add((source, destination, place))
    return kept
