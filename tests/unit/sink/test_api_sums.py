"""Histogram, map, matrix, overview: exact sums of made-up traffic, and nothing lost to their bounds."""

import ipaddress
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from schemas import times
from schemas.messages import IdentityInfo
from schemas.verdict import STRIDE
from sink.history.said import KINDS, VOLUMES
from sink.store import Commit, Store, memory_store, prepare, rollup
from tests.support import batches, served
from tests.support.naive_sums import adds
from tests.support.served import Asker

N = 1800
ROWS = batches.traffic(N, seed=11, seconds=400.0).rows
ADDED = adds(ROWS)
"""What each event adds: a record of `verdicts` with flows, packets, bytes, ns."""
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """The first part is rolled up."""
    one, cut = memory_store(), N * 3 // 4
    one.append(Commit(batches=[prepare(batches.batch(ROWS[:cut]))], records=[batches.policy_record()]))
    while rollup.step(one):
        pass
    one.append(Commit(batches=[prepare(batches.batch(ROWS[cut:], cut * STRIDE))]))
    yield one
    one.close()


@pytest.fixture
async def asker(store: Store) -> AsyncIterator[Asker]:
    async with served.asking(store) as made:
        yield made


def split(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """http.Split of ADDED rows; all was in mode monitor, so nothing was dropped."""
    of_kind = {"allowed": [r for r in rows if r["decision"] == "allow"], "denied": [],
               "would_deny": [r for r in rows if r["decision"] == "deny"]}  # fmt: skip
    return {kind: {name: sum(r[name] for r in of_kind[kind]) for name in VOLUMES} for kind in KINDS}


def grouped(key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    out: dict[Any, list[dict[str, Any]]] = {}
    for row in ADDED:
        out.setdefault(key(row), []).append(row)
    return out


def network(text: str) -> str:
    return str(ipaddress.ip_network(f"{text}/{56 if ':' in text else 28}", strict=False))


ENDS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any], str], str]]] = {
    "identity": ({}, lambda row, side: row[f"{side}_identity"]),
    "address": ({}, lambda row, side: row[side]),
    "network": ({"prefix_4": 28, "prefix_6": 56}, lambda row, side: network(row[side])),
    "label": ({"label": "app"},
              lambda row, side: {"frontend": "app=frontend", "database": "app=db"}.get(row[f"{side}_identity"], "")),
}  # fmt: skip


@pytest.mark.parametrize("group", ENDS)
async def test_a_map_has_every_flow_packet_and_byte(asker: Asker, group: str) -> None:
    more, end = ENDS[group]
    found = await asker.get("map", group=group, nodes=500, edges=5000, **more)
    edges = grouped(lambda row: (end(row, "src"), end(row, "dst")))
    kept = ("source", "destination")
    assert {tuple(e[k] for k in kept): {k: e[k] for k in KINDS} for e in found["edges"]} == {
        key: split(rows) for key, rows in edges.items()
    }
    ends = {name for pair in edges for name in pair}
    for node in found["nodes"]:
        touching = [row for pair, rows in edges.items() if node["id"] in pair for row in rows]
        assert {k: node[k] for k in KINDS} == split(touching), node["id"]
    assert {node["id"] for node in found["nodes"]} == ends
    volumes = [sum(edge[kind]["flows"] for kind in KINDS) for edge in found["edges"]]
    assert volumes == sorted(volumes, reverse=True)
    assert found["left_out"] == {"nodes": 0, "edges": 0, **split([])}
    assert found["exact"] is True
    if group == "identity":
        labels = {node["id"]: node["labels"] for node in found["nodes"]}
        assert labels == {"frontend": {"app": "frontend"}, "database": {"app": "db"}, "world": {}}


async def test_what_a_map_leaves_out_is_counted(asker: Asker) -> None:
    found = await asker.get("map", group="address", nodes=20, edges=15, by="bytes")
    assert (len(found["nodes"]), len(found["edges"])) == (20, 15)
    edges = grouped(lambda row: (row["src"], row["dst"]))
    shown = [row for e in found["edges"] for row in edges[e["source"], e["destination"]]]
    whole, part, left = split(ADDED), split(shown), found["left_out"]
    assert {k: {n: whole[k][n] - part[k][n] for n in VOLUMES} for k in KINDS} == {k: left[k] for k in KINDS}
    assert left["edges"] == len(edges) - 15
    assert left["nodes"] == len({name for pair in edges for name in pair}) - 20


async def test_a_map_of_a_span_and_of_words(asker: Asker) -> None:
    first, past = (batches.CLOCK + int(t) for t in np.quantile(ROWS["time"], [0.3, 0.9]))
    found = await asker.get("map", since=first, until=past, port="443", decision="allow")
    rows = [r for r in ADDED if first <= r["ns"] < past and r["dport"] == 443 and r["decision"] == "allow"]
    (edge,) = found["edges"]
    assert (edge["source"], edge["destination"]) == ("frontend", "database")
    assert {kind: edge[kind] for kind in KINDS} == split(rows)


