"""What changes from one policy to another, by meaning: the exact regions of source × destination × port that gain or
lose access, however either file says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policy.boxes import Axes, Budget, Joint, changes
from policy.builtin import BUILTINS
from policy.compile import Compiled, compile_policy
from policy.describe import Addresses, Names, PortNames, Ports, names_of
from policy.evaluate import evaluate
from policy.model import BITS, Prefix, Reserved
from policy.space import FAMILIES, Cells, Places, prefixes_of, unnamed
from schemas.codes import PROTOCOLS, Decision, PortGroup
from schemas.structs import PORT_GROUPS

ALLOW, DENY, REPORT = "allow", "deny", "deny report-only"
ACCESS = ("gained", "lost", "kept")
_CANDIDATES = 8  # rows of one family that one of the other is tried with


class Example(NamedTuple):
    """One tuple of a row, and the rules that decide it in either policy. `port`: the type, of ICMP."""

    src: str
    dst: str
    proto: int
    port: int
    rule_before: str
    rule_after: str


@dataclass(frozen=True)
class Row:
    """All tuples from `source` to `destination`, of one family, on `ports`: `before` and `after` (ALLOW, DENY, REPORT)
    is what either policy says of them. No tuple is in two rows."""

    before: str
    after: str
    source: Addresses
    destination: Addresses
    ports: Ports
    example: Example

    @property
    def access(self) -> str:
        """`gained`, `lost`, or `kept`: in mode enforce these packets now pass, are now dropped, fare as before."""
        passed, passes = self.before != DENY, self.after != DENY
        return "kept" if passed == passes else "gained" if passes else "lost"


@dataclass(frozen=True)
class Diff:
    """`rows` in order of access, verdicts, text; and the built-in rules that are turned on and off."""

    rows: list[Row]
    builtins_on: list[str]
    builtins_off: list[str]

    @property
    def same(self) -> bool:
        """Whether both mean the same."""
        return not (self.rows or self.builtins_on or self.builtins_off)


@dataclass(frozen=True)
class _Draft:
    """A row in the making. `verdicts`: numbers that tell rows apart; `masks`: family → (cells of sources, cells of
    destinations, pieces of ports)."""

    verdicts: tuple[int, int]
    words: tuple[str, str]
    source: Addresses
    destination: Addresses
    masks: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


def diff(a: Compiled, b: Compiled, *, rules: bool = False) -> Diff:
    """What `b` changes against `a`. `rules`: rows, too, where all that changes is the name of the rule that decides.

    Raises PolicyError if there is too much to look at.
    """
    prefixes = prefixes_of(a.policy, a.host) | prefixes_of(b.policy, b.host)
    names = names_of((a, b), [Cells.of(family, prefixes) for family in FAMILIES])
    ports = PortNames(Places.of(a.ports, b.ports))
    drafts = _drafts(a, b, names, ports, rules=False)
    if rules:
        drafts += [draft for draft in _drafts(a, b, names, ports, rules=True) if draft.words[0] == draft.words[1]]
    rows = _rows(a, b, drafts, names, ports)
    rows.sort(key=lambda row: (ACCESS.index(row.access), row.before, row.after, str(row.source), str(row.destination),
                               str(row.ports), row.example))  # fmt: skip
    was, now = int(a.slot["builtins"]), int(b.slot["builtins"])
    on = [name for bit, name in enumerate(BUILTINS) if now & ~was & 1 << bit]
    off = [name for bit, name in enumerate(BUILTINS) if was & ~now & 1 << bit]
    return Diff(rows, on, off)


def document(found: Diff) -> dict[str, Any]:
    """As JSON."""
    rows = [row_document(row) for row in found.rows]
    return {"same": found.same, "rows": rows, "builtins_on": found.builtins_on, "builtins_off": found.builtins_off}


def row_document(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    example = row.example
    return {
        "access": row.access, "before": row.before, "after": row.after,
        "from": _terms(row.source.terms), "from_except": _terms(row.source.exclude),
        "to": _terms(row.destination.terms), "to_except": _terms(row.destination.exclude),
        "ports": list(row.ports.terms), "ports_except": list(row.ports.exclude),
        "example": {"src": example.src, "dst": example.dst, "proto": PROTOCOLS.get(example.proto, str(example.proto)),
                    "port": example.port, "rule_before": example.rule_before, "rule_after": example.rule_after},
    }  # fmt: skip


def _terms(terms: Sequence[Any]) -> list[Any]:
    """Selectors as in policy.yaml: labels are a mapping."""
    return [dict(term.pairs) if hasattr(term, "pairs") else str(term) for term in terms]


def with_a_host(a: Compiled, b: Compiled) -> tuple[Compiled, Compiled]:
    """Two policies of files, which do not say where the node is, as they are for one at addresses that neither names:
    else what they say of `host`, and of it by leaving it out of `world`, would not be compared.

    Raises PolicyError as `compile_policy`.
    """
    words = (Reserved.HOST, Reserved.WORLD)
    if not any(rule.speaks_of(word) for each in (a, b) for rule in each.order for word in words):
        return a, b
    prefixes = prefixes_of(a.policy, a.host) | prefixes_of(b.policy, b.host)
    host = [str(unnamed(family, prefixes)) for family in FAMILIES]
    return compile_policy(a.policy, host=host), compile_policy(b.policy, host=host)


def _drafts(a: Compiled, b: Compiled, names: dict[int, Names], ports: PortNames, *, rules: bool) -> list[_Draft]:
    """What differs, the same words for both families told as one. `rules`: by the names of rules."""
    numbers: dict[tuple[str, str], int] = {}
    verdicts = (_verdicts(a, numbers, rules=rules), _verdicts(b, numbers, rules=rules))
    words = [word for word, _ in numbers]
    starts = ports.places.starts
    budget = Budget()
    drafts: list[_Draft] = []
    for family in FAMILIES:
        cells = names[family].cells
        rows = (cells.rows(a), cells.rows(b))
        axes = Axes(
            Joint.join(*(each.lookup.source_class[r] for each, r in zip((a, b), rows, strict=True))),
            Joint.join(*(each.lookup.destination_class[r] for each, r in zip((a, b), rows, strict=True))),
            Joint.join(a.ports[starts], b.ports[starts], ports.places.reachable(family)),
        )
        found = []
        for change in changes(a, b, verdicts, axes, budget):
            masks = (
                axes.sources.mask(change.sources), axes.destinations.mask(change.destinations),
                axes.ports.mask(change.ports),
            )  # fmt: skip
            source, destination = (names[family].describe(mask) for mask in masks[:2])
            pair = (change.before, change.after)
            found.append(_Draft(pair, (words[pair[0]], words[pair[1]]), source, destination, {family: masks}))
        drafts = _together(drafts, found, names, ports)
    return drafts


def _together(one: list[_Draft], other: list[_Draft], names: dict[int, Names], ports: PortNames) -> list[_Draft]:
    """Drafts of either family, two as one where the same words, or those of both, tell them in either family."""
    open_to: dict[tuple[object, ...], list[int]] = {}
    for number, draft in enumerate(one):
        for key in _keys(draft):
            open_to.setdefault(key, []).append(number)
    out = [*one]
    for draft in other:
        candidates = dict.fromkeys(n for key in _keys(draft) for n in open_to.get(key, [])[:_CANDIDATES])
        for number in candidates:
            mine = one[number]
            joined = _joined(mine, draft, names, ports) if out[number] is mine else None
            if joined is not None:
                out[number] = joined
                break
        else:
            out.append(draft)
    return out


def _keys(draft: _Draft) -> list[tuple[object, ...]]:
    ends = (draft.source, draft.destination)
    return [(draft.verdicts, *ends), (draft.verdicts, ends[0], None), (draft.verdicts, None, ends[1])]


def _joined(one: _Draft, other: _Draft, names: dict[int, Names], ports: PortNames) -> _Draft | None:
    masks = one.masks | other.masks
    if ports.describe({family: mask[2] for family, mask in masks.items()}) is None:
        return None
    ends = [one.source, one.destination]
    for end, added in enumerate((other.source, other.destination)):
        both = zip(ends[end], added, strict=True)
        ends[end] = Addresses(*(tuple(dict.fromkeys((*mine, *others))) for mine, others in both))
        if any(not np.array_equal(names[family].selected(ends[end]), mask[end]) for family, mask in masks.items()):
            return None
    return _Draft(one.verdicts, one.words, ends[0], ends[1], masks)


def _verdicts(compiled: Compiled, numbers: dict[tuple[str, str], int], *, rules: bool) -> np.ndarray:
    """What each rule, and last the default, says: numbers of (word, rule's name), the name "" if it does not matter."""
    tables = compiled.vectors
    out = []
    for number, decision, report_only in zip(tables.rule, tables.decision, tables.report_only, strict=True):
        word = ALLOW if decision == Decision.ALLOW else REPORT if report_only else DENY
        said = (word, compiled.rule_name(int(number)) if rules else "")
        out.append(numbers.setdefault(said, len(numbers)))
    return np.array(out, np.intp)


def _rows(a: Compiled, b: Compiled, drafts: list[_Draft], names: dict[int, Names], ports: PortNames) -> list[Row]:
    if not drafts:
        return []
    tuples = [_tuple_of(draft, names, ports.places) for draft in drafts]
    columns = (
        np.array([src.to_bytes(16, "big") for _, src, _, _, _ in tuples], "V16"),
        np.array([dst.to_bytes(16, "big") for _, _, dst, _, _ in tuples], "V16"),
        *(np.array([t[i] for t in tuples], kind) for i, kind in ((0, "u1"), (3, "u1"), (4, "<u2"))),
    )
    said = [evaluate(each, *columns)["rule"].tolist() for each in (a, b)]
    rows = []
    for draft, (family, src, dst, proto, port), before, after in zip(drafts, tuples, *said, strict=True):
        text = [str(Prefix(family, address, BITS[family])) for address in (src, dst)]
        example = Example(text[0], text[1], proto, port, a.rule_name(before), b.rule_name(after))
        source, destination = _unambiguous(draft, names)
        told = ports.describe({f: masks[2] for f, masks in draft.masks.items()})
        assert told is not None  # one family's can always be told
        rows.append(Row(draft.words[0], draft.words[1], source, destination, told, example))
    return rows


def _unambiguous(draft: _Draft, names: dict[int, Names]) -> tuple[Addresses, Addresses]:
    """Both ends of a row that is about one family alone, told so that they meet in that family only."""
    (family, (sources, destinations, _)), *more = draft.masks.items()
    other = names[10 - family]
    ends = (draft.source, draft.destination)
    if more or not all(other.selected(end).any() for end in ends):
        return ends
    literal = (names[family].literally(sources), names[family].literally(destinations))
    if literal[0].size < literal[1].size:
        return literal[0], ends[1]
    return ends[0], literal[1]


def _tuple_of(draft: _Draft, names: dict[int, Names], places: Places) -> tuple[int, int, int, int, int]:
    """One (family, src, dst, proto, port) of a row."""
    family, (sources, destinations, ports) = next(iter(draft.masks.items()))
    cells = names[family].cells
    place = int(places.starts[np.flatnonzero(ports)[0]])
    for group in PortGroup:
        first, size = PORT_GROUPS[group.name]
        if first <= place < first + size:
            break
    proto = {word: number for number, word in PROTOCOLS.items()}.get(group.name.lower(), place - first)
    port = 0 if group == PortGroup.OTHER else place - first
    return family, cells.example(np.flatnonzero(sources)), cells.example(np.flatnonzero(destinations)), proto, port
