"""Pages of verdicts and flows: every row once, in order, whatever is written meanwhile; one flow with its samples."""

import ipaddress
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from schemas.verdict import STRIDE
from sink.store import Commit, Store, memory_store, prepare, rollup
from tests.support import batches, served
from tests.support.served import Asker

N = 1500
TRAFFIC = batches.traffic(N, seed=7)


def put(store: Store, rows: np.ndarray, first: int, *records: Any) -> None:
    batch = prepare(batches.batch(rows, first * STRIDE))
    store.append(Commit(batches=[batch], records=list(records)))


def made() -> Store:
    """A history of which the first part is rolled up; flows of it go on in the rest."""
    store, cut = memory_store(), N * 3 // 5
    put(store, TRAFFIC.rows[:cut], 0, batches.policy_record())
    while rollup.step(store):
        pass
    rollup.fold(store)
    put(store, TRAFFIC.rows[cut : N * 4 // 5], cut)
    return store


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    one = made()
    yield one
    one.close()


@pytest.fixture
async def asker(store: Store) -> AsyncIterator[Asker]:
    async with served.asking(store) as made:
        yield made


ROWS = TRAFFIC.rows[: N * 4 // 5]
VERDICTS = sorted(served.records(ROWS), key=lambda v: (v["time"], v["position"]), reverse=True)
FLOWS = served.flows(ROWS)


async def test_verdicts_page_by_page(asker: Asker) -> None:
    assert await asker.pages("verdicts", "verdicts", limit=450) == VERDICTS
    (newest,) = (await asker.get("verdicts", limit=1))["verdicts"]
    assert newest == VERDICTS[0]


async def test_a_last_page_that_is_full_says_so(asker: Asker) -> None:
    page = await asker.get("verdicts", limit=len(VERDICTS) // 2)
    last = await asker.get("verdicts", limit=len(VERDICTS) // 2, cursor=page["next"])
    assert last["verdicts"] == VERDICTS[len(VERDICTS) // 2 :]
    assert last["next"] is None


async def test_verdicts_by_the_words_of_observe_in_a_span(asker: Asker) -> None:
    since, until = (batches.CLOCK + int(t) for t in np.quantile(ROWS["time"], [0.25, 0.75]))
    given = {"decision": "deny", "port": ["443", "53/udp"], "to_ip": "10.0.2.0/24", "event": ["new", "end"]}
    found = await asker.pages("verdicts", "verdicts", since=since, until=until, limit=9, **given)

    def kept(v: dict[str, Any], ns: int) -> bool:
        port = v["dport"] == 443 or (v["dport"], v["proto"]) == (53, "udp")
        return v["decision"] == "deny" and port and v["event"] in ("new", "end") and v["family"] == 4 and (
            since <= ns < until)  # fmt: skip

    times = {i * STRIDE: int(t) + batches.CLOCK for i, t in enumerate(ROWS["time"].tolist())}
    assert found == [v for v in VERDICTS if kept(v, times[v["position"]])]
    assert len(found) == 17


async def test_pages_stand_still_while_verdicts_are_written() -> None:
    store = made()
    async with served.asking(store) as asker:
        page = await asker.get("verdicts", limit=700)
        put(store, TRAFFIC.rows[N * 4 // 5 :], N * 4 // 5)
        rest = await asker.get("verdicts", limit=700, cursor=page["next"])
        assert page["verdicts"] + rest["verdicts"] == VERDICTS
        assert rest["next"] is None
    store.close()


def _by_address(side: str) -> Callable[[dict[str, Any]], Any]:
    return lambda flow: (flow["family"], int(ipaddress.ip_address(flow[side])))


SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "src": _by_address("src"), "dst": _by_address("dst"),
    **{name: (lambda flow, name=name: flow[name]) for name in
       ("last_seen", "bytes", "packets", "sport", "dport", "proto", "rule", "src_identity", "dst_identity", "decision",
        "node")},
}  # fmt: skip


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("order", ["desc", "asc"])
async def test_flows_in_any_order(asker: Asker, sort: str, order: str) -> None:
    found = await asker.pages("flows", "flows", sort=sort, order=order, limit=250)
    expected = sorted(FLOWS, key=lambda f: (SORTS[sort](f), f["place"]), reverse=order == "desc")
    assert found == [{key: value for key, value in flow.items() if key != "place"} for flow in expected]
    assert {flow["ended"] for flow in found} == {True, False}


async def test_flows_are_filtered_by_their_last_event(asker: Asker) -> None:
    found = await asker.pages("flows", "flows", decision="deny", protocol="udp", limit=7)
    expected = [f["flow"] for f in FLOWS if f["decision"] == "deny" and f["proto"] == "udp"]
    assert sorted(flow["flow"] for flow in found) == sorted(expected)
    assert expected
    big = await asker.pages("flows", "flows", where="bytes > 60000 -- large ones", limit=50)
    assert {f["flow"] for f in big} == {f["flow"] for f in FLOWS if f["bytes"] > 60000}


async def test_flows_of_a_span_are_those_seen_in_it(asker: Asker) -> None:
    """Whatever they did before and behind it."""
    first, past = (batches.CLOCK + int(t) for t in np.quantile(ROWS["time"], [0.4, 0.5]))
    seen: dict[int, list[int]] = {}
    for flow, at in zip(ROWS["flow_id"].tolist(), ROWS["time"].tolist(), strict=True):
        seen.setdefault(flow, []).append(at + batches.CLOCK)
    expected = {f"1-{flow}" for flow, times in seen.items() if max(times) >= first and min(times) < past}
    found = await asker.pages("flows", "flows", since=first, until=past, limit=40)
    assert {flow["flow"] for flow in found} == expected
    assert len(found) == len(expected)
    assert 0 < len(expected) < len(FLOWS)


async def test_one_flow_with_its_samples_and_its_rule(asker: Asker) -> None:
    wanted = next(f for f in FLOWS if f["events"] == 3 and f["decision"] == "allow")
    found = await asker.get(f"flows/{wanted['flow']}")
    assert found["flow"] == {key: value for key, value in wanted.items() if key != "place"}
    own = [v for v in reversed(VERDICTS) if v["flow"] == wanted["flow"]]
    assert found["samples"] == [{key: v[key] for key in found["samples"][0]} for v in own]
    assert [sample["event"] for sample in found["samples"]] == ["new", "sample", "end"]
    assert found["rule"] == {
        "name": "web-to-db", "action": "allow", "report_only": False, "text": "- name: web-to-db"}  # fmt: skip
    assert (found["revision"]["revision"], found["revision"]["text"]) == (1, "version: 1")
    assert found["left_out"] == 0
    denied = await asker.get(f"flows/{next(f['flow'] for f in FLOWS if f['decision'] == 'deny')}")
    assert denied["rule"] == {"name": "default", "action": "", "report_only": False, "text": ""}


async def test_a_flow_is_refused_that_is_not_there(asker: Asker) -> None:
    for name in ("x", "1-", "-1", "1-0", "1-99999999999999999999999999", "9-1", "1-1-1", "%00", "1-٣"):
        await asker.refused(404, f"flows/{name}")


async def test_a_cursor_is_of_its_question(asker: Asker) -> None:
    page = await asker.get("flows", limit=3, decision="deny")
    for query in ({"limit": 3}, {"decision": "allow"}, {"decision": "deny", "sort": "bytes"}):
        assert "of another question" in await asker.refused(400, "flows", query | {"cursor": page["next"]})
    assert await asker.get("flows", limit=5, decision="deny", cursor=page["next"])
    altered = page["next"].translate(str.maketrans("AQgw", "QAwg"))  # still base64
    for cursor in ("x", "====", page["next"][:-4], altered, "gA", "é"):
        await asker.refused(400, "flows", {"limit": 3, "decision": "deny", "cursor": cursor})
    assert "of another question" in await asker.refused(400, "verdicts", {"decision": "deny", "cursor": page["next"]})


async def test_an_empty_history_has_empty_pages() -> None:
    store = memory_store()
    async with served.asking(store) as asker:
        assert await asker.get("verdicts") == {"verdicts": [], "next": None}
        assert await asker.get("flows") == {"flows": [], "next": None}
        await asker.refused(404, "flows/1-1")
    store.close()
