"""The smallest readable policy that allows what was recorded, at a chosen generality; and what it opens beyond that.

Services (a server's port) with the same clients are one rule, whatever else they have in common: sources, destinations
and ports of a rule are whole sides of a box, and boxes are cut in the order of axes that makes the fewest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from policy.check import check
from policy.compile import Compiled, compile_policy
from policy.errors import PolicyError
from policy.evaluate import port_places
from policy.model import Policy, PortSpan, port_words
from policy.parse import parse
from policy.space import REACHABLE, bits_of
from policy.suggestion import Draft, written
from policy.tuples import SUMS, Known, Tuples
from policy.units import Generality, Triple, Units, disjoint, sizes, triples
from schemas.structs import PORT_GROUPS

_TRIED = 20_000
"""Triples of which every order of axes is tried; of more the first alone."""


@dataclass(frozen=True)
class Part:
    """A rule of a suggestion: what it says, the sums of the tuples it matches, and what it allows besides: `tuples`,
    and the addresses of either end that no such tuple has."""

    name: str
    source: tuple[str, ...]
    destination: tuple[str, ...]
    ports: tuple[str, ...]
    flows: int
    packets: int
    bytes: int
    first_seen: int
    last_seen: int
    new_sources: int
    new_destinations: int
    new_tuples: int


@dataclass(frozen=True)
class Suggestion:
    """`text`: the whole file. `parts`: its rules, in order."""

    text: str
    parts: list[Part]


def suggest(tuples: Tuples, known: Known, generality: Generality, head: Iterable[str] = ()) -> Suggestion:
    """From `tuples`, of which there is one at least; `head`: lines of comment to begin with.

    The same for the same tuples in any order. Raises PolicyError: it would be too large.
    """
    units, found = triples(tuples, known, generality)
    drafts = [Draft(*(frozenset(side) for side in box)) for box in _boxes(found)]
    try:
        drafts = _needed(drafts, units, known)
        plain = written(drafts, units, known)
        compiled = _compiled(plain, known)
        parts = [*_parts(tuples, compiled, units, drafts)]
    except PolicyError as error:
        hint = "a shorter span, or `--generality network`"
        raise PolicyError(f"what was recorded makes too large a policy: {error.message}", hint) from error
    return Suggestion(written(drafts, units, known, parts, head), parts)


def _compiled(text: str, known: Known) -> Compiled:
    return compile_policy(parse(text, "suggestion"), host=known.host)


# ---- boxes


def _boxes(found: set[Triple]) -> list[list[set[int]]]:
    """Sides (sources, destinations, places) of disjoint boxes of units that together are `found`."""
    ways = [(1, 2, 0), *(way for way in permutations(range(3)) if way != (1, 2, 0))]
    best: tuple[tuple[int, int], list[list[set[int]]]] | None = None
    for way in ways if len(found) <= _TRIED else ways[:1]:
        boxes = _cut(found, way)
        size = len(boxes), sum(len(side) for box in boxes for side in box)
        if best is None or size < best[0]:
            best = size, boxes
    return best[1] if best is not None else []


def _cut(found: set[Triple], way: tuple[int, ...]) -> list[list[set[int]]]:
    """Triples that agree in two axes become one, then those in one axis, with the whole of the last."""
    a, b, c = way
    first: dict[tuple[int, int], set[int]] = {}
    for triple in found:
        first.setdefault((triple[a], triple[b]), set()).add(triple[c])
    second: dict[tuple[int, frozenset[int]], set[int]] = {}
    for (one, two), third in first.items():
        second.setdefault((one, frozenset(third)), set()).add(two)
    third_sides: dict[tuple[frozenset[int], frozenset[int]], set[int]] = {}
    for (one, last), middle in second.items():
        third_sides.setdefault((frozenset(middle), last), set()).add(one)
    boxes = []
    for (middle_side, last_side), ones in third_sides.items():
        box: list[set[int]] = [set(), set(), set()]
        box[a], box[b], box[c] = ones, set(middle_side), set(last_side)
        boxes.append(box)
    return boxes


def _needed(drafts: list[Draft], units: Units, known: Known) -> list[Draft]:
    """In the order of the file, without rules that others together say already: where names share addresses."""
    drafts = sorted(drafts, key=lambda draft: draft.rank())
    used = [frozenset().union(*side) for side in zip(*(draft.ends for draft in drafts), strict=True)]
    if not any(map(units.overlap, used)):
        return drafts
    # As names go first the widest, then as they are: the rest never decides.
    for by_size in (True, False):
        while True:
            policy = parse(written(drafts, units, known), "suggestion")
            order = {rule.name: number for number, rule in enumerate(policy.rules)}
            if by_size:
                policy, order = _renamed(policy, [draft.reach(units) for draft in drafts])
            warnings = check(compile_policy(policy, host=known.host))
            idle = {order[warning.subject] for warning in warnings if warning.kind == "shadowed"}
            if not idle:
                break
            drafts = [draft for number, draft in enumerate(drafts) if number not in idle]
    return drafts


def _renamed(policy: Policy, reach: list[int]) -> tuple[Policy, dict[str, int]]:
    """The rules named by their size, the widest first, and the number of each name."""
    ranked = sorted(range(len(reach)), key=lambda number: (-reach[number], number))
    names = {f"{place:05}": number for place, number in enumerate(ranked)}
    rules = tuple(replace(policy.rules[number], name=name) for name, number in names.items())
    return replace(policy, rules=rules), names


# ---- what each rule stands for


def _parts(tuples: Tuples, compiled: Compiled, units: Units, drafts: list[Draft]) -> Iterator[Part]:
    assert compiled.policy is not None
    _, src, dst = tuples.ends()
    matching = _matching(tuples, compiled)
    for rule, draft in zip(compiled.policy.rules, drafts, strict=True):
        some = matching[rule.name]
        sides = [[item for number in end for item in units.prefixes(number)] for end in draft.ends]
        room = [sizes(disjoint(side)) for side in sides]
        reach = _reach(rule.ports)
        allowed = sum(room[0][family] * room[1][family] * reach[family] for family in REACHABLE)
        # Only addresses of a family that the other end and the ports have, too, can meet anybody.
        met = [sum(room[end][f] for f in REACHABLE if room[1 - end][f] and reach[f]) for end in (0, 1)]
        flows, packets, size = (int(getattr(tuples, name)[some].sum()) for name in SUMS)
        yield Part(
            rule.name, tuple(map(str, rule.source.terms)), tuple(map(str, rule.destination.terms)),
            tuple(port_words(rule.ports)), flows, packets, size,
            int(tuples.first_seen[some].min()), int(tuples.last_seen[some].max()),
            met[0] - len(np.unique(src[some])), met[1] - len(np.unique(dst[some])), allowed - len(some),
        )  # fmt: skip


def _reach(spans: tuple[PortSpan, ...]) -> dict[int, int]:
    """By family how many protocols and ports a packet can have that `spans` hold."""
    out = dict.fromkeys(REACHABLE, 0)
    for group, first, last in spans:
        base = PORT_GROUPS[group.name][0]
        for family, reachable in REACHABLE.items():
            out[family] += int(np.count_nonzero(reachable[base + first : base + last + 1]))
    return out


def _matching(tuples: Tuples, compiled: Compiled) -> dict[str, np.ndarray]:
    """By rule the tuples (intp, ascending) that it matches."""
    lookup = compiled.lookup
    source = lookup.source_class.take(lookup.rows(tuples.src, tuples.family)).astype("<i8")
    destination = lookup.destination_class.take(lookup.rows(tuples.dst, tuples.family)).astype("<i8")
    port = compiled.ports.take(port_places(tuples.family, tuples.proto, tuples.port)).astype("<i8")
    keys = (source << 42) | (destination << 21) | port
    kinds, first, at = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(at.reshape(-1), kind="stable")
    of_kind = np.split(order, np.cumsum(np.bincount(at.reshape(-1), minlength=len(kinds)))[:-1])
    of_rule: list[list[np.ndarray]] = [[] for _ in compiled.order]
    for kind, one in enumerate(first.tolist()):
        vector = compiled.source_rules[source[one]] & compiled.destination_rules[destination[one]]
        rules = bits_of(vector & compiled.port_rules[port[one]]).tolist()
        assert rules, "every recorded tuple is allowed"
        for rule in rules:
            of_rule[rule].append(of_kind[kind])
    return {rule.name: np.sort(np.concatenate(found)) for rule, found in zip(compiled.order, of_rule, strict=True)}
