"""Where two policies differ, in the terms of their classes.

Both policies' classes together cut the space of one family into boxes, inside which neither tells anything apart. Not
all boxes are looked at: ports on which the same rules can still decide are taken as one, and of their boxes only those
that a rule touches which the other policy has not. A small change in a large policy costs little; what a large one may
cost is bounded by MAX_BOXES.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from policy.compile import Compiled
from policy.errors import PolicyError
from policy.space import bits_of, distinct, first_rules

MAX_BOXES = 300_000_000
"""Most boxes that are looked at."""


class Change(NamedTuple):
    """Verdicts before and after, and a box: bit i of each number is joint class i. No tuple is in two changes."""

    before: int
    after: int
    sources: int
    destinations: int
    ports: int


@dataclass(frozen=True)
class Joint:
    """One axis cut by both policies: the class in either of each joint class (intp[k]), and the joint class of each
    cell or piece, -1 for those that do not count."""

    a: np.ndarray
    b: np.ndarray
    of: np.ndarray

    @classmethod
    def join(cls, a: np.ndarray, b: np.ndarray, counts: np.ndarray | None = None) -> "Joint":
        """From the classes of each cell or piece in either policy; `counts` (bool): which of them to take."""
        if counts is None:
            counts = np.ones(len(a), bool)
        a, b = a.astype(np.intp), b.astype(np.intp)
        _, first, joint = np.unique(a[counts] * (int(b.max()) + 1) + b[counts], return_index=True, return_inverse=True)
        of = np.full(len(a), -1, np.intp)
        of[counts] = joint
        return cls(a[counts][first], b[counts][first], of)

    def mask(self, members: int) -> np.ndarray:
        """bool: the cells or pieces of a set of joint classes."""
        raw = np.frombuffer(members.to_bytes((len(self.a) + 7) // 8, "little"), "u1")
        chosen = np.unpackbits(raw, bitorder="little")[: len(self.a)].astype(bool)
        return np.append(chosen, False)[self.of]


class Axes(NamedTuple):
    """All three of one family."""

    sources: Joint
    destinations: Joint
    ports: Joint


class Budget:
    """What is left of MAX_BOXES."""

    def __init__(self) -> None:
        self._left = MAX_BOXES

    def spend(self, boxes: int) -> None:
        """Raises PolicyError when it is used up."""
        self._left -= boxes
        if self._left < 0:
            message = f"the policies differ in more than {MAX_BOXES:,} combinations of sources, destinations and ports"
            raise PolicyError(message, "compare them in steps that change less")


class _Side:
    """One policy in one family. `verdicts`: intp[rules + 1], what each rule says, then the default."""

    def __init__(self, compiled: Compiled, verdicts: np.ndarray, sources: np.ndarray, destinations: np.ndarray) -> None:
        self.compiled, self.verdicts = compiled, verdicts
        self.classes = (sources, destinations)
        self.vectors = (compiled.source_rules[sources], compiled.destination_rules[destinations])
        self._active = np.bitwise_and(*(np.bitwise_or.reduce(v) for v in self.vectors))
        self._everywhere = np.bitwise_and(*(np.bitwise_and.reduce(v) for v in self.vectors))
        self.touched = tuple(_columns(v) for v in self.vectors)  # u1[rules, ⌈k / 8⌉]: joint classes of each rule

    def deciding(self, port: int) -> tuple[bytes, int]:
        """(rule vector, verdict of the rest): rules that make a difference on a port class, and what holds where none
        of them matches."""
        vector = self.compiled.port_rules[port] & self._active
        rest, rules = -1, bits_of(vector)
        everywhere = bits_of(vector & self._everywhere)
        if len(everywhere):  # nothing behind it ever decides
            rest = int(everywhere[0])
            rules = rules[rules < rest]
        verdict = int(self.verdicts[rest])
        others = np.flatnonzero(self.verdicts[rules] != verdict)
        rules = rules[: others[-1] + 1] if len(others) else rules[:0]  # those behind say what the rest says
        kept = np.zeros(vector.nbytes * 8, "u1")
        kept[rules] = 1
        return np.packbits(kept, bitorder="little").tobytes(), verdict

    def keys(self, known: dict[tuple[int, bytes, bytes], int]) -> np.ndarray:
        """A number a rule, the same for rules of either policy that say the same of the same classes: intp[rules]."""
        sources, destinations = self.touched
        return np.array(
            [
                known.setdefault((verdict, sources[rule].tobytes(), destinations[rule].tobytes()), len(known))
                for rule, verdict in enumerate(self.verdicts[:-1].tolist())
            ],
            np.intp,
        )


def _columns(vectors: np.ndarray) -> np.ndarray:
    """The rows of uint64[k, words] that have each bit: packed, u1[64 · words, ⌈k / 8⌉]; 64 bits at a time."""
    parts = []
    for word in np.ascontiguousarray(vectors.T):
        bits = np.unpackbits(word.view("u1").reshape(-1, 8), axis=1, bitorder="little")
        parts.append(np.packbits(bits.T, axis=1, bitorder="little"))
    return np.concatenate(parts)


def changes(
    a: Compiled, b: Compiled, verdicts: tuple[np.ndarray, np.ndarray], axes: Axes, budget: Budget
) -> list[Change]:
    """Where the verdicts of two policies differ in one family. `verdicts`: per policy intp[rules + 1], by rule in order
    of credit and last the default's. Raises PolicyError if that is too much to look at.
    """
    sides = (
        _Side(a, verdicts[0], axes.sources.a, axes.destinations.a),
        _Side(b, verdicts[1], axes.sources.b, axes.destinations.b),
    )
    known: dict[tuple[int, bytes, bytes], int] = {}
    keys = (sides[0].keys(known), sides[1].keys(known))
    ports: dict[tuple[tuple[bytes, int], tuple[bytes, int]], list[int]] = {}
    of_class: tuple[dict[int, tuple[bytes, int]], ...] = ({}, {})
    for joint, pair in enumerate(zip(axes.ports.a.tolist(), axes.ports.b.tolist(), strict=True)):
        for side, memory, port in zip(sides, of_class, pair, strict=True):
            if port not in memory:
                memory[port] = side.deciding(port)
        ports.setdefault((of_class[0][pair[0]], of_class[1][pair[1]]), []).append(joint)
    found: dict[tuple[int, int, int, int], int] = {}
    for alike, joints in ports.items():
        at = (int(axes.ports.a[joints[0]]), int(axes.ports.b[joints[0]]))
        mask = _number(np.array(joints), len(axes.ports.a))
        for box in _on_port(sides, keys, alike, at, budget):
            found[box] = found.get(box, 0) | mask
    return _merged([Change(*box, mask) for box, mask in found.items()])


class _Cut(NamedTuple):
    """The joint classes of an axis that are looked at: `joint` (intp[m]) of `total`, the `kind` of each (intp[m]: what
    the rules at hand cannot tell apart is one), and a joint class of each kind, `one`."""

    joint: np.ndarray
    total: int
    kind: np.ndarray
    one: np.ndarray

    def number(self, kinds: np.ndarray) -> int:
        """The joint classes of the kinds that are True in bool[kinds]."""
        return _number(self.joint[kinds[self.kind]], self.total)


def _on_port(
    sides: tuple[_Side, _Side],
    keys: tuple[np.ndarray, np.ndarray],
    alike: tuple[tuple[bytes, int], tuple[bytes, int]],
    at: tuple[int, int],
    budget: Budget,
) -> Iterator[tuple[int, int, int, int]]:
    """(before, after, sources, destinations) of the boxes that differ on one kind of ports, of which `at` is one."""
    vectors = [np.frombuffer(vector, "<u8") for vector, _ in alike]
    active = [bits_of(vector) for vector in vectors]
    there = [key[rules] for key, rules in zip(keys, active, strict=True)]
    changed = [active[0][~np.isin(there[0], there[1])], active[1][~np.isin(there[1], there[0])]]
    same_rest = alike[0][1] == alike[1][1]
    if same_rest and not any(map(len, changed)):
        return
    sources, destinations = (_cut(sides, axis, vectors, changed if same_rest else None) for axis in (0, 1))
    budget.spend(len(sources.one) * len(destinations.one))
    before, after = (
        side.verdicts[first_rules(side.compiled, side.classes[0][sources.one], side.classes[1][destinations.one], port)]
        for side, port in zip(sides, at, strict=True)
    )
    base = int(after.max()) + 1
    pairs = np.where(before == after, -1, before * base + after)
    for pair in np.unique(pairs).tolist():
        if pair >= 0:
            for rows, columns in _rectangles(pairs == pair):
                yield pair // base, pair % base, sources.number(rows), destinations.number(columns)


def _cut(sides: tuple[_Side, _Side], axis: int, vectors: list[np.ndarray], changed: list[np.ndarray] | None) -> _Cut:
    """An axis as `vectors`, the rules that can decide, cut it; of it only what `changed` rules touch, if given."""
    total = len(sides[0].classes[axis])
    joint = np.arange(total)
    if changed is not None:
        touched = np.zeros((total + 7) // 8, "u1")
        for side, rules in zip(sides, changed, strict=True):
            touched |= np.bitwise_or.reduce(side.touched[axis][rules], axis=0)
        joint = np.flatnonzero(np.unpackbits(touched, bitorder="little")[:total])
    both = []
    for side, vector in zip(sides, vectors, strict=True):
        words = np.flatnonzero(vector)
        both.append(side.vectors[axis][np.ix_(joint, words)] & vector[words])
    first, kind = distinct(np.concatenate(both, axis=1))
    return _Cut(joint, total, kind, joint[first])


def _number(members: np.ndarray, total: int) -> int:
    bits = np.zeros(total, "u1")
    bits[members] = 1
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def _rectangles(matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Disjoint (rows, columns) of bool that together are `matrix`: rows that are alike, or columns, if fewer."""
    by_row, by_column = _alike(matrix), _alike(matrix.T)
    if len(by_row) <= len(by_column):
        return by_row
    return [(rows, columns) for columns, rows in by_column]


def _alike(matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    patterns: dict[bytes, list[int]] = {}
    packed = np.packbits(matrix, axis=1)
    for row in np.flatnonzero(matrix.any(axis=1)).tolist():
        patterns.setdefault(packed[row].tobytes(), []).append(row)
    out = []
    for rows in patterns.values():
        chosen = np.zeros(len(matrix), bool)
        chosen[rows] = True
        out.append((chosen, matrix[rows[0]]))
    return out


def _merged(boxes: list[Change]) -> list[Change]:
    """Fewer boxes: those that differ in one axis alone become one, until no two do."""
    before = len(boxes) + 1
    while len(boxes) < before:
        before = len(boxes)
        for axis in ("destinations", "sources", "ports"):
            together: dict[Change, int] = {}
            for box in boxes:
                key = box._replace(**{axis: 0})
                together[key] = together.get(key, 0) | getattr(box, axis)
            boxes = [key._replace(**{axis: members}) for key, members in together.items()]
    return boxes
