"""What collector and sink tell Prometheus, number by number: a fake datapath, a real nats-server, real HTTP."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import nats
import pytest
from prometheus_client.parser import text_string_to_metric_families

from collector.errors import CollectorError
from schemas import messages, streams, subjects
from schemas.codes import Decision, Reason
from schemas.metrics import NODE_TOLD, OTHER, RULES_MOST
from sink.consume import StreamInfo
from sink.store import Commit, Store
from tests.support import batches
from tests.support.collectors import BROKEN, POLICY, Opener, collecting, settings_for
from tests.support.collectors import OTHER as OTHER_POLICY
from tests.support.fake_datapath import FakeKernel, make_rows
from tests.support.nats import NatsServer
from tests.support.prometheus import free_ports, scrape
from tests.support.sinks import SinkProcess, settings
from tests.support.until import PATIENCE, until

Samples = dict[tuple[str, ...], float]
"""(name, label values in the order of their names) → value."""


def parsed(text: str) -> Samples:
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text) for one in family.samples
    }  # fmt: skip


async def told(address: str) -> Samples:
    return parsed(await asyncio.to_thread(scrape, address))


async def until_told(address: str, **wanted: Any) -> Samples:
    """Until every sample wanted (`name__label`: value) is told."""
    keys = {tuple(key.split("__")): value for key, value in wanted.items()}
    found: Samples = {}

    async def there() -> bool:
        nonlocal found
        found = await told(address)
        return all(found.get(key) == value for key, value in keys.items())

    try:
        await until(there, f"{keys}")
    except AssertionError as error:
        raise AssertionError({key: found.get(key) for key in keys}) from error
    return found


def local() -> str:
    return f"127.0.0.1:{free_ports()[0]}"


async def test_a_collector(nats_server: NatsServer, tmp_path: Path) -> None:
    kernel, address = FakeKernel(4096), local()
    opener = Opener(kernel)
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    given = settings_for(tmp_path, nats_server.url, policy_file=file, metrics=address)
    async with collecting(given, opener) as running:
        kernel.push(make_rows(250, revision=1, rule=64, reason=Reason.RULE))
        kernel.push(make_rows(50, first_flow=300, revision=1, rule=0, reason=Reason.DEFAULT, decision=Decision.DENY))
        await running.drained()
        judged = "ztlens_policy_verdicts_total"
        found = await until_told(
            address,
            ztlens_packets_total__parsed=300, ztlens_events_published_total=300,
            **{"ztlens_rule_packets_total__passed__web-to-db": 250, f"{judged}__allow__original__rule__web-to-db": 250,
               f"{judged}__deny__original__default__default": 50},
        )  # fmt: skip
        ((_, file_, _, node, revision),) = [key for key in found if key[0] == "ztlens_policy_info"]
        assert (file_, node, revision) == (str(file), "n1", "1")  # by which the alert of idle rules finds them
        assert found["ztlens_mode", "monitor"] == 1 and found["ztlens_revision",] == 1
        assert found["ztlens_nats_connected",] == 1 and found["ztlens_flows_live",] == 300
        assert found["ztlens_drain_seconds_count",] >= 3
        assert found["ztlens_confirmation_pending_seconds", "revision"] == 0
        begin = time.monotonic()
        await running.ask("policy.apply", text=OTHER_POLICY, file="other.yaml", confirm_within=600)
        await until_told(address, ztlens_revision=2)

        async def left() -> float:
            return (await told(address))["ztlens_confirmation_pending_seconds", "revision"]

        found_left = await until(left, "what is left to confirm it")
        assert 600 - (time.monotonic() - begin) <= found_left <= 600
        with pytest.raises(CollectorError):
            await running.ask("policy.apply", text=BROKEN, file="broken.yaml")
        await until_told(address, ztlens_policy_load_errors_total=1)
    with pytest.raises(OSError):
        await told(address)
    async with collecting(given, opener):  # adopted: the kernel's counters go on, the collector's own begin anew
        found = await until_told(address, ztlens_packets_total__parsed=300)
        assert ("ztlens_policy_verdicts_total", "allow", "original", "rule", "web-to-db") not in found
        assert found["ztlens_policy_load_errors_total",] == 0


async def test_a_scrape_waits_for_nobody(nats_server: NatsServer, tmp_path: Path) -> None:
    """Neither for the kernel's thread nor for the loop, and they do not wait for it."""
    address = local()
    async with collecting(
        settings_for(tmp_path, nats_server.url, metrics=address), Opener(FakeKernel(4096))
    ) as running:
        await until_told(address, ztlens_nats_connected=1, ztlens_packets_total__parsed=0)
        free = threading.Event()
        stuck = asyncio.ensure_future(running.collector.call(free.wait))
        try:
            assert (await told(address))["ztlens_packets_total", "parsed"] == 0
            thread = threading.Thread(target=lambda: seen.append(scrape(address)))
            seen: list[str] = []
            thread.start()
            thread.join(30)  # the loop stands still meanwhile
            assert "ztlens_ring_fill_ratio 0.0" in seen[0]
        finally:
            free.set()
            await stuck


