"""Filters → SQL: the predicate, run by DuckDB, keeps exactly the rows a plain loop keeps."""

import ipaddress
from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import codes
from schemas.errors import InputError
from schemas.filters import Filters, predicate, quoted

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
WORDS = {
    "decision": codes.Decision, "outcome": codes.Outcome, "event": codes.EventKind, "direction": codes.Direction,
    "reason": codes.Reason,
}  # fmt: skip
NAMES = ["frontend", "database", "o'brien", "world", '"', "a;b--", "ü\\"]
ADDRESSES = ["10.0.1.10", "10.0.1.11", "10.0.2.5", "255.255.255.255", "::a00:10a", "fd00::1", "fd00:0:0:1::7", "::"]
NETWORKS = ["10.0.1.10", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/64", "fd00::1/128", "255.255.255.255", "8000::/1"]


def number(address: str) -> int:
    return int(ipaddress.ip_address(address))


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    src, dst = draw(st.sampled_from(ADDRESSES)), draw(st.sampled_from(ADDRESSES))
    row: dict[str, Any] = {
        name: draw(st.sampled_from(sorted(codes.words(kind).values()))) for name, kind in WORDS.items()
    }
    return row | {
        "rule": draw(st.sampled_from(NAMES)), "node": draw(st.sampled_from(NAMES)), "src": src, "dst": dst,
        "family": ipaddress.ip_address(src).version, "src_addr": number(src), "dst_addr": number(dst),
        "src_identity": draw(st.sampled_from(NAMES)), "dst_identity": draw(st.sampled_from(NAMES)),
        "dport": draw(st.sampled_from([0, 53, 443, 8000, 8050, 65535])),
        "proto": draw(st.sampled_from(["tcp", "udp", "sctp", "icmp", "47"])),
    }  # fmt: skip


def several(values: list[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), max_size=2).map(tuple)


filters = st.builds(
    Filters,
    **{name: several(sorted(codes.words(kind).values())) for name, kind in WORDS.items()},
    **dict.fromkeys(("rule", "node", "from_identity", "to_identity", "identity"), several(NAMES)),
    **dict.fromkeys(("from_ip", "to_ip", "ip"), several(NETWORKS)),
    port=several(["443", "443/tcp", "8000-8100/udp", "0-65535", "53/any".replace("any", "udp"), "65535"]),
    protocol=several(["tcp", "UDP", "6", "47", "icmp"]),
)


def holds(row: dict[str, Any], address: str, network: str) -> bool:
    net = ipaddress.ip_network(network)
    return row["family"] == net.version and ipaddress.ip_address(row[address]) in net


def port_matches(row: dict[str, Any], text: str) -> bool:
    ports, _, proto = text.partition("/")
    low, _, high = ports.partition("-")
    return int(low) <= row["dport"] <= int(high or low) and (not proto or row["proto"] == proto)


def keeps(row: dict[str, Any], f: Filters) -> bool:
    protocols = {"UDP": "udp", "6": "tcp"}
    checks = [[row[name] == word for word in getattr(f, name)] for name in (*WORDS, "rule", "node")]
    checks += [
        [row["src_identity"] == name for name in f.from_identity],
        [row["dst_identity"] == name for name in f.to_identity],
        [name in (row["src_identity"], row["dst_identity"]) for name in f.identity],
        [holds(row, "src", n) for n in f.from_ip],
        [holds(row, "dst", n) for n in f.to_ip],
        [holds(row, "src", n) or holds(row, "dst", n) for n in f.ip],
        [port_matches(row, text) for text in f.port],
        [row["proto"] == protocols.get(text, text) for text in f.protocol],
    ]
    return all(any(alternatives) for alternatives in checks if alternatives)


@pytest.fixture(scope="module")
def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(
        """CREATE TABLE verdicts (n INTEGER, decision VARCHAR, outcome VARCHAR, event VARCHAR, direction VARCHAR,
        reason VARCHAR, rule VARCHAR, node VARCHAR, src VARCHAR, dst VARCHAR, family INTEGER, src_addr UHUGEINT,
        dst_addr UHUGEINT, src_identity VARCHAR, dst_identity VARCHAR, dport INTEGER, proto VARCHAR)"""
    )
    return connection


@given(st.lists(rows(), min_size=1, max_size=12), filters)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_predicate_keeps_what_a_loop_keeps(
    database: duckdb.DuckDBPyConnection, given_rows: list[dict[str, Any]], asked: Filters
) -> None:
    # An address compares within its family; a destination's family is the source's.
    given_rows = [row for row in given_rows if ipaddress.ip_address(row["dst"]).version == row["family"]]
    database.execute("DELETE FROM verdicts")
    for n, row in enumerate(given_rows):
        values = [n, *(str(row[c]) if c.endswith("_addr") else row[c] for c in (
            "decision", "outcome", "event", "direction", "reason", "rule", "node", "src", "dst", "family", "src_addr",
            "dst_addr", "src_identity", "dst_identity", "dport", "proto"))]  # fmt: skip
        database.execute(f"INSERT INTO verdicts VALUES ({', '.join('?' * 17)})", values)
    found = database.execute(f"SELECT n FROM verdicts WHERE {predicate(asked, NOW)} ORDER BY n").fetchall()
    assert [n for (n,) in found] == [n for n, row in enumerate(given_rows) if keeps(row, asked)]


def test_nothing_asked_is_everything() -> None:
    assert predicate(Filters()) == "TRUE"


def test_same_flag_is_or_different_flags_are_and() -> None:
    asked = Filters(decision=("deny",), rule=("a", "b"), since="10m", until="2026-02-03T04:05:00Z")
    assert predicate(asked, NOW) == (
        "decision = 'deny' AND (rule = 'a' OR rule = 'b') AND time >= TIMESTAMP_NS '2026-02-03 03:55:06'"
        " AND time < TIMESTAMP_NS '2026-02-03 04:05:00'"
    )


def test_the_largest_address_stays_exact() -> None:
    sql = predicate(Filters(ip=("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",)))
    assert f"'{2**128 - 1}'::UHUGEINT" in sql
    table = (
        "(SELECT 6 AS family, '340282366920938463463374607431768211454'::UHUGEINT AS src_addr, src_addr AS dst_addr)"
    )
    assert duckdb.sql(f"SELECT count(*) FROM {table} WHERE {sql}").fetchone() == (0,)


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_name_is_one_string(text: str) -> None:
    assert duckdb.execute(f"SELECT {quoted(text)}").fetchone() == (text,)


@pytest.mark.parametrize(
    "where",
    [
        "packets > 1",
        "packets > 1 -- many",
        "rule = 'a)b'",
        "rule = 'it''s ('",
        '"packets" > 1 /* ) */',
        "(packets) > 1",
    ],
)
def test_where_stays_one_operand(where: str) -> None:
    sql = predicate(Filters(where=(where,), decision=("deny",)))
    table = "(SELECT 5 AS packets, 'a)b' AS rule, 'allow' AS decision)"
    # The decision never matches, so no predicate, however written, may bring a row.
    assert duckdb.sql(f"SELECT count(*) FROM {table} WHERE {sql}").fetchone() == (0,)


@pytest.mark.parametrize(
    "bad",
    [
        Filters(decision=("maybe",)), Filters(outcome=("drop",)), Filters(event=("",)), Filters(direction=("up",)),
        Filters(reason=("because",)), Filters(from_ip=("10.0.0.300",)), Filters(to_ip=("",)), Filters(ip=("a/b",)),
        Filters(port=("http",)), Filters(port=("70000",)), Filters(port=("20-10",)), Filters(port=("1/xyz",)),
        Filters(protocol=("tpc",)), Filters(protocol=("256",)), Filters(protocol=("²",)), Filters(from_label=("=x",)),
        Filters(to_label=("a=",)), Filters(to_label=("!",)),
        Filters(rule=("a\0b",)), Filters(where=("",)), Filters(where=("1) OR (1",)),
        Filters(where=("'",)), Filters(where=("(1",)), Filters(where=("/* ",)), Filters(since="soon"),
        Filters(until="2026-99-01"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused(bad: Filters) -> None:
    with pytest.raises(InputError) as caught:
        predicate(bad, NOW)
    assert caught.value.hint
