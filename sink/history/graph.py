"""Who speaks to whom: ends and what is between them, as a map and as a matrix, the largest of many."""

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from schemas import http
from schemas.filters import quoted
from schemas.present import proto_text
from sink.errors import QueryError
from sink.history import asked as asking
from sink.history.reading import Reading
from sink.history.said import SPLIT, SUMS, VOLUMES, said, split
from sink.history.views import IDENTITY_JOINS, identity

UNKNOWN = "unknown"
"""The address of what was malformed."""
_ONES = (1 << 64) - 1
_SAID = ("ring_number", "revision", "src_number", "dst_number", "family", "src_hi", "src_lo", "dst_hi", "dst_lo",
         "dport", "proto_number", "kind", *VOLUMES, "detail")  # fmt: skip
"""What of `said` is wanted here."""
_CODE, _ADDRESS = ("code",), ("family", "hi", "lo")
_SUMS = f"kind, {SUMS}, bool_and(detail) AS detail"
Name = Callable[[tuple[int, ...]], str]
"""The columns of an end → its id."""


class _Between(NamedTuple):
    """`rows`: what SQL selects from, a row or several for a pair of ends: columns of both, kind, VOLUMES, detail.

    `of`: columns that tell an end, there as src_… and dst_…; `port`: those that belong to a destination besides.
    """

    rows: str
    of: tuple[str, ...]
    port: tuple[str, ...] = ()

    def end(self, side: str) -> tuple[str, ...]:
        """Columns of an end at this side, `src` or `dst`."""
        return (*(f"{side}_{name}" for name in self.of), *(self.port if side == "dst" else ()))

    @property
    def pair(self) -> str:
        """Columns of both."""
        return _list(self.end("src") + self.end("dst"))

    @property
    def apart(self) -> str:
        """Columns that tell pairs apart: both ends are of one family."""
        return _list(self.end("src") + tuple(name for name in self.end("dst") if name != "dst_family"))


def graph(reading: Reading, asked: http.MapAsked) -> dict[str, Any]:
    """http.Map. Raises InputError, SinkError."""
    between, name = _between(reading, asked)
    of, src, dst = (_list(columns) for columns in (between.of, between.end("src"), between.end("dst")))
    itself = " AND ".join(f"src_{column} = dst_{column}" for column in between.of)
    volumes = _list(VOLUMES)
    reading.keep(
        "sides",
        f"""SELECT {src}, kind, {volumes} FROM by_source UNION ALL SELECT {dst}, kind, {volumes} FROM by_destination
            UNION ALL SELECT {src}, kind, {", ".join(f"-{volume}::HUGEINT" for volume in VOLUMES)} FROM (
                SELECT {src}, kind, {SUMS} FROM {between.rows} WHERE {itself} GROUP BY {src}, kind)""",
    )
    sides = f"(SELECT * FROM sides) AS side({of}, kind, {volumes})"
    reading.keep("ends", f"SELECT {of}, sum({asked.by}) AS volume FROM {sides} GROUP BY {of}")
    ((every,),) = reading.rows("SELECT count(*) FROM ends")
    reading.keep("ends", f"SELECT * FROM ends ORDER BY volume DESC, {of} LIMIT {asked.nodes}")
    one, other = (
        " AND ".join(f"{end}.{column} = v.{side}_{column}" for column in between.of)
        for end, side in (("one", "src"), ("other", "dst"))
    )
    edges = reading.records(
        f"""SELECT {between.pair}, {SPLIT} FROM {between.rows} AS v
            SEMI JOIN ends AS one ON {one} SEMI JOIN ends AS other ON {other}
        GROUP BY {between.pair} ORDER BY sum({asked.by}) DESC, {between.pair} LIMIT {asked.edges}"""
    )
    nodes = reading.records(
        f"SELECT {of}, {SPLIT} FROM {sides} JOIN ends USING ({of}) GROUP BY {of} ORDER BY any_value(volume) DESC, {of}"
    )
    labels = _labels(reading) if asked.group == "identity" else {}
    ids = [name(_values(row, between.of)) for row in nodes]
    return {
        "nodes": [{"id": id, "labels": labels.get(id, {}), **split(row)} for id, row in zip(ids, nodes, strict=True)],
        "edges": [
            {"source": name(_values(row, between.end("src"))), "destination": name(_values(row, between.end("dst"))),
             **split(row)}
            for row in edges
        ],
        **_rest(reading, between, edges, every - len(nodes)),
    }  # fmt: skip


