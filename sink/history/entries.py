"""What an audit tells of each pair, port and rules, made column by column: there may be half a million of them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from schemas.codes import Decision, word
from schemas.present import proto_text
from sink.history.changes import COUNTS, Change, Columns
from sink.history.scopes import Scopes

Entry = dict[str, Any]
LISTS = {
    "newly_denied": (Change.NEWLY_DENIED,), "newly_allowed": (Change.NEWLY_ALLOWED,),
    "uncertain": tuple(range(Change.NEWLY_ALLOWED + 1, max(Change) + 1)),
}  # fmt: skip
"""List → the changes it is of."""
_PAIR = ("src_identity", "dst_identity", "proto", "dport", "rule_before", "rule_after")
_DECISIONS = ("decision_before", "decision_after", "report_only_after")
_RANKS = 1 << 62
_REDUCTIONS = dict.fromkeys(COUNTS, np.add) | {
    "first_seen": np.minimum, "last_seen": np.maximum, "lower_bound": np.logical_or,
}  # fmt: skip


class _Told:
    """A column of things that many rows have: `words` the different ones, in the order of their text, `at` of each row
    which."""

    def __init__(self, numbers: np.ndarray, tell: Callable[[int], Any]) -> None:
        different, inverse = np.unique(numbers, return_inverse=True)
        told = [tell(number) for number in different.tolist()]
        words = sorted(dict.fromkeys(told), key=str)
        place = {said: i for i, said in enumerate(words)}
        self.words = np.array([*words, None], object)[:-1]
        self.at = np.array([place[said] for said in told], np.intp)[inverse]


def entries(found: Columns, scopes: Scopes) -> dict[str, list[Entry]]:
    """The LISTS of an audit, of what `Changes.columns` gave: the most packets first, then the most flows."""
    if not found:
        return {name: [] for name in LISTS}
    told = _told(found, scopes)
    order, begins = _groups(list(told.values()))
    sums = {name: how.reduceat(found[name][order], begins) for name, how in _REDUCTIONS.items()}
    firsts = order[begins]
    biggest = np.lexsort((~sums["flows"], ~sums["packets"]))  # equal ones stay in the order of their words
    change = found["change"][firsts[biggest]]
    out = {}
    for name, changes in LISTS.items():
        some = biggest[np.isin(change, changes)]
        of = firsts[some]
        columns = {key: told[key].words[told[key].at[of]].tolist() for key in _PAIR}
        columns |= {key: sums[key][some].tolist() for key in COUNTS}
        columns |= {key: _moments(sums[key][some]) for key in ("first_seen", "last_seen")}
        columns["lower_bound"] = sums["lower_bound"][some].tolist()
        columns |= {key: told[key].words[told[key].at[of]].tolist() for key in _DECISIONS}
        if len(changes) > 1:
            columns["cause"] = [word(Change(number)) for number in found["change"][of].tolist()]
        out[name] = list(_rows(columns))
    return out


def _told(found: Columns, scopes: Scopes) -> dict[str, _Told]:
    """What tells entries apart: the change, then the columns _PAIR and _DECISIONS."""
    candidate = scopes.candidate
    names = found["names"].astype("<u8") << np.uint64(32)

    def of_the_day(name: str, tell: Callable[[int, int], str]) -> _Told:
        return _Told(names | found[name], lambda number: tell(number >> 32, number & 0xFFFFFFFF))

    def decision(denied: int) -> str:
        return word(Decision.DENY if denied else Decision.ALLOW)

    return {
        "change": _Told(found["change"], int),
        "src_identity": of_the_day("src_identity", scopes.identity_name),
        "dst_identity": of_the_day("dst_identity", scopes.identity_name),
        "proto": _Told(found["proto"], proto_text),
        "dport": _Told(found["dport"], int),
        "rule_before": of_the_day("rule_before", scopes.rule_name),
        "rule_after": _Told(found["rule_after"], candidate.rule_name),
        "decision_before": _Told(found["denied_before"], decision),
        "decision_after": _Told(found["denied_after"], decision),
        "report_only_after": _Told(found["rule_after"], candidate.report_only),
    }


def _groups(columns: list[_Told]) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their words, and where in it those begin that have other words than the one before.

    Rows of several nodes and revisions say the same by other numbers.
    """
    rank, ranks = np.zeros(len(columns[0].at), np.intp), 1
    for column in columns:
        if ranks * len(column.words) > _RANKS:
            rank = np.unique(rank, return_inverse=True)[1]
            ranks = int(rank.max()) + 1
        rank = rank * len(column.words) + column.at
        ranks *= len(column.words)
    order = np.argsort(rank, kind="stable")
    return order, np.flatnonzero(np.diff(rank[order], prepend=-1))


def _moments(times: np.ndarray) -> list[str]:
    """ns since 1970 as RFC 3339 in UTC."""
    return [f"{text}Z" for text in np.datetime_as_string(times.astype("M8[ns]")).tolist()]


def _rows(columns: dict[str, list[Any]]) -> Iterator[Entry]:
    names = tuple(columns)
    return (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
