"""Who speaks to whom: ends and what is between them, as a map and as a matrix, the largest of many."""

import ipaddress
from typing import Any

from schemas import http
from schemas.filters import quoted
from sink.errors import QueryError
from sink.history import asked as asking
from sink.history.reading import Reading
from sink.history.said import SPLIT, SUMS, VOLUMES, said, split
from sink.history.views import IDENTITY_JOINS, identity

UNKNOWN = "unknown"
"""The address of what was malformed."""
_NOBODY = (1 << 128) - 1
_MAPPED = 65535 << 32
_ONES = (1 << 64) - 1
_NO_PORT = "NULL AS dport, NULL AS proto"
_SAID = ("ring_number", "revision", "src_number", "dst_number", "family", "src_hi", "src_lo", "dst_hi", "dst_lo",
         "dport", "proto", "kind", *VOLUMES, "detail")  # fmt: skip
"""What of `said` is wanted here."""


def graph(reading: Reading, asked: http.MapAsked) -> dict[str, Any]:
    """http.Map. Raises InputError, SinkError."""
    between = _between(reading, asked)
    by, volumes = f"sum({asked.by})", ", ".join(VOLUMES)
    reading.keep(
        "ends",
        f"""SELECT id, {SPLIT}, {by} AS volume FROM (SELECT src AS id, kind, {volumes} FROM by_source
            UNION ALL SELECT dst, kind, {volumes} FROM by_destination
            UNION ALL SELECT src, kind, {", ".join(f"-{name}::HUGEINT" for name in VOLUMES)} FROM (
                SELECT src, kind, {SUMS} FROM {between} WHERE src = dst GROUP BY src, kind))
        GROUP BY id""",
    )
    ((every,),) = reading.rows("SELECT count(*) FROM ends")
    reading.keep("ends", f"SELECT * FROM ends ORDER BY volume DESC, id LIMIT {asked.nodes}")
    edges = reading.records(
        f"""SELECT v.src::VARCHAR AS src, v.dst::VARCHAR AS dst, {SPLIT} FROM {between} AS v
            SEMI JOIN ends AS one ON one.id = v.src SEMI JOIN ends AS other ON other.id = v.dst
        GROUP BY v.src, v.dst ORDER BY {by} DESC, v.src, v.dst LIMIT {asked.edges}"""
    )
    nodes = reading.records("SELECT * REPLACE (id::VARCHAR AS id) FROM ends ORDER BY volume DESC, ends.id")
    name = _namer(reading, asked)
    labels = _labels(reading) if asked.group == "identity" else {}
    return {
        "nodes": [{"id": name(row["id"]), "labels": labels.get(name(row["id"]), {}), **split(row)} for row in nodes],
        "edges": [{"source": name(row["src"]), "destination": name(row["dst"]), **split(row)} for row in edges],
        **_rest(reading, f"SELECT DISTINCT src, dst FROM {between}", edges, every - len(nodes)),
    }


def matrix(reading: Reading, asked: http.MatrixAsked) -> dict[str, Any]:
    """http.Matrix. Raises InputError, SinkError."""
    column = "dst, dport, proto" if asked.ports else "dst"
    between = _between(reading, asked, column)
    sources, more_sources = _largest(reading, "sources", "by_source", "src", asked.by, asked.rows)
    columns, more_columns = _largest(reading, "columns", "by_destination", column, asked.by, asked.columns)
    keys = f"v.src, {', '.join(f'v.{name}' for name in column.split(', '))}"
    cells = reading.records(
        f"""SELECT v.src::VARCHAR AS src, v.dst::VARCHAR AS dst, {"v.dport, v.proto" if asked.ports else _NO_PORT},
            {SPLIT} FROM {between} AS v SEMI JOIN sources USING (src) SEMI JOIN columns USING ({column})
        GROUP BY {keys} ORDER BY sum({asked.by}) DESC, {keys}"""
    )
    row_of = {row: i for i, (row, *_) in enumerate(sources)}
    column_of = {row: i for i, row in enumerate(columns)}
    name = _namer(reading, asked)
    return {
        "sources": [name(row) for row in row_of],
        "destinations": [{"id": name(end), "port": port, "proto": proto} for end, port, proto in columns],
        "cells": [
            {"source": row_of[row["src"]], "destination": column_of[row["dst"], row["dport"], row["proto"]],
             **split(row)}
            for row in cells
        ],
        **_rest(reading, f"SELECT DISTINCT src, {column} FROM {between}", cells, more_sources + more_columns),
    }  # fmt: skip