def matrix(reading: Reading, asked: http.MatrixAsked) -> dict[str, Any]:
    """http.Matrix. Raises InputError, SinkError."""
    between, name = _between(reading, asked, ("dport", "proto_number") if asked.ports else ())
    src, dst = between.end("src"), between.end("dst")
    sources, more_sources = _largest(reading, "sources", "by_source", src, asked.by, asked.rows)
    columns, more_columns = _largest(reading, "columns", "by_destination", dst, asked.by, asked.columns)
    cells = reading.records(
        f"""SELECT {between.pair}, {SPLIT} FROM {between.rows} AS v
            SEMI JOIN sources USING ({_list(src)}) SEMI JOIN columns USING ({_list(dst)})
        GROUP BY {between.pair} ORDER BY sum({asked.by}) DESC, {between.pair}"""
    )
    row_of = {values: i for i, values in enumerate(sources)}
    column_of = {values: i for i, values in enumerate(columns)}
    own = len(between.of)
    return {
        "sources": [name(values) for values in sources],
        "destinations": [
            {"id": name(values[:own]), "port": port, "proto": None if proto is None else proto_text(proto)}
            for values in columns
            for port, proto in (values[own:] or (None, None),)
        ],
        "cells": [
            {"source": row_of[_values(row, src)], "destination": column_of[_values(row, dst)], **split(row)}
            for row in cells
        ],
        **_rest(reading, between, cells, more_sources + more_columns),
    }


def _list(columns: Iterable[str]) -> str:
    return ", ".join(columns)


def _values(row: dict[str, Any], columns: Iterable[str]) -> tuple[Any, ...]:
    return tuple(row[column] for column in columns)


def _largest(  # noqa: PLR0917 – what is asked, in the order it is asked
    reading: Reading, kept: str, table: str, columns: tuple[str, ...], by: str, most: int
) -> tuple[list[tuple[Any, ...]], int]:
    """Makes `kept`, the values of `columns` with most of `by` in `table`; they; and how many more there are."""
    keys = _list(columns)
    reading.keep(kept, f"SELECT {keys}, sum({by}) AS volume FROM {table} GROUP BY {keys}")
    ((every,),) = reading.rows(f"SELECT count(*) FROM {kept}")
    reading.keep(kept, f"SELECT * FROM {kept} ORDER BY volume DESC, {keys} LIMIT {most}")
    found = reading.rows(f"SELECT {keys} FROM {kept} ORDER BY volume DESC, {keys}")
    return found, every - len(found)


def _between(
    reading: Reading, asked: http.MapAsked | http.MatrixAsked, port: tuple[str, ...] = ()
) -> tuple[_Between, Name]:
    """What is between which ends, and their names. Makes its sums by_source and by_destination.

    Pairs of labels and networks are summed up first: they are few. Those of addresses may be as many as there are rows,
    which would take most of the time: of them what is between the largest ends is added up, and the others are counted.
    """
    if (asked.group == "label") != bool(asked.label):
        raise QueryError("group=label and label=KEY go together", "give both, or neither")
    rows = said(reading, asked, asking.span(asked))
    if asking.words(asked) != "TRUE":  # their text is made and compared once
        reading.keep("said", f"SELECT {_list(_SAID)} FROM {rows}")
        rows = "said"
    if asked.group in ("identity", "label"):
        between, name = _called(reading, asked, rows, port)
    else:
        between, name = _addressed(reading, asked, rows, port)
    for table, side in (("by_source", "src"), ("by_destination", "dst")):
        keys = _list(between.end(side))
        reading.keep(table, f"SELECT {keys}, {_SUMS} FROM {between.rows} GROUP BY {keys}, kind")
    return between, name


def _addressed(reading: Reading, asked: http.Grouped, rows: str, port: tuple[str, ...]) -> tuple[_Between, Name]:
    """Ends are addresses or networks."""
    lengths = (asked.prefix_4, asked.prefix_6) if asked.group == "network" else (32, 128)
    mask_4 = (_ONES << (32 - lengths[0])) & 0xFFFFFFFF
    mask_6 = (1 << 128) - (1 << (128 - lengths[1]))
    masks = {"hi": _masked(0, mask_6 >> 64), "lo": _masked(mask_4, mask_6 & _ONES)}
    if asked.group == "address":  # as they are: a mask that keeps all takes its time
        masks = {"hi": "", "lo": ""}
    ends = ", ".join(
        f"family AS {side}_family, "
        + ", ".join(f"{side}_{half}{mask} AS {side}_{half}" for half, mask in masks.items())
        for side in ("src", "dst")
    )
    between = _Between(
        f"(SELECT {ends}, dport, proto_number, kind, {_list(VOLUMES)}, detail FROM {rows})", _ADDRESS, port
    )
    if asked.group == "network":
        reading.keep("edges", f"SELECT {between.pair}, {_SUMS} FROM {between.rows} GROUP BY {between.pair}, kind")
        between = between._replace(rows="edges")

    def name(values: tuple[int, ...]) -> str:
        family, high, low = values
        if family not in (4, 6):
            return UNKNOWN
        address = ipaddress.IPv4Address(low & 0xFFFFFFFF) if family == 4 else ipaddress.IPv6Address(high << 64 | low)
        return str(address) if asked.group == "address" else f"{address}/{lengths[family == 6]}"

    return between, name