async def test_a_large_policy_has_a_bounded_number_of_series(nats_server: NatsServer, tmp_path: Path) -> None:
    rules = "\n".join(f"  - {{name: r{n}, ports: [{n + 1}/tcp], action: allow}}" for n in range(RULES_MOST + 20))
    address = local()
    kernel = FakeKernel(4096)
    async with collecting(settings_for(tmp_path, nats_server.url, metrics=address), Opener(kernel)) as running:
        applied = await running.ask("policy.apply", text=f"version: 1\nrules:\n{rules}\n", file="large.yaml")
        names = running.collector.node.names
        last = next(
            n for n in range(64, 64 + RULES_MOST + 20) if names.rule(applied["revision"], n) == f"r{RULES_MOST}"
        )
        kernel.push(make_rows(3, revision=applied["revision"], rule=last, reason=Reason.RULE))
        await running.drained()
        verdicts = f"ztlens_policy_verdicts_total__allow__original__rule__{OTHER}"
        found = await until_told(address, ztlens_rule_packets_total__passed__other=3, **{verdicts: 3})
        series = [key for key in found if key[0] == "ztlens_rule_packets_total"]
        assert len(series) == 2 * (RULES_MOST + 9) + 2


async def test_a_busy_port(nats_server: NatsServer, tmp_path: Path) -> None:
    address = local()
    opener = Opener(FakeKernel(64))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with collecting(settings_for(tmp_path / "one", nats_server.url, metrics=address), Opener(FakeKernel(64))):
        with pytest.raises(CollectorError, match=f"metrics: cannot listen on {address}: Address already in use"):
            async with collecting(settings_for(tmp_path / "two", nats_server.url, metrics=address), opener):
                pass
    assert (opener.kernel.attached, opener.kernel.pinned) == (False, False)  # nothing is left


