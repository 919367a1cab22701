"""Who speaks to whom: ends and what is between them, as a map and as a matrix, the largest of many."""

import ipaddress
from typing import Any

from schemas import http
from schemas.filters import quoted
from sink.errors import QueryError
from sink.history import asked as asking
from sink.history.reading import Reading
from sink.history.said import SPLIT, SUMS, said, split
from sink.history.views import IDENTITY_JOINS, identity

UNKNOWN = "unknown"
"""The address of what was malformed."""
_NOBODY = (1 << 128) - 1
_MAPPED = 65535 << 32
_ONES = (1 << 64) - 1


def graph(reading: Reading, asked: http.MapAsked) -> dict[str, Any]:
    """http.Map. Raises InputError, SinkError."""
    _edges(reading, asked)
    by = f"sum({asked.by})"
    reading.keep(
        "ends",
        f"""SELECT id, {SPLIT}, {by} AS volume FROM (SELECT src AS id, kind, {SUMS} FROM edges GROUP BY src, kind
            UNION ALL SELECT dst, kind, {SUMS} FROM edges WHERE src <> dst GROUP BY dst, kind)
        GROUP BY id ORDER BY volume DESC, id LIMIT {asked.nodes}""",
    )
    edges = reading.records(
        f"""SELECT src::VARCHAR AS src, dst::VARCHAR AS dst, {SPLIT} FROM edges
        WHERE src IN (SELECT id FROM ends) AND dst IN (SELECT id FROM ends)
        GROUP BY src, dst ORDER BY {by} DESC, src, dst LIMIT {asked.edges}"""
    )
    nodes = reading.records("SELECT * REPLACE (id::VARCHAR AS id) FROM ends ORDER BY volume DESC, id")
    name = _namer(reading, asked)
    labels = _labels(reading) if asked.group == "identity" else {}
    ((every,),) = reading.rows("SELECT count(*) FROM (SELECT src FROM edges UNION SELECT dst FROM edges)")
    return {
        "nodes": [{"id": name(row["id"]), "labels": labels.get(name(row["id"]), {}), **split(row)} for row in nodes],
        "edges": [{"source": name(row["src"]), "destination": name(row["dst"]), **split(row)} for row in edges],
        **_rest(reading, "src, dst", edges, every - len(nodes)),
    }


def matrix(reading: Reading, asked: http.MatrixAsked) -> dict[str, Any]:
    """http.Matrix. Raises InputError, SinkError."""
    _edges(reading, asked, asked.ports)
    column = "dst, dport, proto"
    sources, columns = (
        reading.records(
            f"""SELECT src::VARCHAR AS src FROM edges GROUP BY edges.src
            ORDER BY sum({asked.by}) DESC, edges.src LIMIT {asked.rows}"""
        ),
        reading.records(
            f"""SELECT dst::VARCHAR AS dst, dport, proto FROM edges GROUP BY edges.dst, dport, proto
            ORDER BY sum({asked.by}) DESC, edges.dst, dport, proto LIMIT {asked.columns}"""
        ),
    )
    reading.keep(
        "sources",
        f"SELECT src FROM edges GROUP BY src ORDER BY sum({asked.by}) DESC, src LIMIT {asked.rows}",
    )
    reading.keep(
        "columns",
        f"SELECT {column} FROM edges GROUP BY {column} ORDER BY sum({asked.by}) DESC, {column} LIMIT {asked.columns}",
    )
    cells = reading.records(
        f"""SELECT src::VARCHAR AS src, dst::VARCHAR AS dst, e.dport, e.proto, {SPLIT} FROM edges AS e
            SEMI JOIN sources USING (src) SEMI JOIN columns AS c ON c.dst = e.dst
                AND c.dport IS NOT DISTINCT FROM e.dport AND c.proto IS NOT DISTINCT FROM e.proto
        GROUP BY e.src, e.dst, e.dport, e.proto ORDER BY sum({asked.by}) DESC, e.src, e.dst, e.dport, e.proto"""
    )
    row_of = {row["src"]: i for i, row in enumerate(sources)}
    column_of = {(row["dst"], row["dport"], row["proto"]): i for i, row in enumerate(columns)}
    ((n_sources, n_columns),) = reading.rows(
        f"""SELECT (SELECT count(*) FROM (SELECT DISTINCT src FROM edges)),
            (SELECT count(*) FROM (SELECT DISTINCT {column} FROM edges))"""
    )
    name = _namer(reading, asked)
    return {
        "sources": [name(row["src"]) for row in sources],
        "destinations": [{"id": name(row["dst"]), "port": row["dport"], "proto": row["proto"]} for row in columns],
        "cells": [
            {"source": row_of[row["src"]], "destination": column_of[row["dst"], row["dport"], row["proto"]],
             **split(row)}
            for row in cells
        ],
        **_rest(reading, f"src, {column}", cells, n_sources + n_columns - len(sources) - len(columns)),
    }  # fmt: skip


