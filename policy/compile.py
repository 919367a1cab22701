"""Policy → arrays that the kernel and `policy.evaluate` read alike.

An address falls into a source class and a destination class (by longest prefix), a protocol and port into a port
class; each class holds the bit vector of rules that match it. Rules are numbered in order of credit, so the first bit
set in source & destination & port is the rule that decides: the meaning of a set of rules, by construction.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from policy.builtin import BUILTINS, IDENTITY_NAMES, RULE_NAMES
from policy.errors import PolicyError
from policy.lookup import Lookup
from policy.model import Policy, PortSpan, Rule
from policy.regions import Classes, divide
from policy.vectors import Vectors
from policy.words import prefix
from schemas.codes import Decision, IdentityId, PortGroup, RuleId, word
from schemas.messages import IdentityInfo, RuleInfo
from schemas.structs import KNOBS, PORT_GROUPS, PORTS_PER_SLOT, RULE, SLOT, dtype

_RULE_DTYPE = dtype(RULE)
_SLOT_DTYPE = dtype(SLOT)
_KNOB_OF = {
    "rules": "RULES_MAX", "source_classes": "CLASSES_MAX", "destination_classes": "CLASSES_MAX",
    "port_classes": "CLASSES_MAX", "prefixes": "PREFIXES_MAX",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Compiled:
    """A policy as arrays. n rules take `words` = max(1, ⌈n / 64⌉) words; bit i of word w is rule 64·w + i.

    `prefixes`: regions.PREFIX_DTYPE, sorted by family, address, length; `addr` has an IPv4 address in its last 4 bytes.
    Those that would say what the next longer one around them says are left out.
    `ports`: uint32[PORTS_PER_SLOT] → port class, laid out as structs.PORT_GROUPS.
    `source_rules`, `destination_rules`, `port_rules`: uint64[classes, words]; class 0 of the first two: in no prefix.
    `order`: the rules, and `rules` (structs.RULE) what they do, both in order of credit. `slot`: a structs.SLOT.
    `host`: the node's addresses it was compiled with.
    """

    policy: Policy | None
    prefixes: np.ndarray
    ports: np.ndarray
    source_rules: np.ndarray
    destination_rules: np.ndarray
    port_rules: np.ndarray
    rules: np.ndarray
    slot: np.void
    order: tuple[Rule, ...]
    host: tuple[str, ...]

    @cached_property
    def lookup(self) -> Lookup:
        """What `evaluate` makes of `prefixes`."""
        return Lookup.of(self.prefixes)

    @cached_property
    def vectors(self) -> Vectors:
        """What `evaluate` makes of the rule vectors."""
        default = Decision(int(self.slot["default_decision"]))
        return Vectors.of(self.source_rules, self.destination_rules, self.port_rules, self.rules, default)

    def rule_name(self, number: int) -> str:
        """Name of a rule number as verdicts carry it, reserved ones too; `rule:<number>` if there is none."""
        index = number - RuleId.FIRST
        if 0 <= index < len(self.order):
            return self.order[index].name
        return RULE_NAMES.get(number, f"rule:{number}")

    def identity_name(self, number: int) -> str:
        """Name of an identity number as verdicts carry it, reserved ones too; `identity:<number>` if there is none."""
        index = number - IdentityId.FIRST
        if self.policy is not None and 0 <= index < len(self.policy.identities):
            return self.policy.identities[index].name
        return IDENTITY_NAMES.get(number, f"identity:{number}")

    def rule_infos(self) -> list[RuleInfo]:
        """The rules in order of credit, as history needs them."""
        return [
            RuleInfo(RuleId.FIRST + index, rule.name, word(rule.action), rule.report_only, rule.text)
            for index, rule in enumerate(self.order)
        ]

    def identity_infos(self) -> list[IdentityInfo]:
        """The named identities in order of the file, as history needs them."""
        identities = self.policy.identities if self.policy is not None else ()
        return [
            IdentityInfo(IdentityId.FIRST + index, i.name, dict(i.labels), [str(a) for a in i.addresses])
            for index, i in enumerate(identities)
        ]

    def sizes(self) -> dict[str, int]:
        """How much there is of everything, and `bytes` of all arrays."""
        arrays = (self.prefixes, self.ports, self.source_rules, self.destination_rules, self.port_rules, self.rules)
        return {
            "rules": len(self.rules),
            "words": self.source_rules.shape[1],
            "prefixes": len(self.prefixes),
            "source_classes": len(self.source_rules),
            "destination_classes": len(self.destination_rules),
            "port_classes": len(self.port_rules),
            "bytes": sum(array.nbytes for array in arrays),
        }

    def check_capacity(self, knobs: Mapping[str, int] | None = None) -> None:
        """Raise PolicyError if a kernel table is too small. `knobs` override schemas.structs.KNOBS by name."""
        sizes, places = self.sizes(), room(knobs)
        for what in _KNOB_OF:
            if sizes[what] > places[what]:
                told = f"{sizes[what]:,} {what.replace('_', ' ')}"
                message = f"the policy needs {told}, the kernel table has room for {places[what]:,}"
                needs = ((knob, sizes[of]) for of, knob in _KNOB_OF.items())
                raise PolicyError(message, hint_to_enlarge(needs, knobs))


def room(knobs: Mapping[str, int] | None = None) -> dict[str, int]:
    """How much of each of `Compiled.sizes` the kernel's tables take. `knobs` override schemas.structs.KNOBS by name."""
    limits = _limits(knobs)
    return {what: limits[knob] for what, knob in _KNOB_OF.items()}