async def test_a_sink(nats_server: NatsServer, tmp_path: Path) -> None:
    """Stored twice, a dead letter, a gap, a node that falls silent, questions good and bad."""
    client = await nats.connect(nats_server.url)
    for name in (subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM):
        await streams.ensure(client, name)
    stream = client.jetstream()
    rows = batches.traffic(90).rows
    parts = list(batches.cut(rows, 30))
    for data in (parts[0], parts[0], parts[2], b"no message of ours"):
        await stream.publish(subjects.verdicts("n1"), data)
    record = batches.loss_record(90)
    await stream.publish(subjects.policy("n1"), messages.encode(batches.policy_record("start")))
    await stream.publish(subjects.loss("n1"), messages.encode(record))
    address = local()
    with SinkProcess(settings(tmp_path, nats_server.url, metrics=address)) as sink:
        found = await until_told(
            address, ztlens_sink_stored_total__verdicts=60, ztlens_sink_dropped_total__verdicts__duplicate=30,
            ztlens_sink_dropped_total__messages__dead=1, ztlens_sink_stored_total__records=2,
            ztlens_lost_events_total__gap__store=30, ztlens_gap_events__n1=30, ztlens_ledger_events__gaps__n1=30,
            ztlens_node_silent__n1=1,
        )  # fmt: skip
        assert found["ztlens_stream_lag_messages", subjects.VERDICTS_STREAM] == 0
        assert found["ztlens_database_bytes", "database"] > 0
        assert found["ztlens_node_heard_seconds", "n1"] > 15
        assert found["ztlens_commit_age_seconds",] > 0 and found["ztlens_figures_age_seconds",] > 0
        sink.ask(lambda history: history.sql("SELECT count(*) FROM verdicts"))
        with pytest.raises(Exception, match="nonsense"):
            sink.ask(lambda history: history.sql("SELECT nonsense"))
        after = await told(address)
        for result in ("answered", "refused"):
            key = ("ztlens_queries_total", result)
            assert after[key] > found[key] or result == "answered", result
        assert after["ztlens_queries_total", "refused"] == 1
        assert [after["ztlens_queries_again_total", why] for why in ("memory", "reopened")] == [0, 0]
        assert after["ztlens_query_seconds_count", "sql"] >= 2
        assert {key[1] for key in after if key[0] == "ztlens_query_seconds_count"} <= {"sql", "status", "ledger"}
        busy = SinkProcess(settings(tmp_path / "other", nats_server.url, metrics=address))
        busy.start(wait=False)
        assert busy.process is not None
        assert await asyncio.to_thread(busy.process.wait, PATIENCE) == 3
        assert f"metrics: cannot listen on {address}" in busy.log() and "Traceback" not in busy.log()
        busy.process = None
    await client.close()


async def test_a_node_that_is_gone_for_days(nats_server: NatsServer, tmp_path: Path) -> None:
    """A sink that starts knows how long ago each was heard of; after NODE_TOLD a node is told of in its status only."""
    store = Store.open(given := settings(tmp_path, nats_server.url, metrics=local()))
    now = time.time_ns()
    for node, ago in (("lately", 0.0), ("silent", NODE_TOLD - 3600.0), ("gone", NODE_TOLD + 3600.0)):
        store.append(Commit(records=[batches.loss_record(0, node=node, time=now - int(ago * 1e9))]))
    store.close()
    with SinkProcess(given) as sink:
        found = await until_told(given.metrics, ztlens_node_silent__silent=1, ztlens_ledger_balanced__silent=1)
        nodes = sink.ask(lambda history: history.status())["nodes"]
    assert nodes.keys() == {"lately", "silent", "gone"} and nodes["gone"]["state"] == "silent"
    assert 0 <= found["ztlens_node_heard_seconds", "silent"] - (NODE_TOLD - 3600) < 1800
    assert {key[1:2] for key in found if "node" in key[0]} == {("lately",), ("silent",)}
    assert {key[1] for key in found if key[0] in ("ztlens_ledger_balanced", "ztlens_denied_pairs_total")} == {
        "lately", "silent"
    }  # fmt: skip
    assert found["ztlens_commit_age_seconds",] > 0  # nothing came: since it started


def test_lag_of_what_a_stream_may_hold() -> None:
    info = StreamInfo("", first=101, last=200, messages=100, bytes=800, max_bytes=1000)
    assert (info.lag(150), info.lag_ratio(150)) == (50, 0.4)
    assert (info.lag(0), info.lag_ratio(0)) == (200, 0.8)  # half of it is gone already
    assert info.lag_ratio(200) == 0
    assert StreamInfo("", 1, 5, 5, 800, 0).lag_ratio(0) == 0  # no limit
