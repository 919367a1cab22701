"""A suggestion as text: names for addresses and rules, lists, comments."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from policy.builtin import BUILTINS
from policy.model import BITS, Identity, Named, PortSpan, Prefix, Reserved, Term, merge_spans, port_words
from policy.tuples import Known
from policy.units import Units, network, sizes
from schemas.codes import PortGroup
from schemas.structs import PORT_GROUPS

INLINE = 4
"""Addresses that a rule lists itself; more get a name."""
OFTEN = 3
"""Sides of rules from which on a single address gets one, too."""
_WIDTH = 110
_NAME = 100  # characters of a rule's name
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*|\d+(\.\d+){3}[\w./-]*|\d+(-\d+)?/[a-z]+", re.ASCII)
_YAML = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


@dataclass(frozen=True)
class Draft:
    """A rule in the making: units of either end, and places in `Compiled.ports`."""

    sources: frozenset[int]
    destinations: frozenset[int]
    places: frozenset[int]

    @property
    def ends(self) -> tuple[frozenset[int], frozenset[int]]:
        """Sources, destinations."""
        return self.sources, self.destinations

    @property
    def ports(self) -> tuple[PortSpan, ...]:
        """As in policy.yaml."""
        return merge_spans([
            PortSpan(group, place - first, place - first)
            for place in self.places for group in PortGroup
            for first, size in (PORT_GROUPS[group.name],) if first <= place < first + size
        ])  # fmt: skip

    def rank(self) -> tuple[list[int], ...]:
        """Its place in the file."""
        return sorted(self.destinations), sorted(self.sources), sorted(self.places)

    def reach(self, units: Units) -> int:
        """How much it allows, about."""
        ends = [sizes(item for number in end for item in units.prefixes(number)) for end in self.ends]
        return sum(ends[0][family] * ends[1][family] for family in BITS) * len(self.places)


class Seen(Protocol):
    """What is told of a rule in a comment; times in ns since 1970 UTC."""

    @property
    def flows(self) -> int: ...
    @property
    def packets(self) -> int: ...
    @property
    def first_seen(self) -> int: ...
    @property
    def last_seen(self) -> int: ...


def written(
    drafts: Sequence[Draft], units: Units, known: Known, seen: Sequence[Seen] = (), head: Iterable[str] = ()
) -> str:
    """A whole policy.yaml; `seen`: of each rule."""
    groups, of_group = _groups(drafts, units, {identity.name for identity in known.identities})
    terms = [tuple(_terms(end, units, of_group) for end in draft.ends) for draft in drafts]
    lines = [*(f"# {line}" for line in head), "version: 1", "default: deny"]
    if known.builtins_off:
        off = ", ".join(f"{name}: false" for name in BUILTINS if name in known.builtins_off)
        lines.append(f"builtins: {{{off}}}")
    used = {term for pair in terms for end in pair for term in end}
    identities = [identity for identity in known.identities if Named(identity.name) in used]
    if identities or groups:
        lines += ["", "identities:"]
    for identity in [*identities, *groups]:
        lines += _identity(identity)
    lines += ["", "rules:"]
    names = _names(drafts, terms)
    for number, draft in enumerate(drafts):
        if seen:
            lines.append(f"  # {told(seen[number])}")
        lines.append(f"  - name: {_word(names[number])}")
        for key, end in zip(("from", "to"), terms[number], strict=True):
            lines += _listed(f"    {key}: ", [str(term) for term in end], alone=True)
        lines += _listed("    ports: ", port_words(draft.ports))
        lines.append("    action: allow")
    return "\n".join(lines) + "\n"


def told(seen: Seen) -> str:
    """`2 flows, 20 packets, first – last`."""
    counts = (_count(seen.flows, "flow"), _count(seen.packets, "packet"))
    return f"{', '.join(counts)}, {moment(seen.first_seen)} – {moment(seen.last_seen)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def moment(ns: int) -> str:
    """RFC 3339, to the second, of ns since 1970 UTC."""
    return datetime.fromtimestamp(ns // 10**9, UTC).isoformat().replace("+00:00", "Z")


# ---- names


def _groups(drafts: Sequence[Draft], units: Units, taken: set[str]) -> tuple[list[Identity], dict[int, str]]:
    """Identities of units without a name of their own that stand in the same sides of rules, where a name saves words;
    and the name of each such unit."""
    sides: dict[int, list[tuple[int, int]]] = {}
    for rule, draft in enumerate(drafts):
        for end, numbers in enumerate(draft.ends):
            for number in numbers:
                if number >= units.names:
                    sides.setdefault(number, []).append((rule, end))
    alike: dict[tuple[int, tuple[tuple[int, int], ...]], list[int]] = {}
    for number in sorted(sides, key=lambda number: units.prefixes(number)[0]):
        alike.setdefault((units.prefixes(number)[0].family, tuple(sides[number])), []).append(number)
    found: list[Identity] = []
    name_of: dict[int, str] = {}
    for (_, where), members in alike.items():
        items = _fewest(units.prefixes(number)[0] for number in members)
        if len(items) > INLINE or len(where) >= OFTEN or (len(items) > 1 and len(where) > 1):
            name = _group_name({end for _, end in where}, items)
            while name in taken:
                name += "-too"
            taken.add(name)
            found.append(Identity(name, {}, tuple(items)))
            name_of |= dict.fromkeys(members, name)
    return found, name_of


def _group_name(ends: set[int], items: list[Prefix]) -> str:
    """`clients-10.0.1.5-and-7`."""
    role = "peer" if len(ends) == 2 else "server" if 1 in ends else "client"
    first, more = items[0], len(items) - 1
    address = str(first).replace(":", "-").replace("/", "-")
    several = more or first.length < BITS[first.family]
    return f"{role}{'s' if several else ''}-{address}" + (f"-and-{more}" if more else "")


def _terms(numbers: frozenset[int], units: Units, of_group: dict[int, str]) -> tuple[Term, ...]:
    """One side of a rule: names, then names made here, then addresses."""
    own: list[Term] = [units.terms[number] for number in sorted(numbers) if number < units.names]
    rest = sorted((n for n in numbers if n >= units.names), key=lambda number: units.prefixes(number)[0])
    made: dict[Term, None] = {Named(of_group[number]): None for number in rest if number in of_group}
    literal = _fewest(units.prefixes(number)[0] for number in rest if number not in of_group)
    if {Prefix(family, 0, 0) for family in BITS} <= set(literal):
        return (Reserved.ANY,)
    return (*own, *made, *literal)


def _names(drafts: Sequence[Draft], terms: list[tuple[tuple[Term, ...], ...]]) -> list[str]:
    """`web-to-database`; where that is not one alone, with its first port, then with a number."""
    names = ["-to-".join(_brief(end) for end in pair)[:_NAME] for pair in terms]
    for attempt in (lambda number: "-" + re.sub(r"[/:]", "-", port_words(drafts[number].ports)[0]), None):
        numbers: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            numbers.setdefault(name, []).append(number)
        for name, same in numbers.items():
            for count, number in enumerate(same if len(same) > 1 else (), 1):
                names[number] = name + (attempt(number) if attempt else f"-{count}" if count > 1 else "")
    while len(set(names)) < len(names):  # what was added makes a name that was there
        seen: set[str] = set()
        for number, name in enumerate(names):
            names[number] = name if name not in seen else f"{name}-{number}"
            seen.add(names[number])
    return names


def _brief(terms: tuple[Term, ...]) -> str:
    return f"{terms[0]}" + (f"-and-{len(terms) - 1}" if len(terms) > 1 else "")


# ---- lines


def _fewest(items: Iterable[Prefix]) -> list[Prefix]:
    """The fewest that hold the same addresses; two neighbours alone stay two."""
    out: list[Prefix] = []
    for item in sorted(items):
        out.append(item)
        while len(out) > 1 and (both := _joined(out[-2], out[-1])) is not None:
            out[-2:] = [both]
    pairs = ([Prefix(f, a, length)] if length != BITS[f] - 1 else [Prefix(f, a + i, BITS[f]) for i in (0, 1)]
             for f, a, length in out)  # fmt: skip
    return [item for pair in pairs for item in pair]


def _joined(one: Prefix, other: Prefix) -> Prefix | None:
    """The prefix of two halves; of one that holds the other, itself."""
    if one.family != other.family:
        return None
    if one.last >= other.last:
        return one
    around = network(one, one.length - 1) if one.length == other.length and one.length else one
    return around if around.last == other.last and around.addr == one.addr else None


def _identity(identity: Identity) -> list[str]:
    """In one line if it is short."""
    labels = ", ".join(f"{_word(key)}: {_word(value)}" for key, value in identity.labels.items())
    addresses = [str(item) for item in identity.addresses]
    fields = [f"labels: {{{labels}}}"] if labels else []
    line = f"  {_word(identity.name)}: {{{', '.join([*fields, *_listed('addresses: ', addresses)])}}}"
    if len(line) <= _WIDTH:
        return [line]
    return [f"  {_word(identity.name)}:", *(f"    {field}" for field in fields), *_listed("    addresses: ", addresses)]


def _listed(key: str, words: list[str], *, alone: bool = False) -> list[str]:
    """`key: [a, b]`, as many lines as it takes; `alone`: one word needs no brackets."""
    quoted = [_word(word) for word in words]
    if alone and len(quoted) == 1:
        return [key + quoted[0]]
    lines, line = [], key + "["
    for number, word in enumerate(quoted):
        piece = word + (", " if number + 1 < len(quoted) else "]")
        if len(line) + len(piece) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * (len(key) + 1)
        line += piece
    return [*lines, line] if quoted else [key + "[]"]


def _word(text: str) -> str:
    """As YAML reads it back: quoted if need be."""
    if _PLAIN.fullmatch(text) and text.lower() not in _YAML:
        return text
    return json.dumps(text, ensure_ascii=False)