def _masked(four: int, six: int) -> str:
    """SQL behind half an address. IPv4 is in the lower half; what was malformed has no address."""
    return f" & CASE family WHEN 4 THEN {four}::UBIGINT WHEN 6 THEN {six}::UBIGINT ELSE 0 END"


def _called(reading: Reading, asked: http.Grouped, rows: str, port: tuple[str, ...]) -> tuple[_Between, Name]:
    """Ends are called something: an identity, or the value of a label. Makes `called`: the id and the code of each."""
    scope = "ring_number AS ring, revision"
    reading.keep(
        "called",
        f"""SELECT ring, revision, number, id, dense_rank() OVER (ORDER BY id) AS code FROM (
            SELECT v.ring, v.revision, v.src_identity AS number, {_text(asked)} AS id FROM (
                SELECT {scope}, src_number AS src_identity, src_number AS dst_identity FROM {rows}
                UNION SELECT {scope}, dst_number, dst_number FROM {rows}
            ) AS v {IDENTITY_JOINS})""",
    )
    ((several,),) = reading.rows(
        "SELECT count(*) > count(DISTINCT id) OR count(DISTINCT (ring, revision)) > 1 FROM called"
    )
    more = _list(("", *port))
    numbers = f"{scope}, src_number AS src_code, dst_number AS dst_code"
    if several:
        own = "{0}.ring = v.ring AND {0}.revision = v.revision AND {0}.number = v.{1}_code".format
        # LEFT keeps the order: else DuckDB joins `called` with itself first, each name with each.
        reading.keep(
            "edges",
            f"""SELECT one.code AS src_code, other.code AS dst_code {more}, {_SUMS} FROM (
                SELECT {numbers} {more}, {_SUMS} FROM {rows} GROUP BY ALL
            ) AS v LEFT JOIN called AS one ON {own("one", "src")} LEFT JOIN called AS other ON {own("other", "dst")}
            GROUP BY one.code, other.code {more}, kind""",
        )
        between = _Between("edges", _CODE, port)
    else:  # one revision, whose numbers tell its names apart
        reading.keep("called", "SELECT * REPLACE (number AS code) FROM called")
        between = _Between(
            f"(SELECT {numbers}, dport, proto_number, kind, {_list(VOLUMES)}, detail FROM {rows})", _CODE, port
        )
    ids = dict(reading.rows("SELECT DISTINCT code, id FROM called"))
    return between, lambda values: ids[values[0]]


def _text(asked: http.Grouped) -> str:
    if asked.group == "identity":
        return identity("src_identity")
    value = f"src_identity_of.labels[{quoted(asked.label)}]"
    return f"coalesce({quoted(asked.label + '=')} || {value}, '')"


def _labels(reading: Reading) -> dict[str, dict[str, str]]:
    """Labels of identities by name, as they were last."""
    found = reading.rows(
        """SELECT name, arg_max(labels, ring::HUGEINT << 32 | revision) FROM store.identities
        WHERE name IN (SELECT c.id FROM called AS c JOIN ends AS e ON e.code = c.code) GROUP BY name"""
    )
    return {name: dict(labels) for name, labels in found}


def _rest(reading: Reading, between: _Between, shown: list[dict[str, Any]], ends: int) -> dict[str, Any]:
    """What is left out, and whether all is exact."""
    (whole,) = reading.records(f"SELECT {SPLIT}, coalesce(bool_and(detail), true) AS exact FROM by_destination")
    ((pairs,),) = reading.rows(f"SELECT count(*) FROM (SELECT DISTINCT {between.apart} FROM {between.rows})")
    # Forged sums end at a bound, all of them and each.
    left = {key: max(0, value - sum(row[key] for row in shown)) for key, value in whole.items() if key != "exact"}
    return {"left_out": {"nodes": ends, "edges": pairs - len(shown), **split(left)}, "exact": whole["exact"]}
