"""What a policy.yaml says, as values: no positions but lines, no defaults left to fill in.

Nothing here is checked: `policy.parse` makes only what is valid.
"""

import hashlib
import socket
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address
from typing import NamedTuple

from schemas.codes import Decision, PortGroup
from schemas.structs import PORT_GROUPS

BITS = {4: 32, 6: 128}
"""Bits of an address by family."""

_TYPED = {PortGroup.ICMP: 1, PortGroup.ICMPV6: 58}

NAME_LENGTH = 80
"""Longest name that an unnamed rule gets, in characters."""


class Prefix(NamedTuple):
    """`addr` is the network's address as a number, host bits 0. Sorts containers before what they contain."""

    family: int
    addr: int
    length: int

    def __str__(self) -> str:
        bits = BITS[self.family]
        text = socket.inet_ntoa(self.addr.to_bytes(4, "big")) if self.family == 4 else str(IPv6Address(self.addr))
        return text if self.length == bits else f"{text}/{self.length}"

    @property
    def last(self) -> int:
        """The highest address it holds, as a number."""
        return self.addr | ((1 << (BITS[self.family] - self.length)) - 1)


class Reserved(Enum):
    """Selectors that no file defines."""

    ANY = "any"  # every address
    WORLD = "world"  # in no named identity, and not the host's own
    HOST = "host"  # the node's own addresses

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Named:
    """Selects one identity."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Labels:
    """Selects every identity that has all of `pairs` (sorted)."""

    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "{" + ", ".join(f"{key}: {value}" for key, value in self.pairs) + "}"


Term = Reserved | Named | Labels | Prefix


@dataclass(frozen=True, slots=True)
class Selection:
    """Addresses in any of `terms` and in none of `exclude`; both without duplicates, sorted by their text."""

    terms: tuple[Term, ...]
    exclude: tuple[Term, ...] = ()

    def __str__(self) -> str:
        text = _listed(self.terms)
        return f"{text} except {_listed(self.exclude)}" if self.exclude else text


class PortSpan(NamedTuple):
    """Ports `first`–`last` of TCP, UDP or SCTP; types of ICMP over IPv4 or ICMPv6 over IPv6; for OTHER, protocol
    numbers, those of ICMP over IPv6 and ICMPv6 over IPv4 too: without their family they are protocols like others."""

    group: PortGroup
    first: int
    last: int


EVERY_PORT: tuple[PortSpan, ...] = tuple(PortSpan(g, 0, PORT_GROUPS[g.name][1] - 1) for g in PortGroup)
"""`any`: all ports of all protocols."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A name for addresses."""

    name: str
    labels: dict[str, str]
    addresses: tuple[Prefix, ...]
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may (not) start a conversation with whom. `ports` are sorted, disjoint and do not touch."""

    name: str
    action: Decision
    source: Selection
    destination: Selection
    ports: tuple[PortSpan, ...]
    report_only: bool = False
    sample: int = 0  # 1 in N packets of a flow; 0: the node's
    text: str = ""  # as in the file, without indentation
    line: int = 0
    column: int = 0

    @property
    def credit(self) -> tuple[int, str]:
        """Of all rules that match, the one with the lowest value decides."""
        if self.action == Decision.DENY:
            return int(self.report_only), self.name
        return 2, self.name

    def speaks_of(self, word: Reserved) -> bool:
        """Whether one of its ends selects or excepts `word`."""
        return any(word in (*side.terms, *side.exclude) for side in (self.source, self.destination))


@dataclass(frozen=True)
class Policy:
    """A whole file. `hash`: SHA-256 of `text` in hex; `default_at`: line and column of `default`, 0: left out."""

    version: int
    default: Decision
    identities: tuple[Identity, ...]
    rules: tuple[Rule, ...]
    text: str
    hash: str
    builtins_off: frozenset[str] = frozenset()
    default_at: tuple[int, int] = (0, 0)


def merge_spans(spans: list[PortSpan]) -> tuple[PortSpan, ...]:
    """`spans` sorted, without overlaps and without neighbours that touch."""
    merged: list[PortSpan] = []
    for span in sorted(spans):
        last = merged[-1] if merged else None
        if last is not None and last.group == span.group and span.first <= last.last + 1:
            merged[-1] = PortSpan(span.group, last.first, max(last.last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


def port_words(spans: tuple[PortSpan, ...]) -> list[str]:
    """`spans` (merged) in the words of policy.yaml, an entry each."""
    if spans == EVERY_PORT:
        return ["any"]
    with_ports = (PortGroup.TCP, PortGroup.UDP, PortGroup.SCTP)
    ranges = {group: {s[1:] for s in spans if s.group == group} for group in with_ports}
    everywhere = {r for r in set.intersection(*ranges.values()) if r != (0, 65535)}
    numbers = {n for group, first, last in spans if group == PortGroup.OTHER for n in range(first, last + 1)}
    words = [f"{_ports(first, last)}/any" for first, last in sorted(everywhere)]
    for group, first, last in spans:
        protocol = group.name.lower()
        whole = last - first + 1 == PORT_GROUPS[group.name][1]
        if group in with_ports and (first, last) in everywhere:
            continue
        if group in with_ports:
            words.append(protocol if whole else f"{_ports(first, last)}/{protocol}")
        elif group in _TYPED and whole and _TYPED[group] in numbers:
            words.append(protocol)
            numbers.remove(_TYPED[group])
        elif group in _TYPED:
            words.append(f"{protocol}:{_range(first, last)}")
    return words + [f"proto:{number}" for number in sorted(numbers)]


def ports_text(spans: tuple[PortSpan, ...]) -> str:
    """`port_words` as text, a list in brackets if there are several."""
    return _listed(tuple(port_words(spans)))


def name_from_content(
    action: Decision, report_only: bool, source: Selection, destination: Selection, ports: tuple[PortSpan, ...]
) -> str:
    """The name of an unnamed rule: what it says, so that it is the same wherever the rule stands and however written.

    Longer ones than NAME_LENGTH are cut and end in `#` and 12 hex digits of the SHA-256 of the whole.
    """
    kind = action.name.lower() + (" report-only" if report_only else "")
    whole = f"{kind} {source} to {destination} {ports_text(ports)}"
    if len(whole) <= NAME_LENGTH:
        return whole
    return f"{whole[: NAME_LENGTH - 14]}…#{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def _ports(first: int, last: int) -> str:
    """As a range; port 0 alone too, which policy.yaml knows no other way: `dst_port: 0` is every port."""
    return _range(first, last) if last else "0-0"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _listed(items: tuple[object, ...]) -> str:
    if len(items) == 1:
        return str(items[0])
    return "[" + ", ".join(str(item) for item in items) + "]"
