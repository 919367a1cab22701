"""Counters by rule for the metrics: they only grow, and there are never more of them than is said.

Verdicts are counted by numbers, a batch at a time, as they leave the ring; packets and bytes are the kernel's, looked
at once a second. Names come later, once a second, for what has changed.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from collector.kernel.interface import Datapath
from schemas.codes import Decision, Direction, Reason, RuleId, words
from schemas.metrics import OTHER, RULES_MOST
from schemas.present import reserved_rule

Name = Callable[[int, int], str | None]
"""Revision and number of a rule → its name."""
_RESERVED = frozenset(name for rule in RuleId if (name := reserved_rule(int(rule))))
_DECISIONS, _REASONS, _DIRECTIONS = words(Decision), words(Reason), words(Direction)


class RuleSums:
    """Sums by (rule, …), which together never fall.

    A rule that left the policy keeps its own while there is room: moved to `other` they would look like traffic there.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], int] = {}
        self._rules: dict[str, None] = {}  # named, in the order in which they lose their names: the last first

    def keep(self, rules: Sequence[str]) -> None:
        """These are the rules of the running revision: named from now on, as are the latest before them, RULES_MOST
        in all. What the others have goes to `other`."""
        self._rules = dict.fromkeys([*dict.fromkeys((*rules[:RULES_MOST], *self._rules))][:RULES_MOST])
        sums: dict[tuple[str, ...], int] = {}
        for key, n in self._sums.items():
            kept = self._key(key[0], key[1:])
            sums[kept] = sums.get(kept, 0) + n
        self._sums = sums

    def _key(self, rule: str | None, rest: tuple[str, ...]) -> tuple[str, ...]:
        return (rule if rule in self._rules or rule in _RESERVED else OTHER, *rest)

    def add(self, rule: str | None, rest: tuple[str, ...], amount: int) -> None:
        """Count."""
        key = self._key(rule, rest)
        self._sums[key] = self._sums.get(key, 0) + amount

    def items(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """A copy, from any thread."""
        return iter(self._sums.copy().items())


class VerdictTally:
    """Verdicts by (rule, decision, reason, direction)."""

    def __init__(self) -> None:
        self.sums = RuleSums()
        self._new: dict[int, int] = {}

    def count(self, rows: np.ndarray) -> None:
        """Rows of schemas.verdict.DTYPE as they were read."""
        keys = (
            rows["revision"].astype(np.int64) << 32 | rows["rule"].astype(np.int64) << 16
            | rows["reason"].astype(np.int64) << 8 | rows["decision"].astype(np.int64) << 4 | rows["direction"]
        )  # fmt: skip
        found, counts = np.unique(keys, return_counts=True)
        for key, n in zip(found.tolist(), counts.tolist(), strict=True):
            self._new[key] = self._new.get(key, 0) + n

    def name(self, name: Name) -> None:
        """Give what was counted since the last time its names."""
        new, self._new = self._new, {}
        for key, n in new.items():
            said = _word(_DECISIONS, key >> 4 & 15), _word(_REASONS, key >> 8 & 255), _word(_DIRECTIONS, key & 15)
            self.sums.add(name(key >> 32, key >> 16 & 0xFFFF), said, n)


def _word(table: dict[int, str], code: int) -> str:
    return table.get(code, OTHER)


class PacketTally:
    """Packets and bytes by (rule, outcome), from the kernel's rule counters."""

    def __init__(self, datapath: Datapath, name: Name, rules: Callable[[int], Sequence[str]]) -> None:
        """`rules`: names of a revision's rules in order."""
        self.packets, self.bytes = RuleSums(), RuleSums()
        self._datapath, self._name, self._rules = datapath, name, rules
        self._last: list[np.ndarray | None] = [None, None]
        self._revisions: list[int | None] = [None, None]
        self._running: int | None = None

    def look(self, tables: Sequence[np.ndarray]) -> bool:
        """`tables`: rule_counters of both slots. True: another revision runs than the last time."""
        running = self._datapath.revision
        slot, changed = running & 1, running != self._running
        if self._revisions[slot] != running:
            self._begin(slot, running)
        if changed:
            self._running = running
            self._keep(running)
        for number, table in enumerate(tables):
            self._add(number, table)
        return changed

    def _begin(self, slot: int, revision: int) -> None:
        """Another revision has the slot: what was counted up to its beginning belongs to the one before."""
        baseline = self._datapath.rule_baseline(slot)
        if self._revisions[slot] is not None:
            self._add(slot, baseline)
        self._last[slot], self._revisions[slot] = _plain(baseline), revision

    def _keep(self, revision: int) -> None:
        rules = self._rules(revision)
        for sums in (self.packets, self.bytes):
            sums.keep(rules)
            for rule in (*sorted(_RESERVED), *rules):
                for outcome in ("passed", "dropped"):
                    sums.add(rule, (outcome,), 0)

    def _add(self, slot: int, table: np.ndarray) -> None:
        now, last = _plain(table), self._last[slot]
        self._last[slot] = now
        revision = self._revisions[slot]
        if last is None or revision is None:
            return  # of a revision before this collector's time
        grown = now - last
        for number in np.flatnonzero(grown.any(axis=1)).tolist():
            rule = self._name(revision, number)
            passed, passed_bytes, dropped, dropped_bytes = grown[number].tolist()
            self.packets.add(rule, ("passed",), passed)
            self.packets.add(rule, ("dropped",), dropped)
            self.bytes.add(rule, ("passed",), passed_bytes)
            self.bytes.add(rule, ("dropped",), dropped_bytes)


def _plain(table: np.ndarray) -> np.ndarray:
    """RULE_COUNTER rows as rows of four numbers: packets and bytes passed, packets and bytes dropped."""
    return np.ascontiguousarray(table).view(np.uint64).reshape(-1, 4)
