"""What holds for the rows of each revision of each ring: whose names, which addresses, who judges."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from policy.builtin import RULE_NAMES
from schemas.codes import IdentityId
from sink.history.judges import Judge
from sink.history.revisions import Names, Revision, Revisions

_RECORDED = np.uint32(1 << 31)
"""Added to the number of an identity that is the record's, not the candidate's."""
Rows = dict[str, np.ndarray]
"""Columns by name, all of one length."""


@dataclass(frozen=True, eq=False)
class Scope:
    """What holds for the rows of one revision of one ring. `names`: number of the names of rules and identities before.

    `baseline` None: what was recorded. `host_known` False: a rule speaks of the node's addresses, which nobody knows.
    """

    revision: Revision
    host: tuple[str, ...]
    host_known: bool
    baseline: Judge | None
    off: frozenset[str]
    names: int


class Scopes:
    """The candidate, and what it is compared with."""

    def __init__(self, candidate: Judge, baselines: dict[int, Judge], revisions: Revisions, now: bool) -> None:
        self.candidate = candidate
        self._names: list[tuple[Names | Judge, Names]] = []
        self._baselines = baselines
        self._revisions = revisions
        self._now = now
        self._scopes: dict[int, Scope] = {}
        self._number_of: dict[tuple[int, int], int] = {}

    def parts(self, rows: Rows) -> Iterator[tuple[Rows, Scope]]:
        """`rows` by what holds for them."""
        ring, revision = rows["ring"], rows["revision"]
        if (ring == ring[0]).all() and (revision == revision[0]).all():
            yield rows, self._scope(int(ring[0]), int(revision[0]))
            return
        keys = ring.astype("<u8") << np.uint64(32) | revision
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        columns = {name: column[order] for name, column in rows.items()}
        edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
        for begin, end in pairwise(edges):
            part = {name: column[begin:end] for name, column in columns.items()}
            yield part, self._scope(int(keys[begin]) >> 32, int(keys[begin]) & 0xFFFFFFFF)

    def _scope(self, ring: int, number: int) -> Scope:
        key = ring << 32 | number
        if key not in self._scopes:
            revision = self._revisions.of(ring, number)
            baseline = self._baselines.get(ring)
            host = self._revisions.last_host(ring) if self._now else self._revisions.host(ring, number)
            judges = [self.candidate, *([baseline] if baseline is not None else [])]
            self._scopes[key] = Scope(
                revision, host or (), host is not None or not any(judge.names_host for judge in judges),
                baseline, revision.builtins_off,
                self._numbered(revision.rules if baseline is None else baseline, {} if self._now else revision.named),
            )  # fmt: skip
        return self._scopes[key]

    def rule_name(self, names: int, number: int) -> str:
        """The name of a rule of before."""
        rules = self._names[names][0]
        if isinstance(rules, Judge):
            return rules.rule_name(number)
        return RULE_NAMES.get(number) or rules.get(number) or f"rule:{number}"

    def of_the_day(self, names: int, recorded: np.ndarray, judged: np.ndarray) -> np.ndarray:
        """Identity numbers, uint32[n], to be told by `identity_name`: as recorded where the day had a name for the
        address, else as the candidate has one."""
        if not self._names[names][1]:
            return judged
        return np.where(recorded >= IdentityId.FIRST, recorded | _RECORDED, judged)

    def identity_name(self, names: int, number: int) -> str:
        """The name of an identity, by a number of `of_the_day`."""
        if number < _RECORDED:
            return self.candidate.identity_name(number)
        number -= int(_RECORDED)
        return self._names[names][1].get(number) or f"identity:{number}"

    def _numbered(self, rules: Names | Judge, identities: Names) -> int:
        """Number of two tables of names; `_names` keeps them, so that their ids stay their own."""
        key = (id(rules), id(identities))
        if key not in self._number_of:
            self._number_of[key] = len(self._names)
            self._names.append((rules, identities))
        return self._number_of[key]
