"""A policy as it would have decided on any day of the record: its rules, with the addresses that names had then."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from policy.builtin import BUILTINS, possible
from policy.compile import Compiled, compile_policy
from policy.evaluate import evaluate
from policy.model import Identity, Policy, Reserved
from schemas.codes import Decision, Reason, RuleId
from sink.history.revisions import Revision

KEPT_BYTES = 512 << 20
"""Compiled policies kept at a time: some 200 of a small one, for as many nodes, whose own addresses differ."""
_LOOKUP_BYTES = 1 << 20
"""What `evaluate` makes of the arrays besides, of a small policy."""
NOT_POLICYS = (Reason.MALFORMED, Reason.HEADLESS_FRAGMENT, Reason.ICMP_UNRELATED)
"""Denied whatever the policy."""

_BUILTIN_RULES = {name: int(RuleId[f"BUILTIN_{name.upper()}"]) for name in BUILTINS}


@dataclass(frozen=True)
class Decided:
    """Of n rows: `rule` (uint16), `denied`, `unsure` (bool): a built-in rule, off on the day, may have decided, and
    `src_identity`, `dst_identity` (uint32): as the policy numbers them."""

    rule: np.ndarray
    denied: np.ndarray
    unsure: np.ndarray
    src_identity: np.ndarray
    dst_identity: np.ndarray


class Judge:
    """`policy` (None: no policy, all is allowed). `now`: its own identities count, whatever the day's were."""

    def __init__(self, policy: Policy | None, *, now: bool) -> None:
        self.policy = policy
        self._now = now
        off = policy.builtins_off if policy is not None else frozenset[str]()
        self._on = frozenset(BUILTINS) - off
        self._contents: dict[tuple[object, ...], int] = {_content(self._of_the_day(None)): 0}
        self._content_of: dict[int, tuple[int, Mapping[str, Identity]]] = {}
        self._compiled: OrderedDict[tuple[int, tuple[str, ...]], Compiled] = OrderedDict()
        self._bytes = 0
        self._plain = compile_policy(policy)

    @property
    def names_host(self) -> bool:
        """Whether a rule speaks of the node's own addresses."""
        sides = [side for rule in self._plain.order for side in (rule.source, rule.destination)]
        return any(Reserved.HOST in (*side.terms, *side.exclude) for side in sides)

    @property
    def hash(self) -> str:
        """SHA-256 of its text; empty: no policy."""
        return self.policy.hash if self.policy is not None else ""

    def rule_name(self, number: int) -> str:
        """The name of a rule number, reserved ones too: the same on all days."""
        return self._plain.rule_name(number)

    def report_only(self, rule: int) -> bool:
        """Whether a rule, by number, only reports."""
        index = rule - RuleId.FIRST
        return 0 <= index < len(self._plain.order) and self._plain.order[index].report_only

    def identity_name(self, number: int) -> str:
        """The name of an identity number: the same on all days, for the names are the policy's own."""
        return self._plain.identity_name(number)

    def on(self, revision: Revision, host: tuple[str, ...]) -> Compiled:
        """The policy with the identities of `revision`, where that knows the name, and `host` as the node's addresses.

        Equal contents are compiled once. Raises PolicyError: too large.
        """
        key = (self._number(revision.identities), host)
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        policy = self.policy
        if policy is not None and not self._now:
            policy = replace(policy, identities=self._of_the_day(revision.identities))
        found = self._compiled[key] = compile_policy(policy, host=host)
        self._bytes += _size(found)
        while self._bytes > KEPT_BYTES and len(self._compiled) > 1:
            self._bytes -= _size(self._compiled.popitem(last=False)[1])
        return found

    def _of_the_day(self, recorded: Mapping[str, Identity] | None) -> tuple[Identity, ...]:
        own = self.policy.identities if self.policy is not None else ()
        return tuple((recorded or {}).get(identity.name, identity) for identity in own)

    def _number(self, recorded: Mapping[str, Identity] | None) -> int:
        """Number of what the policy's names stand for, with `recorded` as the day's."""
        if self._now or not recorded:
            return 0
        # Revisions of equal identities share one mapping, which is kept here: its id stays its own.
        if id(recorded) not in self._content_of:
            content = _content(self._of_the_day(recorded))
            self._content_of[id(recorded)] = (self._contents.setdefault(content, len(self._contents)), recorded)
        return self._content_of[id(recorded)][0]

    def decide(self, compiled: Compiled, rows: Mapping[str, np.ndarray], off: frozenset[str]) -> Decided:
        """What `compiled` (of `on`) decides of recorded `rows`: src, dst (V16[n]), family, proto, dport, reason, rule.

        Built-in rules look at more than a tuple: what one decided on the day it decides again, if it is still on; `off`
        are those that could not, then.
        """
        found = evaluate(compiled, rows["src"], rows["dst"], rows["family"], rows["proto"], rows["dport"])
        rule, denied, reason = found["rule"], found["decision"] == Decision.DENY, rows["reason"]
        built_in = reason == Reason.BUILTIN
        if built_in.any():
            stays = built_in & np.isin(rows["rule"], [_BUILTIN_RULES[name] for name in self._on])
            rule[stays], denied[stays] = rows["rule"][stays], False
        own = reason >= min(NOT_POLICYS)
        if own.any():
            own = np.isin(reason, NOT_POLICYS)
            rule[own], denied[own] = rows["rule"][own], True
        unsure = np.zeros(len(rule), bool)
        if off & self._on:
            unsure = possible(off & self._on, rows["family"], rows["proto"], rows["dport"]) & denied & ~own
        return Decided(rule, denied, unsure, found["src_identity"], found["dst_identity"])


def _content(identities: tuple[Identity, ...]) -> tuple[object, ...]:
    """What there is in them, without lines and columns."""
    return tuple((one.name, *sorted(one.labels.items()), one.addresses) for one in identities)


def _size(compiled: Compiled) -> int:
    return 2 * compiled.sizes()["bytes"] + _LOOKUP_BYTES
