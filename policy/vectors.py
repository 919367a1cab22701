"""The rule vectors of a compiled policy, laid out for `policy.evaluate`."""

from dataclasses import dataclass

import numpy as np

from schemas.codes import Decision, Reason, RuleId


def summary(matrix: np.ndarray) -> np.ndarray:
    """Of a matrix of Compiled: uint64[classes, ⌈words / 64⌉]; bit i of word b says that word 64·b + i is not zero."""
    classes, words = matrix.shape
    used = np.zeros((classes, (words + 63) // 64 * 64), bool)
    used[:, :words] = matrix != 0
    return np.packbits(used, axis=1, bitorder="little").view("<u8")


@dataclass(frozen=True)
class ClassVectors:
    """One matrix of uint64[classes, words]. `flat`: row after row. `summary`: uint64[blocks, classes]."""

    flat: np.ndarray
    summary: np.ndarray

    @property
    def blocks(self) -> int:
        """Words of summary a class."""
        return len(self.summary)

    @classmethod
    def of(cls, matrix: np.ndarray) -> "ClassVectors":
        """From a matrix of Compiled."""
        return cls(np.ascontiguousarray(matrix).ravel(), np.ascontiguousarray(summary(matrix).T))


@dataclass(frozen=True)
class Vectors:
    """Both sides and ports, and what each rule says: entry i for rule i, the last entry for the default."""

    words: int
    source: ClassVectors
    destination: ClassVectors
    port: ClassVectors
    rule: np.ndarray  # uint16
    decision: np.ndarray  # uint8
    reason: np.ndarray  # uint8
    report_only: np.ndarray  # bool

    @classmethod
    def of(
        cls, source: np.ndarray, destination: np.ndarray, port: np.ndarray, rules: np.ndarray, default: Decision
    ) -> "Vectors":
        """From the arrays of Compiled."""
        n = len(rules)
        return cls(
            words=source.shape[1],
            source=ClassVectors.of(source),
            destination=ClassVectors.of(destination),
            port=ClassVectors.of(port),
            rule=np.append(np.arange(n) + RuleId.FIRST, RuleId.DEFAULT).astype("<u2"),
            decision=np.append(rules["decision"], int(default)).astype("u1"),
            reason=np.append(np.full(n, int(Reason.RULE)), int(Reason.DEFAULT)).astype("u1"),
            report_only=np.append(rules["report_only"] != 0, False),
        )
