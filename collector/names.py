"""What numbers in verdicts were called when they were given: events of older revisions still wait in the ring."""

from typing import TYPE_CHECKING

from schemas.codes import IdentityId, RuleId
from schemas.present import reserved_identity, reserved_rule

if TYPE_CHECKING:
    from policy.compile import Compiled

KEEP = 16  # revisions


class RevisionNames:
    """schemas.present.Names over the last KEEP compiled policies of one ring."""

    def __init__(self) -> None:
        self._known: dict[int, Compiled] = {}

    def remember(self, revision: int, compiled: "Compiled", in_force: int | None = None) -> None:
        """Names of `revision`; when there are too many the oldest is forgotten, unless it is the one in force."""
        self._known[revision] = compiled
        while len(self._known) > KEEP:
            del self._known[min(self._known.keys() - {in_force})]

    def compiled(self, revision: int) -> "Compiled | None":
        """The policy of `revision`; None: unknown."""
        return self._known.get(revision)

    def rule(self, revision: int, number: int) -> str | None:
        if number < RuleId.FIRST:
            return reserved_rule(number)
        compiled = self._known.get(revision)
        if compiled is None or number - RuleId.FIRST >= len(compiled.rules):
            return None
        return compiled.rule_name(number)

    def identity(self, revision: int, number: int) -> str | None:
        if number < IdentityId.FIRST:
            return reserved_identity(number)
        compiled = self._known.get(revision)
        identities = compiled.policy.identities if compiled is not None and compiled.policy is not None else ()
        if compiled is None or number - IdentityId.FIRST >= len(identities):
            return None
        return compiled.identity_name(number)