def _largest(  # noqa: PLR0917 – what is asked, in the order it is asked
    reading: Reading, kept: str, table: str, keys: str, by: str, most: int
) -> tuple[list[tuple[str, int | None, str | None]], int]:
    """Makes `kept`, the `keys` with most of `by` in `table`; they: end, port, protocol; and how many more there are."""
    reading.keep(kept, f"SELECT {keys}, sum({by}) AS volume FROM {table} GROUP BY {keys}")
    ((every,),) = reading.rows(f"SELECT count(*) FROM {kept}")
    reading.keep(kept, f"SELECT * FROM {kept} ORDER BY volume DESC, {keys} LIMIT {most}")
    end, *port = keys.split(", ")
    found = reading.rows(
        f"SELECT v.{end}::VARCHAR, {', '.join(port) or _NO_PORT} FROM {kept} AS v ORDER BY volume DESC, {keys}"
    )
    return [(row[0], row[1], row[2]) for row in found], every - len(found)


def _between(reading: Reading, asked: http.MapAsked | http.MatrixAsked, column: str = "dst") -> str:
    """SQL of rows, to be selected from: src, dst (as `_namer` reads them), dport, proto, kind, VOLUMES.

    Makes their sums by_source and by_destination (by `column` of them). Of millions of pairs only those between the
    largest ends are added up: one group for each would take most of the time, and all of the memory. Addresses are
    summed up once all the same.
    """
    if (asked.group == "label") != bool(asked.label):
        raise QueryError("group=label and label=KEY go together", "give both, or neither")
    rows = said(reading, asked, asking.span(asked))
    if asking.words(asked) != "TRUE":  # their text is made and compared once
        reading.keep("said", f"SELECT {', '.join(_SAID)} FROM {rows}")
        rows = "said"
    called = asked.group in ("identity", "label")
    ends = [f"{side}_number" if called else _number(asked, side) for side in ("src", "dst")]
    scope = "ring_number AS ring, revision" if called else "0 AS ring, 0 AS revision"
    between = f"""(SELECT {scope}, {ends[0]} AS src, {ends[1]} AS dst, dport, proto, kind, {", ".join(VOLUMES)}, detail
        FROM {rows})"""
    if not called:  # numbers of 128 bits are made once
        port = column.removeprefix("dst")
        reading.keep(
            "edges",
            f"""SELECT ring, revision, src, dst {port}, kind, {SUMS}, bool_and(detail) AS detail FROM {between}
            GROUP BY ring, revision, src, dst {port}, kind""",
        )
        between = "edges"
    for table, keys in (("by_source", "src"), ("by_destination", column)):
        reading.keep(
            table,
            f"""SELECT ring, revision, {keys}, kind, {SUMS}, bool_and(detail) AS detail FROM {between}
            GROUP BY ring, revision, {keys}, kind""",
        )
    if not called or not _called(reading, asked):
        return between
    own = "{0}.ring = v.ring AND {0}.revision = v.revision AND {0}.number = v.{1}".format
    for table, end, more in (("by_source", "src", ""), ("by_destination", "dst", column.removeprefix("dst"))):
        reading.keep(
            table,
            f"""SELECT c.code AS {end} {more}, kind, {SUMS}, bool_and(detail) AS detail FROM {table} AS v
            JOIN called AS c ON {own("c", end)} GROUP BY c.code {more}, kind""",
        )
    return f"""(SELECT v.* REPLACE (one.code AS src, other.code AS dst) FROM {between} AS v
        JOIN called AS one ON {own("one", "src")} JOIN called AS other ON {own("other", "dst")})"""


