"""Words for the numbers of rules and identities that no policy.yaml defines."""

from schemas.codes import IdentityId, RuleId, word

_BUILTIN_PREFIX = "builtin_"

BUILTINS: tuple[str, ...] = tuple(
    word(rule).removeprefix(_BUILTIN_PREFIX) for rule in sorted(RuleId) if word(rule).startswith(_BUILTIN_PREFIX)
)
"""What `builtins:` in policy.yaml can switch; bit i of the slot's `builtins` is BUILTINS[i]."""


def switched(off: frozenset[str]) -> dict[str, bool]:
    """Every built-in rule → whether it is on."""
    return {name: name not in off for name in BUILTINS}


RULE_NAMES: dict[int, str] = {
    int(rule): word(rule).replace(_BUILTIN_PREFIX, "builtin:", 1) for rule in RuleId if rule != RuleId.FIRST
}
"""Rule number → word, for numbers below RuleId.FIRST."""

IDENTITY_NAMES: dict[int, str] = {int(number): word(number) for number in IdentityId if number != IdentityId.FIRST}
"""Identity number → word, for numbers below IdentityId.FIRST."""