def _edges(reading: Reading, asked: http.MapAsked | http.MatrixAsked, ports: bool = False) -> None:
    """Makes `edges`: src, dst, dport and proto (null unless `ports`), kind, VOLUMES, detail; ends as `_namer` reads
    them."""
    if (asked.group == "label") != bool(asked.label):
        raise QueryError("group=label and label=KEY go together", "give both, or neither")
    rows = said(reading, asked, asking.span(asked))
    port = "dport, proto" if ports else "NULL::USMALLINT AS dport, NULL::VARCHAR AS proto"
    keys = ", dport, proto" if ports else ""
    detail = "bool_and(detail) AS detail"
    if asked.group in ("address", "network"):
        sides = ", ".join(f"{_number(asked, side)} AS {side}_key" for side in ("src", "dst"))
        reading.keep(
            "edges",
            f"""SELECT src_key AS src, dst_key AS dst, {port}, kind, {SUMS}, {detail}
            FROM (SELECT *, {sides} FROM {rows})
            GROUP BY src_key, dst_key, kind{keys}""",
        )
        return
    reading.keep(
        "edges",
        f"""SELECT ring_number AS ring, revision, src_number AS src, dst_number AS dst, {port}, kind, {SUMS}, {detail}
        FROM {rows} GROUP BY ring_number, revision, src_number, dst_number, kind{keys}""",
    )
    # Of what millions of rows have in common there are few names: text is made of these alone.
    reading.keep(
        "called",
        f"""SELECT ring, revision, number, id, dense_rank() OVER (ORDER BY id) AS code FROM (
            SELECT v.ring, v.revision, v.src_identity AS number, {_text(asked)} AS id FROM (
                SELECT ring, revision, src AS src_identity, src AS dst_identity FROM edges
                UNION SELECT ring, revision, dst, dst FROM edges
            ) AS v {IDENTITY_JOINS})""",
    )
    ((several,),) = reading.rows(
        "SELECT count(*) > count(DISTINCT code) OR count(DISTINCT (ring, revision)) > 1 FROM called"
    )
    if not several:  # one revision, whose numbers tell its names apart
        reading.keep("called", "SELECT * REPLACE (number AS code) FROM called")
        return
    sides = " ".join(
        f"JOIN called AS {side} ON {side}.ring = v.ring AND {side}.revision = v.revision AND {side}.number = v.{of}"
        for side, of in (("one", "src"), ("other", "dst"))
    )
    reading.keep(
        "edges",
        f"""SELECT one.code AS src, other.code AS dst, dport, proto, kind, {SUMS}, {detail} FROM edges AS v {sides}
        GROUP BY one.code, other.code, dport, proto, kind""",
    )


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


def _rest(reading: Reading, keys: str, shown: list[dict[str, Any]], nodes: int) -> dict[str, Any]:
    """What is left out, and whether all is exact."""
    (whole,) = reading.records(
        f"""SELECT {SPLIT}, coalesce(bool_and(detail), true) AS exact
        FROM (SELECT kind, {SUMS}, bool_and(detail) AS detail FROM edges GROUP BY kind)"""
    )
    ((edges,),) = reading.rows(f"SELECT count(*) FROM (SELECT 1 FROM edges GROUP BY {keys})")
    left = {key: value - sum(row[key] for row in shown) for key, value in whole.items() if key != "exact"}
    return {"left_out": {"nodes": nodes, "edges": edges - len(shown), **split(left)}, "exact": whole["exact"]}