def hint_to_enlarge(needs: Iterable[tuple[str, int]], knobs: Mapping[str, int] | None = None) -> str:
    """What to set so that `needs` (knob, how much of it) fit; `knobs` override schemas.structs.KNOBS by name."""
    limits, enough = _limits(knobs), dict[str, int]()
    for knob, needed in needs:
        if needed > limits[knob]:
            enough[knob] = max(enough.get(knob, 0), (needed + 63) // 64 * 64)
    told = " and ".join(f"{knob} = {n}" for knob, n in enough.items())
    now = " and ".join(f"{limits[knob]:,}" for knob in enough)
    return f"set {told} under [knobs] in the settings ({now} now), and start the collector anew"


def _limits(knobs: Mapping[str, int] | None) -> dict[str, int]:
    return {knob.name: knob.default for knob in KNOBS} | dict(knobs or {})


def compile_policy(policy: Policy | None, *, host: Sequence[str] = ()) -> Compiled:
    """Compile `policy`; None: everything is allowed. `host`: the node's own addresses, as text.

    Raises PolicyError for a bad host address, and if the vectors would be larger than any kernel should hold.
    """
    order = tuple(sorted(policy.rules, key=lambda rule: rule.credit)) if policy is not None else ()
    words = max(1, (len(order) + 63) // 64)
    regions = divide(policy, order, sorted({prefix(address) for address in host}), words)
    ports, port_rules = _port_classes(order, words)
    rules = np.zeros(len(order), _RULE_DTYPE)
    rules["decision"] = [rule.action for rule in order]
    rules["report_only"] = [rule.report_only for rule in order]
    rules["sample"] = [rule.sample for rule in order]
    return Compiled(
        policy=policy,
        prefixes=regions.prefixes,
        ports=ports,
        source_rules=regions.source_rules,
        destination_rules=regions.destination_rules,
        port_rules=port_rules,
        rules=rules,
        slot=_slot(policy, words),
        order=order,
        host=tuple(host),
    )


def _slot(policy: Policy | None, words: int) -> np.void:
    off = policy.builtins_off if policy is not None else frozenset[str]()
    slot = np.zeros(1, _SLOT_DTYPE)
    slot["words"] = words
    slot["has_policy"] = policy is not None
    slot["default_decision"] = policy.default if policy is not None else Decision.ALLOW
    slot["builtins"] = sum(1 << bit for bit, name in enumerate(BUILTINS) if name not in off)
    return slot[0]


def _port_classes(order: Sequence[Rule], words: int) -> tuple[np.ndarray, np.ndarray]:
    """Port class per place in the `ports` table (uint32), and the vector per class.

    All groups lie on one line, cut where a span of any rule begins or ends. A rule's spans are disjoint, so its bit
    is toggled at both ends of each, and the running exclusive-or along the line is the vector of every piece.
    """
    base = [PORT_GROUPS[group.name][0] for group in PortGroup]
    rules_of: dict[tuple[PortSpan, ...], int] = {}
    for number, rule in enumerate(order):
        rules_of[rule.ports] = rules_of.get(rule.ports, 0) | 1 << number
    toggles: dict[int, int] = {0: 0}
    for spans, rules in rules_of.items():
        for group, first, last in spans:
            for cut in (base[group] + first, base[group] + last + 1):
                toggles[cut] = toggles.get(cut, 0) ^ rules
    classes = Classes(words)
    vector = 0
    cuts = sorted(toggles.keys() - {PORTS_PER_SLOT})
    pieces = []
    for cut in cuts:
        vector ^= toggles[cut]
        pieces.append(classes.number(vector))
    return np.repeat(np.array(pieces, "<u4"), np.diff([*cuts, PORTS_PER_SLOT])), classes.matrix()