@pytest.mark.parametrize("ports", [False, True])
async def test_a_matrix_by_port(asker: Asker, ports: bool) -> None:
    found = await asker.get("matrix", ports=str(ports).lower(), group="network", prefix_4=28, prefix_6=56)
    port = (lambda row: (row["dport"], row["proto"])) if ports else (lambda row: (None, None))
    cells = grouped(lambda row: (network(row["src"]), network(row["dst"]), *port(row)))

    def key(cell: dict[str, Any]) -> tuple[Any, ...]:
        column = found["destinations"][cell["destination"]]
        return found["sources"][cell["source"]], column["id"], column["port"], column["proto"]

    assert {key(cell): {kind: cell[kind] for kind in KINDS} for cell in found["cells"]} == {
        name: split(rows) for name, rows in cells.items()
    }
    assert found["left_out"] == {"nodes": 0, "edges": 0, **split([])}
    small = await asker.get("matrix", ports=str(ports).lower(), group="address", rows=3, columns=2, by="packets")
    assert (len(small["sources"]), len(small["destinations"])) == (3, 2)
    loud = Counter({src: sum(r["packets"] for r in rows) for src, rows in grouped(lambda r: r["src"]).items()})
    assert [loud[source] for source in small["sources"]] == sorted(loud.values(), reverse=True)[:3]
    whole = split(ADDED)
    for kind in KINDS:
        for name in VOLUMES:
            shown = sum(cell[kind][name] for cell in small["cells"])
            assert shown + small["left_out"][kind][name] == whole[kind][name]


