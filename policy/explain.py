"""Why a policy decides about a tuple as it does: every rule that matches, in order of credit, and why the first wins.

A tuple is the first packet of a conversation, as in `evaluate`; what the datapath decides before it asks the policy
(ICMP errors) or by more than a tuple (built-in rules) is said, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from policy.builtin import BUILTINS
from policy.compile import Compiled
from policy.errors import PolicyError
from policy.evaluate import evaluate, port_places
from policy.model import BITS, Prefix, Reserved, Rule
from policy.space import FAMILIES, Cells, bits_of, prefixes_of
from policy.words import looks_like_address, nearest, port_spans, prefix
from schemas.codes import PROTOCOLS, Decision, IdentityId, PortGroup, Reason, RuleId, word

MAX_TUPLES = 64
"""Most tuples that names may stand for."""

ICMP_ERRORS = {4: frozenset({3, 4, 11, 12}), 6: frozenset({1, 2, 3, 4})}
"""By family the ICMP types that belong to the conversation they quote (icmp_is_error in bpf/parse.h)."""

IPV6_EXTENSIONS = frozenset({0, 43, 44, 51, 60, 135, 139, 140})
"""Next headers that are no protocol of their own (is_extension in bpf/parse.h)."""

_NUMBERS = {known: number for number, known in PROTOCOLS.items()}
_BUILTIN_NOTES = (  # name, family, protocol, ports, when
    ("ndp", 6, 58, frozenset(range(133, 138)), "with hop limit 255"),
    ("mld", 6, 58, frozenset({130, 131, 132, 143}), "with hop limit 1"),
    ("dhcp", 4, 17, frozenset({67, 68}), "from the other one of the ports 67 and 68"),
    ("dhcpv6", 6, 17, frozenset({546, 547}), "from the other one of the ports 546 and 547"),
)


@dataclass(frozen=True)
class Match:
    """A rule that matches; `why`: why it decides, or why not. `line`: in the file."""

    rule: str
    action: str
    report_only: bool
    decides: bool
    why: str
    line: int
    text: str


@dataclass(frozen=True)
class Explanation:
    """What a policy says of a tuple, in words. `port`: the type, of ICMP; 0 for protocols without. `notes`: what else
    may decide."""

    src: str
    dst: str
    proto: int
    port: int
    decision: str
    reason: str
    rule: str
    report_only: bool
    src_identity: str
    dst_identity: str
    why: str
    matched: tuple[Match, ...]
    notes: tuple[str, ...]


def explain(compiled: Compiled, src: str, dst: str, proto: int, port: int) -> Explanation:
    """Of one tuple; `src` and `dst` are addresses. Raises PolicyError if no packet can be such."""
    ends = [_address(text) for text in (src, dst)]
    family = ends[0].family
    if ends[1].family != family:
        raise PolicyError(f"no packet goes from {src} to {dst}", "both addresses must be of one family")
    if family == 6 and proto in IPV6_EXTENSIONS:
        raise PolicyError(f"protocol {proto} is an IPv6 extension header", "name the protocol that it carries")
    columns = (np.array([family], "u1"), np.array([proto], "u1"), np.array([port], "<u2"))
    src_column, dst_column = (np.array([end.addr.to_bytes(16, "big")], "V16") for end in ends)
    said = {name: column[0] for name, column in evaluate(compiled, src_column, dst_column, *columns).items()}
    rules = [compiled.order[i] for i in _matching(compiled, ends, int(port_places(*columns)[0]))]
    decision, reason = Decision(int(said["decision"])), Reason(int(said["reason"]))
    number, report_only = int(said["rule"]), bool(said["report_only"])
    error = PROTOCOLS.get(proto) == ("icmp" if family == 4 else "icmpv6") and port in ICMP_ERRORS[family]
    if error:
        decision, reason, number, report_only = Decision.DENY, Reason.ICMP_UNRELATED, int(RuleId.ICMP_UNRELATED), False
    return Explanation(
        src=str(ends[0]), dst=str(ends[1]), proto=proto, port=port, decision=word(decision), reason=word(reason),
        rule=compiled.rule_name(number), report_only=report_only,
        src_identity=compiled.identity_name(int(said["src_identity"])),
        dst_identity=compiled.identity_name(int(said["dst_identity"])),
        why=_why(reason, decision, rules),
        matched=tuple(_match(rule, rules, decides=not error and rule is rules[0]) for rule in rules),
        notes=tuple(_notes(compiled, family, proto, port)),
    )  # fmt: skip


def explain_all(compiled: Compiled, source: str, destination: str, port: str) -> list[Explanation]:
    """Of every tuple that can be told from others: `source` and `destination` are addresses, CIDRs, names of
    identities, `any`, `world` or `host`; `port` is one as in policy.yaml (`443/tcp`, `icmp:8`, `proto:47`).

    Of a region that policy takes as one, one address stands for all. Raises PolicyError if there are none, or more
    than MAX_TUPLES.
    """
    proto, number = _one_port(port)
    sources, destinations = (_stand_ins(compiled, text, end) for end, text in enumerate((source, destination)))
    only = {"icmp": (4,), "icmpv6": (6,)}.get(PROTOCOLS.get(proto, ""), FAMILIES)
    pairs = [(s, d) for s in sources for d in destinations if s.family == d.family and s.family in only]
    if not pairs:
        message = f"no packet goes from {source} to {destination} on {port}"
        raise PolicyError(message, "both need an address of one family; icmp is for IPv4, icmpv6 for IPv6")
    if len(pairs) > MAX_TUPLES:
        message = f"{source} to {destination} are {len(pairs)} different cases"
        raise PolicyError(message, f"at most {MAX_TUPLES}: name an address, or a smaller identity")
    return [explain(compiled, str(s), str(d), proto, number) for s, d in pairs]


def _one_port(text: str) -> tuple[int, int]:
    """(protocol, port) of the one place that `text` names."""
    spans = port_spans(text)
    group, first, last = spans[0]
    if len(spans) > 1 or first != last:
        raise PolicyError(f"{text!r} is more than one port", "as in 443/tcp, 53/udp, icmp:8 or proto:47")
    if group == PortGroup.OTHER:
        return first, 0
    return _NUMBERS[group.name.lower()], first


def _address(text: str) -> Prefix:
    found = prefix(text)
    if found.length != BITS[found.family]:
        raise PolicyError(f"{text!r} is more than one address", "name one of them")
    return found


def _stand_ins(compiled: Compiled, text: str, end: int) -> list[Prefix]:
    """An address for each kind of addresses in `text` that policy tells apart as source (`end` 0) or destination."""
    chosen = _prefixes(compiled, text)
    if len(chosen) == 1 and chosen[0].length == BITS[chosen[0].family]:
        return chosen
    lookup = compiled.lookup
    known = prefixes_of(compiled.policy, compiled.host)
    out = []
    for family in FAMILIES:
        cells = Cells.of(family, known | set(chosen))
        rows = cells.rows(compiled)
        mask = cells.inside(chosen)
        if text == str(Reserved.WORLD):
            mask = lookup.identity[rows] == IdentityId.WORLD
        inside = np.flatnonzero(mask)
        classes = (lookup.source_class, lookup.destination_class)[end][rows[inside]]
        kinds = classes.astype("<u8") << np.uint64(32) | lookup.identity[rows[inside]]
        chosen_cells = [inside[kinds == kind] for kind in np.unique(kinds)]
        out += sorted(Prefix(family, cells.example(part), BITS[family]) for part in chosen_cells)
    if not out:
        raise PolicyError(f"{text!r} has no addresses", "name an address")
    return out


def _prefixes(compiled: Compiled, text: str) -> list[Prefix]:
    everything = [Prefix(family, 0, 0) for family in FAMILIES]
    if text in (str(Reserved.ANY), str(Reserved.WORLD)):
        return everything
    if text == str(Reserved.HOST):
        return [prefix(address) for address in compiled.host]
    identities = {i.name: i for i in compiled.policy.identities} if compiled.policy is not None else {}
    if text in identities:
        return list(identities[text].addresses)
    if looks_like_address(text):
        return [prefix(text)]
    hint = nearest(text, (*map(str, Reserved), *identities)) or "name an address, a CIDR or an identity of the policy"
    raise PolicyError(f"no identity is called {text!r}", hint)


def _matching(compiled: Compiled, ends: list[Prefix], place: int) -> list[int]:
    """Indices of all rules that match, in order of credit."""
    lookup = compiled.lookup
    packed = np.array([end.addr.to_bytes(16, "big") for end in ends], "V16")
    source, destination = lookup.rows(packed, np.full(2, ends[0].family, "u1"))
    common = (
        compiled.source_rules[lookup.source_class[source]]
        & compiled.destination_rules[lookup.destination_class[destination]]
        & compiled.port_rules[compiled.ports[place]]
    )
    return bits_of(common).tolist()


# ---- words


def _kind(rule: Rule) -> int:
    return rule.credit[0]


def _why(reason: Reason, decision: Decision, rules: list[Rule]) -> str:
    if reason == Reason.ICMP_UNRELATED:
        return "an ICMP error belongs to the conversation it quotes and passes only with it"
    if reason == Reason.NO_POLICY:
        return "there is no policy: everything is allowed"
    if not rules:
        return f"no rule matches: the default is {word(decision)}"
    return f"{rules[0].name!r} {_win(rules)}"


def _win(rules: list[Rule]) -> str:
    """Why the first of `rules` decides."""
    first, *others = rules
    if not others:
        return "is the only rule that matches"
    reasons = []
    if any(_kind(rule) == _kind(first) for rule in others):
        reasons.append("is the first by name of its kind")
    if any(_kind(rule) > _kind(first) for rule in others):
        below = {_kind(rule) for rule in others} - {_kind(first)}
        reasons.append("denies, and deny beats allow" if 2 in below else "drops, and that beats reporting")
    return ", ".join(reasons)


def _match(rule: Rule, rules: list[Rule], *, decides: bool) -> Match:
    first = rules[0]
    if decides:
        why = _win(rules)
    elif rule is first:
        why = "is not asked"
    elif _kind(rule) == _kind(first):
        why = f"is later by name than {first.name!r}"
    else:
        why = "deny beats allow" if rule.action == Decision.ALLOW else "a denial that drops beats one that reports"
    return Match(rule.name, word(rule.action), rule.report_only, decides, why, rule.line, rule.text)


def _notes(compiled: Compiled, family: int, proto: int, port: int) -> Iterator[str]:
    if not compiled.host and any(rule.speaks_of(Reserved.HOST) for rule in compiled.order):
        yield "which addresses are the node's own is not known here: as if it had none, `host` matches nothing"
    for name, of_family, of_proto, ports, when in _BUILTIN_NOTES:
        on = int(compiled.slot["builtins"]) >> BUILTINS.index(name) & 1
        if on and (family, proto) == (of_family, of_proto) and port in ports:
            yield f"{when} the built-in rule builtin:{name} allows it before any rule is asked"
