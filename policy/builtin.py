"""Words for the numbers of rules and identities that no policy.yaml defines."""

import numpy as np

from schemas.codes import IdentityId, RuleId, word

_BUILTIN_PREFIX = "builtin_"

BUILTINS: tuple[str, ...] = tuple(
    word(rule).removeprefix(_BUILTIN_PREFIX) for rule in sorted(RuleId) if word(rule).startswith(_BUILTIN_PREFIX)
)
"""What `builtins:` in policy.yaml can switch; bit i of the slot's `builtins` is BUILTINS[i]."""


def switched(off: frozenset[str]) -> dict[str, bool]:
    """Every built-in rule → whether it is on."""
    return {name: name not in off for name in BUILTINS}


_UDP, _ICMPV6 = 17, 58
_TUPLES = {
    "ndp": (6, _ICMPV6, range(133, 138)), "mld": (6, _ICMPV6, (130, 131, 132, 143)), "dhcp": (4, _UDP, (67, 68)),
    "dhcpv6": (6, _UDP, (546, 547)),
}  # fmt: skip
"""Built-in rule → family, protocol and ports (types) it speaks of. It asks for a hop limit or source port besides."""


def possible(names: frozenset[str], family: np.ndarray, proto: np.ndarray, port: np.ndarray) -> np.ndarray:
    """bool[n]: tuples (uint8[n], uint8[n], uint16[n]) that a packet of one of the built-in rules `names` may have."""
    found = np.zeros(len(family), bool)
    for name in names:
        its_family, its_proto, ports = _TUPLES[name]
        some = np.flatnonzero((proto == its_proto) & (family == its_family))
        found[some] |= np.isin(port[some], list(ports))
    return found


RULE_NAMES: dict[int, str] = {
    int(rule): word(rule).replace(_BUILTIN_PREFIX, "builtin:", 1) for rule in RuleId if rule != RuleId.FIRST
}
"""Rule number → word, for numbers below RuleId.FIRST."""

IDENTITY_NAMES: dict[int, str] = {int(number): word(number) for number in IdentityId if number != IdentityId.FIRST}
"""Identity number → word, for numbers below IdentityId.FIRST."""