@pytest.mark.parametrize(("buckets", "width"), [(1000, 1), (120, 5), (20, 30), (8, 60), (1, 600)])
async def test_a_histogram_of_any_width(asker: Asker, buckets: int, width: int) -> None:
    found = await asker.get("histogram", buckets=buckets)
    assert found["width"] == width
    assert len(found["times"]) <= buckets
    begun = min(r["ns"] for r in ADDED) // (width * SECOND)
    expected = {kind: {name: [0] * len(found["times"]) for name in VOLUMES} for kind in KINDS}
    for row in ADDED:
        kind = "allowed" if row["decision"] == "allow" else "would_deny"
        for name in VOLUMES:
            expected[kind][name][row["ns"] // (width * SECOND) - begun] += row[name]
    assert {kind: found[kind] for kind in KINDS} == expected
    assert found["exact"] is True
    assert found["times"][0] == found["since"]


async def test_a_histogram_of_words_and_of_nothing(asker: Asker) -> None:
    found = await asker.get("histogram", buckets=8, rule="default", protocol="udp")
    rows = [r for r in ADDED if r["rule"] == "default" and r["proto"] == "udp"]
    assert {kind: {n: sum(found[kind][n]) for n in VOLUMES} for kind in KINDS} == split(rows)
    quiet = await asker.get("histogram", since="2020-01-01T00:00:00Z", until="2020-01-02T00:00:00Z", buckets=24)
    assert (quiet["width"], len(quiet["times"])) == (3600, 24)
    assert sum(quiet["allowed"]["flows"]) == 0
    far = await asker.get("histogram", since="0", until=str((1 << 63) - 2), buckets=2)
    assert len(far["times"]) <= 2
    assert sum(far["allowed"]["flows"]) == split(ADDED)["allowed"]["flows"]


async def test_an_overview(asker: Asker) -> None:
    found = await asker.get("overview", since="0", top=3)
    assert found["totals"] == split(ADDED)
    rules = grouped(lambda row: (row["rule"], row["decision"]))
    assert {(r["rule"], r["decision"]): r["packets"] for r in found["top_rules"]} == {
        key: sum(r["packets"] for r in rows) for key, rows in rules.items()
    }
    denied = grouped(lambda r: (r["src_identity"], r["dst_identity"], r["dport"], r["proto"], r["rule"], r["decision"]))
    most = sorted((sum(r["flows"] for r in rows) for key, rows in denied.items() if key[-1] == "deny"), reverse=True)
    assert [pair["flows"] for pair in found["top_denied"]] == most[:3]
    assert (found["lag"], found["notices"]) == (3, ["told"])
    assert len(found["rates"]["times"]) == len(found["rates"]["denied"]) == 60
    (node,) = found["nodes"]
    assert (node["node"], node["pending"], node["balanced"], found["balanced"]) == ("n1", None, False, False)
    assert "lies in the future" in await asker.refused(400, "overview", {"since": "2200-01-01"})
    assert "not later" in await asker.refused(400, "overview", {"since": "1h", "until": "2h"})


async def test_an_overview_of_then(asker: Asker) -> None:
    """To the nanosecond, and its rates are of the last minute before its end."""
    since, until = ADDED[N // 3]["ns"], ADDED[N // 2]["ns"]
    found = await asker.get("overview", since=str(since), until=str(until))
    assert found["totals"] == split([row for row in ADDED if since <= row["ns"] < until])
    last = until // SECOND * SECOND
    told = [row for row in ADDED if last - 60 * SECOND <= row["ns"] < last and row["event"] != "end"]
    assert sum(map(sum, (found["rates"][kind] for kind in KINDS))) == len(told) > 0
    assert found["rates"]["times"][-1] == times.rfc3339(last - SECOND)


async def test_an_empty_history() -> None:
    store = memory_store()
    async with served.asking(store) as asker:
        found = await asker.get("map")
        assert (found["nodes"], found["edges"], found["exact"]) == ([], [], True)
        assert (await asker.get("matrix"))["cells"] == []
        assert sum((await asker.get("histogram"))["allowed"]["flows"]) == 0
        overview = await asker.get("overview")
        assert (overview["nodes"], overview["totals"], overview["balanced"]) == ([], split([]), True)
        assert await asker.get("policy") == {"nodes": []}
    store.close()


async def test_one_name_is_one_end_whatever_its_numbers_were() -> None:
    store = memory_store()
    one, other = batches.IDENTITIES
    swapped = [IdentityInfo(16, other.name, other.labels, []), IdentityInfo(17, one.name, one.labels, [])]
    first, second = batches.verdict(), batches.verdict(src=b"\1" * 16, src_identity=17, dst_identity=16)
    given = [prepare(batches.batch(first)), prepare(batches.batch(second, node="n2", ring="r2"))]
    told = [batches.policy_record(), batches.policy_record(node="n2", ring="r2", identities=swapped)]
    store.append(Commit(batches=given, records=told))
    async with served.asking(store) as asker:
        for query in ({}, {"group": "label", "label": "app"}):
            (edge,) = (await asker.get("map", **query))["edges"]
            assert edge["allowed"] == {"flows": 2, "packets": 2, "bytes": 148}
        assert (edge["source"], edge["destination"]) == ("app=frontend", "app=db")
        (cell,) = (await asker.get("matrix"))["cells"]
        assert cell["allowed"]["flows"] == 2
    store.close()


async def test_forged_totals_end_no_answer_and_no_rollup() -> None:
    """As large as a sender may say: their sum is none that a number of 64 bits holds."""
    most, n = 1 << 60, 40
    forged = {name: most for name in ("packets_original", "bytes_original", "packets_reply", "bytes_reply")}
    hour = 3600 * SECOND
    rows = np.concatenate([
        batches.verdict(flow_id=1 + i, time=batches.START + i % 4 * hour, dst_identity=17 - i % 2, **forged)
        for i in range(n)
    ])  # fmt: skip
    with closing(memory_store()) as one:
        one.append(Commit(batches=[prepare(batches.batch(rows))], records=[batches.policy_record()]))
        async with served.asking(one) as asker:
            for _ in range(2):  # of events, then of roll-ups
                whole = {"flows": n, "packets": (1 << 62) - 1, "bytes": (1 << 62) - 1}
                half = whole | {"flows": n // 2}
                assert (await asker.get("overview", since=0))["totals"]["allowed"] == whole
                for path, pairs in (("map", "edges"), ("matrix", "cells")):
                    found = await asker.get(path)
                    assert [pair["allowed"] for pair in found[pairs]] == [half, half]
                    assert found["left_out"] == {"nodes": 0, "edges": 0, **split([])}
                assert max((await asker.get("histogram"))["allowed"]["bytes"]) == whole["bytes"]
                assert "rules:" in str(await asker.post("suggest"))
                (node,) = (await asker.get("policy"))["nodes"]
                assert [rule["bytes"] for rule in node["rules"] if rule["flows"]] == [whole["bytes"]]
                assert {flow["bytes"] for flow in (await asker.get("flows"))["flows"]} == {2 * most}
                while rollup.step(one):
                    pass


async def test_what_was_malformed_has_no_address_and_may_have_no_protocol() -> None:
    """Whatever stands where it would be, or beside one of IPv4."""
    stray = b"\1" * 12
    rows = np.concatenate([
        batches.untracked(family=0, proto=0, dport=0),
        batches.untracked(family=0, proto=0, dport=0, src=stray + bytes(4)),
        batches.verdict(), batches.verdict(flow_id=2, src=stray + bytes(4), dst=stray + bytes(4)),
    ])  # fmt: skip
    with closing(memory_store()) as one:
        one.append(Commit(batches=[prepare(batches.batch(rows))], records=[batches.policy_record()]))
        async with served.asking(one) as asker:
            for group in ("address", "network"):
                found = await asker.get("matrix", ports="true", group=group)
                zero = "0.0.0.0" if group == "address" else "0.0.0.0/24"
                assert sorted(found["sources"]) == [zero, "unknown"]
                assert sorted(found["destinations"], key=lambda column: str(column["id"])) == [
                    {"id": zero, "port": 443, "proto": "tcp"}, {"id": "unknown", "port": 0, "proto": "0"},
                ]  # fmt: skip
                nodes = [node["id"] for node in (await asker.get("map", group=group))["nodes"]]
                assert sorted(nodes) == [zero, "unknown"]