def _called(reading: Reading, asked: http.Grouped) -> bool:
    """Makes `called`: the id and the code of each end of by_source and by_destination; whether a code is another than
    the end's number."""
    reading.keep(
        "called",
        f"""SELECT ring, revision, number, id, dense_rank() OVER (ORDER BY id) AS code FROM (
            SELECT v.ring, v.revision, v.src_identity AS number, {_text(asked)} AS id FROM (
                SELECT ring, revision, src AS src_identity, src AS dst_identity FROM by_source
                UNION SELECT ring, revision, dst, dst FROM by_destination
            ) AS v {IDENTITY_JOINS})""",
    )
    ((several,),) = reading.rows(
        "SELECT count(*) > count(DISTINCT code) OR count(DISTINCT (ring, revision)) > 1 FROM called"
    )
    if not several:  # one revision, whose numbers tell its names apart
        reading.keep("called", "SELECT * REPLACE (number AS code) FROM called")
    return bool(several)


def _text(asked: http.Grouped) -> str:
    if asked.group == "identity":
        return identity("src_identity")
    value = f"src_identity_of.labels[{quoted(asked.label)}]"
    return f"coalesce({quoted(asked.label + '=')} || {value}, '')"


def _number(asked: http.Grouped, side: str) -> str:
    """One number for both families: IPv4 as IPv6 maps it."""
    four, six = (asked.prefix_4, asked.prefix_6) if asked.group == "network" else (32, 128)
    low4 = (_ONES << (32 - four)) & 0xFFFFFFFF
    mask = ((1 << 128) - 1) ^ ((1 << (128 - six)) - 1)
    high, low = mask >> 64, mask & _ONES
    return f"""CASE family WHEN 4 THEN ({side}_lo & {low4})::UHUGEINT + '{_MAPPED}'::UHUGEINT
        WHEN 6 THEN address_number({side}_hi & {high}::UBIGINT, {side}_lo & {low}::UBIGINT)
        ELSE '{_NOBODY}'::UHUGEINT END"""


def _namer(reading: Reading, asked: http.Grouped) -> Any:
    """Function: an end as `edges` has it, as text → its id."""
    if asked.group not in ("address", "network"):
        return dict(reading.rows("SELECT DISTINCT code::VARCHAR, id FROM called")).__getitem__

    def name(digits: str) -> str:
        number = int(digits)
        if number == _NOBODY:
            return UNKNOWN
        mapped = number >> 32 == _MAPPED >> 32
        address = ipaddress.IPv4Address(number & 0xFFFFFFFF) if mapped else ipaddress.IPv6Address(number)
        if asked.group == "address":
            return str(address)
        return f"{address}/{asked.prefix_4 if mapped else asked.prefix_6}"

    return name


def _labels(reading: Reading) -> dict[str, dict[str, str]]:
    """Labels of identities by name, as they were last."""
    found = reading.rows(
        """SELECT name, arg_max(labels, ring::HUGEINT << 32 | revision) FROM store.identities
        WHERE name IN (SELECT c.id FROM called AS c JOIN ends AS e ON e.id = c.code) GROUP BY name"""
    )
    return {name: dict(labels) for name, labels in found}


def _rest(reading: Reading, between: str, shown: list[dict[str, Any]], ends: int) -> dict[str, Any]:
    """What is left out, and whether all is exact; `between` asks for all that could be shown."""
    (whole,) = reading.records(f"SELECT {SPLIT}, coalesce(bool_and(detail), true) AS exact FROM by_source")
    ((edges,),) = reading.rows(f"SELECT count(*) FROM ({between})")
    left = {key: value - sum(row[key] for row in shown) for key, value in whole.items() if key != "exact"}
    return {"left_out": {"nodes": ends, "edges": edges - len(shown), **split(left)}, "exact": whole["exact"]}
