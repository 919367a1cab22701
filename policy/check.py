"""What is valid in a policy and probably not meant: warnings, each with its place.

Nothing is guessed from the text: what a rule can decide is read off the classes, so `shadowed` and `never_matches`
are exact. `host` is empty unless the node's addresses are given: then no warning stands on what they would change, be
it by `host` or by `world`, which they are not of.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from policy.compile import Compiled
from policy.evaluate import matching_rule
from policy.model import Labels, Named, Policy, Prefix, Reserved, Rule, Selection, ports_text
from policy.space import FAMILIES, REACHABLE, Cells, bits_of, distinct, first_rules, prefixes_of
from schemas.codes import Decision, IdentityId

MAX_TRIPLES = 100_000_000
"""Most combinations of classes looked at for the warnings of one policy: about 20 s."""

_WIDTH = 60  # characters of a selection in a message
_SHOWN = 3  # names in a message; the rest is a number


@dataclass(frozen=True)
class PolicyWarning:
    """`kind`: a word of `KINDS`. `subject`: the rule or identity it is about, "" for the policy as a whole."""

    kind: str
    message: str
    hint: str
    line: int
    column: int
    subject: str = ""


KINDS = {
    "default_allow": "what no rule matches is allowed",
    "never_matches": "no packet can match the rule",
    "shadowed": "every packet the rule matches gets its decision from other rules",
    "not_checked": "too many combinations to tell whether the rule ever decides",
    "world_open": "the rule allows every address of the world to start a conversation",
    "unused": "no rule speaks of the identity",
    "overlap": "the identity shares addresses with others",
}


def check(compiled: Compiled) -> list[PolicyWarning]:
    """Warnings about a policy, by line. None: none."""
    policy = compiled.policy
    if policy is None:
        return []
    found = [*_default(policy), *_rules(compiled, policy), *_unused(policy), *_overlaps(policy)]
    return sorted(found, key=lambda w: (w.line, w.column, list(KINDS).index(w.kind)))


def _default(policy: Policy) -> Iterator[PolicyWarning]:
    if policy.default == Decision.ALLOW:
        message = "`default: allow`: what no rule matches may start any conversation"
        yield PolicyWarning("default_allow", message, "zero trust is `default: deny`", *policy.default_at)


# ---- rules


@dataclass(frozen=True)
class _Family:
    """What packets of one family can be: the classes there are (intp[n]) of sources, destinations and ports, and their
    rule vectors (uint64[n, words]); and the source classes of world addresses."""

    classes: tuple[np.ndarray, np.ndarray, np.ndarray]
    vectors: tuple[np.ndarray, np.ndarray, np.ndarray]
    world: np.ndarray

    @classmethod
    def of(cls, compiled: Compiled, family: int, prefixes: set[Prefix]) -> "_Family":
        lookup = compiled.lookup
        rows = np.unique(Cells.of(family, prefixes).rows(compiled))
        world = rows[lookup.identity[rows] == IdentityId.WORLD]
        sources, destinations = np.unique(lookup.source_class[rows]), np.unique(lookup.destination_class[rows])
        ports = np.unique(compiled.ports[REACHABLE[family]]).astype(np.intp)
        vectors = (compiled.source_rules[sources], compiled.destination_rules[destinations], compiled.port_rules[ports])
        return cls((sources, destinations, ports), vectors, np.unique(lookup.source_class[world]))


def _rules(compiled: Compiled, policy: Policy) -> Iterator[PolicyWarning]:
    if not compiled.order:
        return
    prefixes = prefixes_of(policy, compiled.host)
    families = {family: _Family.of(compiled, family, prefixes) for family in FAMILIES}
    deciders = _Deciders(compiled, list(families.values()))
    open_to_world = {family: _open_to_world(compiled, part) for family, part in families.items()}
    for number, rule in enumerate(compiled.order):
        if not compiled.host and _may_match_host(rule):
            continue
        if not deciders.matches(number):
            yield _never(rule)
            continue
        if (by := deciders.shadowed_by(number)) is not None:
            others = [compiled.order[other] for other in by]
            if compiled.host or all(_covers_host(other, rule) for other in others):
                yield _shadowed(rule, others)
            continue
        opened = [family for family, mask in open_to_world.items() if mask[number]]
        if rule.action == Decision.ALLOW and opened:
            yield _world_open(rule, opened)


def _open_to_world(compiled: Compiled, part: _Family) -> np.ndarray:
    """bool[rules]: which have every world address of a family as a source, and can match there."""
    n = len(compiled.order)
    if not len(part.world):
        return np.zeros(n, bool)
    bits = np.bitwise_and.reduce(compiled.source_rules[part.world])
    for vectors in part.vectors:
        bits = bits & np.bitwise_or.reduce(vectors)
    return np.unpackbits(bits.view("u1"), bitorder="little")[:n].astype(bool)


def _may_match_host(rule: Rule) -> bool:
    """Whether it may match what it does not match while `host` is empty, or the other way round."""
    return rule.speaks_of(Reserved.HOST) or any(
        Reserved.WORLD in side.exclude for side in (rule.source, rule.destination)
    )


def _covers_host(other: Rule, rule: Rule) -> bool:
    """Whether `other` covers what `rule` matches of the node's addresses, wherever they are, if it covers the rest."""
    sides = ((other.source, rule.source), (other.destination, rule.destination))
    return not any(
        Reserved.HOST in its.exclude or (Reserved.WORLD in its.terms and mine.terms != (Reserved.WORLD,))
        for its, mine in sides
    )


