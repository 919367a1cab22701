"""The verdicts of an address, without reading what all others are made of.

A condition on one column is looked up where that column is read, and of rows that do not satisfy it nothing else is
unpacked. An address at either end is a condition on two columns, and would be asked of rows that were unpacked whole:
so each end is looked up for itself.
"""

from dataclasses import replace
from typing import Any

from schemas.filters import Filters, network

TABLE = "store.verdicts"
_HALF = (1 << 64) - 1


def found(asked: Filters) -> tuple[str, Filters]:
    """A relation to put for store.verdicts, and what is left to ask of it: addresses that stand alone are found.

    Raises InputError for what is no address or prefix.
    """
    alone = {name: texts[0] for name in ("from_ip", "to_ip", "ip") if len(texts := getattr(asked, name)) == 1}
    if not alone:
        return TABLE, asked
    where = [_at(side, alone[name]) for side, name in (("src", "from_ip"), ("dst", "to_ip")) if name in alone]
    parts = [where]
    if "ip" in alone:
        source, destination = (_at(side, alone["ip"]) for side in ("src", "dst"))
        parts = [[*where, source], [*where, destination, f"NOT ({source})"]]
    rows = " UNION ALL ".join(f"SELECT * FROM {TABLE} WHERE {' AND '.join(part)}" for part in parts)
    left: dict[str, Any] = dict.fromkeys(alone, ())
    return f"({rows})", replace(asked, **left)


def together(rows: str) -> str:
    """The few rows of a relation, and its WHERE, in one stream: what is said of them in words is then prepared once.

    Else it is for each end and each of DuckDB's threads, and that takes longer than the words of thousands.
    """
    return f"(SELECT * FROM {rows} ORDER BY time)"


def _at(side: str, text: str) -> str:
    """Whether that end lies in a network: its halves are ranges each, for a prefix ends in one of them."""
    inside = network(text)
    first, last = int(inside[0]), int(inside[-1])
    halves = {"lo": (first & _HALF, last & _HALF), "hi": (first >> 64, last >> 64)}  # DuckDB looks in this order
    ranges = [
        f"{side}_{half} {_between(low, high)}" for half, (low, high) in halves.items() if (low, high) != (0, _HALF)
    ]
    return " AND ".join([*ranges, f"family = {inside.version}"])


def _between(low: int, high: int) -> str:
    return f"= {low}::UBIGINT" if low == high else f"BETWEEN {low}::UBIGINT AND {high}::UBIGINT"
