"""The verdicts of an address, without reading what all others are made of.

A condition on one column is looked up where that column is read, and of rows that do not satisfy it nothing else is
unpacked. An address at either end is a condition on two columns, and would be asked of rows that were unpacked whole:
so each end is looked up for itself.
"""

from schemas.filters import Filters, network

TABLE = "store.verdicts"
_HALF = (1 << 64) - 1


def rows(asked: Filters) -> str:
    """A relation to put for store.verdicts: its rows, each once, but for some that `predicate(asked)` is false of.

    Raises InputError for what is no address or prefix.
    """
    given = [("src", asked.from_ip), ("dst", asked.to_ip)]
    where = [_at(side, texts[0]) for side, texts in given if len(texts) == 1]
    if len(asked.ip) == 1:
        source, destination = (_at(side, asked.ip[0]) for side in ("src", "dst"))
        parts = [[*where, source], [*where, destination, f"NOT ({source})"]]
    else:
        parts = [where]
    if parts == [[]]:
        return TABLE
    return "(" + " UNION ALL ".join(f"SELECT * FROM {TABLE} WHERE {' AND '.join(part)}" for part in parts) + ")"


def together(rows: str) -> str:
    """The few rows of a relation, and its WHERE, in one stream: what is said of them in words is then prepared once.

    Else it is for each end and each of DuckDB's threads, and that takes longer than the words of thousands.
    """
    return f"(SELECT * FROM {rows} ORDER BY time)"


def _at(side: str, text: str) -> str:
    """Whether that end lies in a network: its halves are ranges each, for a prefix ends in one of them."""
    inside = network(text)
    first, last = int(inside[0]), int(inside[-1])
    halves = {"hi": (first >> 64, last >> 64), "lo": (first & _HALF, last & _HALF)}
    ranges = [
        f"{side}_{half} BETWEEN {low}::UBIGINT AND {high}::UBIGINT"
        for half, (low, high) in halves.items()
        if (low, high) != (0, _HALF)
    ]
    return " AND ".join([f"family = {inside.version}", *ranges])