def _never(rule: Rule) -> PolicyWarning:
    what = f"{_short(rule.source)} to {_short(rule.destination)} {_short(ports_text(rule.ports))}"
    message = f"the rule {rule.name!r} can match no packet: {what}"
    hint = "an empty identity, everything excepted again, addresses of different families, or ICMP of the other family"
    return PolicyWarning("never_matches", message, hint, rule.line, rule.column, rule.name)


def _shadowed(rule: Rule, by: list[Rule]) -> PolicyWarning:
    if not by:
        message = f"the rule {rule.name!r}: too many combinations to tell whether it ever decides"
        return PolicyWarning("not_checked", message, "say more in one rule", rule.line, rule.column, rule.name)
    names = [f"{other.name!r} (line {other.line})" for other in by]
    who = _listed(names)
    same = {(other.action, other.report_only) for other in by} == {(rule.action, rule.report_only)}
    covers = "covers" if len(by) == 1 else "cover"
    message = f"the rule {rule.name!r} never decides: {who} {covers} all of it"
    if same:
        hint = "it says nothing new: take it out, or give it what the others leave"
    elif rule.action == Decision.ALLOW:
        hint = "deny beats allow: take it out, or except its addresses or ports from the denial"
    else:
        hint = "a denial beats one that only reports: take one of them out"
    return PolicyWarning("shadowed", message, hint, rule.line, rule.column, rule.name)


def _world_open(rule: Rule, families: list[int]) -> PolicyWarning:
    world = "the whole world" if len(families) == 2 else f"the whole IPv{families[0]} world"
    what = f"{_short(rule.destination)} on {_short(ports_text(rule.ports))}"
    message = f"the rule {rule.name!r} allows {world} to reach {what}"
    hint = "if that is not meant, name who may in `from`"
    return PolicyWarning("world_open", message, hint, rule.line, rule.column, rule.name)


class _Deciders:
    """Finds out which rules ever get the credit.

    Most do in the most particular of their classes, which one evaluation shows for all rules. For the others every
    combination of classes that the rules before them can tell apart is looked at.
    """

    def __init__(self, compiled: Compiled, families: list[_Family]) -> None:
        self._compiled = compiled
        self._families = families
        self._triples = MAX_TRIPLES
        n = len(compiled.order)
        self._matches = np.zeros(n, bool)
        self._decides = np.zeros(n, bool)
        for part in families:
            best = [_most_particular(v, n) for v in part.vectors]
            there = np.logical_and.reduce([chosen >= 0 for chosen in best])
            self._matches |= there
            rules = np.flatnonzero(there)
            triple = [axis[chosen[rules]] for axis, chosen in zip(part.classes, best, strict=True)]
            self._decides[matching_rule(compiled, *triple)] = True

    def matches(self, rule: int) -> bool:
        """Whether any packet does."""
        return bool(self._matches[rule])

    def shadowed_by(self, rule: int) -> list[int] | None:
        """Who decides in place of `rule`, a rule that matches something; None: it decides; empty: cannot be told."""
        if self._decides[rule]:
            return None
        deciding: set[int] = set()
        for part in self._families:
            found = self._credited(rule, part)
            if found is None:
                return [] if self._triples <= 0 else None
            deciding |= found
        return sorted(deciding)

    def _credited(self, rule: int, part: _Family) -> set[int] | None:
        """Rules that decide where `rule` matches in one family; None if it decides itself, or `_triples` ran out."""
        word, bit = rule // 64, np.uint64(1 << rule % 64)
        classes, vectors = [], []
        for axis, rows in zip(part.classes, part.vectors, strict=True):
            chosen = rows[:, word] & bit != 0
            classes.append(axis[chosen])
            vectors.append(rows[chosen])
        if not all(len(axis) for axis in classes):
            return set()
        before = np.zeros(vectors[0].shape[1], "<u8")
        before[:word] = np.iinfo("<u8").max
        before[word] = bit - np.uint64(1)
        for rows in vectors:
            before &= np.bitwise_or.reduce(rows)
        everywhere = before & np.bitwise_and.reduce(np.concatenate(vectors))
        if everywhere.any():
            return {int(bits_of(everywhere)[0])}
        source_rows, destination_rows, port_rows = vectors
        kinds = distinct(port_rows & before)[0]
        out: set[int] = set()
        for kind in kinds[np.argsort(np.bitwise_count(port_rows[kinds] & before).sum(axis=1), kind="stable")]:
            active = port_rows[kind] & before
            sources = classes[0][distinct(source_rows & active)[0]]
            destinations = classes[1][distinct(destination_rows & active)[0]]
            self._triples -= len(sources) * len(destinations)
            if self._triples <= 0:
                return None
            found = np.unique(first_rules(self._compiled, sources, destinations, int(classes[2][kind])))
            if rule in found:
                return None
            out.update(found.tolist())
        return out


def _most_particular(vectors: np.ndarray, rules: int) -> np.ndarray:
    """Per rule the row of uint64[classes, words] that has it and the fewest others; -1: none. intp[rules]."""
    best = np.full(rules, -1, np.intp)
    crowd = np.bitwise_count(vectors).sum(axis=1)
    for row in np.argsort(-crowd.astype(np.intp), kind="stable"):
        best[bits_of(vectors[row])] = row
    return best


# ---- identities


def _unused(policy: Policy) -> Iterator[PolicyWarning]:
    terms = {t for rule in policy.rules for s in (rule.source, rule.destination) for t in _terms(s)}
    names = {term.name for term in terms if isinstance(term, Named)}
    selectors = [set(term.pairs) for term in terms if isinstance(term, Labels)]
    for identity in policy.identities:
        if identity.name in names or any(pairs <= identity.labels.items() for pairs in selectors):
            continue
        message = f"no rule speaks of the identity {identity.name!r}"
        hint = "if it is there for its name alone, that is fine"
        yield PolicyWarning("unused", message, hint, identity.line, identity.column, identity.name)


def _terms(selection: Selection) -> tuple[object, ...]:
    return (*selection.terms, *selection.exclude)


def _overlaps(policy: Policy) -> Iterator[PolicyWarning]:
    """One warning an identity: it and those before it in the file that hold some of its addresses."""
    shared: dict[int, dict[int, Prefix]] = {}
    around: list[tuple[Prefix, int]] = []
    everything = sorted((p, index) for index, identity in enumerate(policy.identities) for p in identity.addresses)
    for item, index in everything:
        while around and (around[-1][0].family != item.family or around[-1][0].last < item.addr):
            around.pop()
        for _, other in around:
            if other != index:
                shared.setdefault(max(index, other), {}).setdefault(min(index, other), item)
        around.append((item, index))
    for later, others in sorted(shared.items()):
        identity = policy.identities[later]
        names = [f"{policy.identities[other].name!r} ({others[other]})" for other in sorted(others)]
        message = f"the identity {identity.name!r} shares addresses with {_listed(names)}"
        hint = "rules of either match there; verdicts show the longest prefix, then the first in the file"
        yield PolicyWarning("overlap", message, hint, identity.line, identity.column, identity.name)


def _short(what: object) -> str:
    text = str(what)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _listed(names: list[str]) -> str:
    if len(names) > _SHOWN + 1:
        return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
