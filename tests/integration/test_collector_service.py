"""The collector from start to end, with a real nats-server and a fake datapath."""

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import msgspec
import nats
import pytest

from collector.errors import CollectorError, KernelError, RefusedError
from policy.compile import compile_policy
from policy.parse import parse
from schemas.codes import Decision, Mode, Outcome
from schemas.verdict import STRIDE
from tests.integration.test_collector_nats import check_cover, stored
from tests.support.collectors import BROKEN, OTHER, POLICY, Opener, collecting, records, settings_for
from tests.support.fake_datapath import FakeDatapath, FakeKernel, make_rows
from tests.support.nats import NatsServer
from tests.support.until import PATIENCE, until


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


async def test_a_life(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    """Start with a policy, verdicts, a change of policy and mode, `down`: streams tell all of it."""
    kernel = FakeKernel(4096)
    settings = settings_for(tmp_path, nats_server.url, policy_file=policy_file, mode=Mode.ENFORCE)
    async with collecting(settings, Opener(kernel)) as running:
        assert (kernel.revision, kernel.mode) == (1, Mode.ENFORCE)
        kernel.push(make_rows(250, revision=1))
        await running.drained()
        assert await running.ask("policy.apply", text=OTHER, file="other.yaml") == {
            "revision": 2, "hash": sha(OTHER), "changed": True, "warnings": [], "unconfirmed": None,
        }  # fmt: skip
        assert (await running.ask("policy.apply", text=OTHER, file="other.yaml"))["changed"] is False
        assert await running.ask("mode", mode="monitor") == {
            "mode": "monitor", "from": "enforce", "changed": True, "warnings": [], "unconfirmed": None,
        }  # fmt: skip
        assert (await running.ask("mode"))["mode"] == "monitor"
        shown = await running.ask("policy.show")
        assert (shown["text"], shown["file"], shown["revision"]) == (OTHER, "other.yaml", 2)
        assert shown["rules"][0]["name"] == "web-to-db"
        kernel.push(make_rows(50, first_flow=251, revision=2))
        done = await running.ask("down")
        await running.ended()
    assert done == {"ring": kernel.ring_id, "events": 600, "lost": 0, "packets": 300, "recorded": True}
    assert (kernel.attached, kernel.pinned, kernel.flows) == (False, False, {})
    assert kernel.consumed == kernel.produced == 600 * STRIDE
    assert len(check_cover(await stored(nats_server), kernel.produced)) == 600
    policy, loss = await records(nats_server)
    who = "root(0) via control socket"
    assert [(r.kind, r.revision, r.mode, r.hash, r.who) for r in policy] == [
        ("start", 1, "enforce", sha(POLICY), "collector start"),
        ("revision", 2, "enforce", sha(OTHER), who),
        ("mode", 2, "monitor", sha(OTHER), who),
        ("closed", 2, "monitor", "", who),
    ]
    compiled = compile_policy(parse(POLICY))
    assert (policy[0].yaml, policy[0].default) == (POLICY, "deny")
    assert (policy[0].rules, policy[0].identities) == (compiled.rule_infos(), compiled.identity_infos())
    assert (policy[1].from_revision, policy[1].from_hash) == (1, sha(POLICY))
    assert (policy[2].from_mode, policy[3].end) == ("enforce", kernel.produced)
    final = [record for record in loss if record.final]
    assert [final[0]] == final == [loss[-1]]
    assert (final[0].produced, final[0].consumed) == (kernel.produced, kernel.produced)
    assert final[0].flows == msgspec.structs.replace(final[0].flows, live=0, packets=0, bytes=0, due=0)
    assert final[0].judged_packets == final[0].counters["parsed"] == 300
    assert final[0].collector["acknowledged"] == 600
    assert not (tmp_path / "run" / "control.sock").exists()
    assert not (tmp_path / "run" / "policies.json").exists()


async def test_sigterm_leaves_the_datapath_and_the_next_one_adopts_it(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path
) -> None:
    kernel = FakeKernel(4096)
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    async with collecting(settings, opener) as running:
        await running.connected()
        kernel.push(make_rows(120))
        os.kill(os.getpid(), signal.SIGTERM)
        await running.ended()
    assert (kernel.attached, kernel.pinned, kernel.revision) == (True, True, 1)
    kernel.push(make_rows(80, first_flow=121))
    async with collecting(settings, opener) as running:
        await running.drained()
        shown = await running.ask("policy.show")
        assert (shown["text"], shown["revision"], shown["known"]) == (POLICY, 1, True)
        assert (await running.ask("status"))["adopted"] is True
    check_cover(await stored(nats_server), 200 * STRIDE)
    policy, loss = await records(nats_server)
    assert [(r.kind, r.revision, r.hash) for r in policy] == [("start", 1, sha(POLICY))] * 2
    assert policy[1].yaml == POLICY and policy[1].rules == policy[0].rules
    assert not any(record.final for record in loss)


async def test_an_adopted_datapath_gets_a_changed_file_and_keeps_a_newer_apply(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path
) -> None:
    kernel = FakeKernel(4096)
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    async with collecting(settings, opener) as running:
        await running.ask("policy.apply", text=OTHER, file="by-hand.yaml")
    async with collecting(settings, opener):  # the file is as it was: what somebody applied since stays
        assert kernel.revision == 2
    await asyncio.to_thread(policy_file.write_text, POLICY + "# changed\n")
    async with collecting(settings, opener) as running:
        assert kernel.revision == 3
        await asyncio.to_thread(policy_file.write_text, BROKEN)
        os.kill(os.getpid(), signal.SIGHUP)
        await running.connected()
        await until(lambda: _refused(nats_server), "the refusal to be told")
    async with collecting(settings, opener) as running:
        assert kernel.revision == 3
        await running.connected()
        await until(lambda: not running.collector.records.waiting, "the records to leave")
    policy, _ = await records(nats_server)
    kinds = [r.kind for r in policy]
    assert kinds == ["start", "revision", "start", "start", "revision", "refused", "start", "refused"]
    assert (policy[-1].revision, policy[-1].hash, policy[-1].yaml) == (3, sha(BROKEN), "")
    assert policy[-1].error.startswith(f"{policy_file}:2:")


async def _refused(server: NatsServer) -> bool:
    policy, _ = await records(server)
    return any(r.kind == "refused" for r in policy)


@pytest.mark.parametrize("content", [BROKEN, None, b"\xff\xfe\x00"])
async def test_a_broken_or_unreadable_file_at_a_first_start_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "policy.yaml"
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        file.write_bytes(content)
    opener = Opener(FakeKernel())
    with pytest.raises(RefusedError, match=r"policy\.yaml") as caught:
        async with collecting(settings_for(tmp_path, "nats://127.0.0.1:1", policy_file=file), opener):
            pass
    assert caught.value.exit_status == 2
    assert opener.opened == 0, "no interface was touched"


async def test_a_policy_the_kernel_has_no_room_for(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    kernel = FakeKernel()
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), Opener(kernel)) as running:
        kernel.failures["apply"] = KernelError("5000 rules, room for 4096", "raise the knob RULES_MAX")
        with pytest.raises(RefusedError, match="room for 4096") as caught:
            await running.ask("policy.apply", text=OTHER, file="other.yaml")
        assert caught.value.hint == "raise the knob RULES_MAX"
        with pytest.raises(RefusedError, match=r"other.yaml:2:"):
            await running.ask("policy.apply", text=BROKEN, file="other.yaml")
        assert (kernel.revision, (await running.ask("policy.show"))["text"]) == (1, POLICY)
        assert (await running.ask("policy.apply", text=OTHER, file="other.yaml"))["revision"] == 2
        await running.connected()
        await until(lambda: not running.collector.records.waiting, "the records to leave")
    policy, _ = await records(nats_server)
    assert [r.kind for r in policy] == ["start", "refused", "refused", "revision"]


async def test_nats_away_at_the_start(tmp_path: Path, policy_file: Path) -> None:
    server, kernel = NatsServer(tmp_path / "nats"), FakeKernel(4096)
    async with collecting(settings_for(tmp_path, server.url, policy_file=policy_file), Opener(kernel)) as running:
        kernel.push(make_rows(300, revision=1))
        await running.ask("policy.apply", text=OTHER, file="other.yaml")
        status = await running.ask("status")
        assert status["nats"]["connected"] is False
        assert status["events_waiting"] == 300
        with pytest.raises(CollectorError, match=r"300 events .* would be lost") as caught:
            await running.ask("down")
        assert "SIGTERM" in caught.value.hint
        assert kernel.attached
        with server:
            await running.drained()
            await until(lambda: not running.collector.records.waiting, "the records to leave")
            check_cover(await stored(server), 300 * STRIDE)
            policy, loss = await records(server)
            assert [r.kind for r in policy] == ["start", "revision"]
            assert loss
            await running.ask("down")
            await running.ended()


async def test_down_by_force_without_nats(tmp_path: Path) -> None:
    kernel = FakeKernel(4096)
    async with collecting(settings_for(tmp_path, "nats://127.0.0.1:1"), Opener(kernel)) as running:
        kernel.push(make_rows(30))
        done = await running.ask("down", force=True)
        await running.ended()
    assert (done["events"], done["lost"], done["recorded"]) == (60, 60, False)
    assert (kernel.attached, kernel.pinned) == (False, False)


async def test_down_with_a_full_ring_and_more_flows_than_it_holds(nats_server: NatsServer, tmp_path: Path) -> None:
    kernel = FakeKernel(64)
    async with collecting(settings_for(tmp_path, nats_server.url, batch=20), Opener(kernel)) as running:
        kernel.push(make_rows(500))  # 64 fit, 436 are due
        await running.connected()
        assert (await running.ask("down"))["events"] == 1000
        await running.ended()
    assert len(check_cover(await stored(nats_server), kernel.produced)) == 1000
    _, loss = await records(nats_server)
    counters = loss[-1].counters
    assert counters["events_due"] == loss[-1].produced // STRIDE == 1000
    assert counters["parsed"] == counters["ended_packets"] == loss[-1].judged_packets == 500


async def test_nats_dies_in_the_middle_of_down(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.service.CLOSE_SECONDS", 0.5)
    kernel = FakeKernel(64)
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url, batch=20)
    async with collecting(settings, opener) as running:
        await running.drained()
        detach = FakeDatapath.detach

        def detach_and_kill(self: FakeDatapath) -> None:
            nats_server.kill()
            detach(self)

        monkeypatch.setattr(FakeDatapath, "detach", detach_and_kill)
        kernel.push(make_rows(500))
        with pytest.raises(CollectorError, match="are left"):
            await running.ask("down")
        assert kernel.pinned
        nats_server.start()
        monkeypatch.setattr(FakeDatapath, "detach", detach)
        monkeypatch.setattr("collector.service.CLOSE_SECONDS", 30.0)
        await running.connected()
        assert (await running.ask("down"))["lost"] == 0
        await running.ended()
    assert not kernel.pinned
    assert len(check_cover(await stored(nats_server), kernel.produced)) == 1000


async def test_a_predecessor_is_drained_closed_and_unpinned(nats_server: NatsServer, tmp_path: Path) -> None:
    old, kernel = FakeKernel(4096, stride=136), FakeKernel(4096)
    old.push(make_rows(300))
    old.attached = False
    opener = Opener(kernel, predecessor=FakeDatapath(old))
    async with collecting(settings_for(tmp_path, nats_server.url), opener) as running:
        kernel.push(make_rows(40))
        await until(lambda: not old.pinned, "the old ring to be closed")
        await running.drained()
    batches = await stored(nats_server)
    assert {b.ring for b in batches} == {old.ring_id, kernel.ring_id}
    older = [b for b in batches if b.ring == old.ring_id]
    assert (sum(b.n for b in older), {b.stride for b in older}, max(b.end for b in older)) == (600, {136}, 600 * 136)
    check_cover([b for b in batches if b.ring == kernel.ring_id], kernel.produced)
    policy, loss = await records(nats_server)
    assert [(r.kind, r.ring, r.end) for r in policy] == [
        ("start", kernel.ring_id, 0),
        ("closed", old.ring_id, 600 * 136),
    ]
    final = [r for r in loss if r.final]
    assert [(r.ring, r.stride, r.counters["ended_packets"]) for r in final] == [(old.ring_id, 136, 300)]


async def test_a_predecessors_policy_goes_on(nats_server: NatsServer, tmp_path: Path) -> None:
    old = FakeKernel(4096)
    settings = settings_for(tmp_path, nats_server.url)
    async with collecting(settings, Opener(old)) as running:
        await running.ask("policy.apply", text=POLICY, file="p.yaml")
    kernel = FakeKernel(4096)
    old.attached = False
    async with collecting(settings, Opener(kernel, predecessor=FakeDatapath(old))) as running:
        assert kernel.revision == 1
        assert (await running.ask("policy.show"))["text"] == POLICY
        await until(lambda: not old.pinned, "the old ring to be closed")


async def test_live_subjects_speak_in_names_of_each_revision(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path
) -> None:
    kernel = FakeKernel(4096)
    client = await nats.connect(nats_server.url)
    subscription = await client.subscribe("ztlens.live.v1.*.deny.*.db.>")
    await client.flush()
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), Opener(kernel)) as running:
        await running.connected()
        renamed = POLICY.replace("web", "shop")
        await running.ask("policy.apply", text=renamed, file="renamed.yaml")
        both = {"src_identity": 16, "dst_identity": 17, "rule": 64, "decision": [Decision.ALLOW, Decision.DENY]}
        kernel.push(make_rows(2, revision=1, outcome=Outcome.DROPPED, **both))
        kernel.push(make_rows(2, first_flow=3, revision=2, **both))
        seen = [await subscription.next_msg(timeout=PATIENCE) for _ in range(2)]
        await running.drained()
        counted = running.collector.counters()
        assert (counted["live_sent"], counted["live_capped"], counted["live_failed"]) == (4, 0, 0)
    await client.close()
    assert [m.subject for m in seen] == [f"ztlens.live.v1.n1.deny.{name}.db.tcp.5432" for name in ("web", "shop")]
    first = msgspec.msgpack.decode(seen[0].data)
    assert (first["rule"], first["src_identity"], first["outcome"], first["flow_id"]) == (
        "web-to-db", "web", "dropped", 2,
    )  # fmt: skip


async def test_status(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    kernel = FakeKernel(1000)
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), Opener(kernel)) as running:
        await running.connected()
        kernel.push(make_rows(100))
        await running.drained()
        status = await running.ask("status", fresh=True)
        await until(lambda: not running.collector.records.waiting, "the records to leave")
    assert status["kernel"]["parsed"] == status["judged_packets"] == 100
    assert (status["node"], status["ring"], status["mode"], status["revision"]) == ("n1", kernel.ring_id, "monitor", 1)
    assert status["policy"] == {"hash": sha(POLICY), "file": str(policy_file), "who": "policy file at start"}
    assert status["interfaces"] == {"veth0": "native+egress"}
    assert (status["ring_bytes"], status["events_waiting"], status["produced"]) == (1000 * STRIDE, 0, 100 * STRIDE)
    assert status["rates"]["events"] > 0 and status["outage_tolerance"] > 0
    assert status["nats"]["connected"] is True and status["nats"]["url"] == nats_server.url
    _, loss = await records(nats_server)
    fresh = [r for r in loss if r.flows is not None and r.flows.live == 100]
    assert fresh and fresh[-1].counters["parsed"] == 100


async def test_trouble_of_a_sweep_is_told_and_the_drain_goes_on(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.service.SWEEP_SHARE", 1.0)  # the second comes however long the first one took
    kernel = FakeKernel(1000)
    async with collecting(settings_for(tmp_path, nats_server.url), Opener(kernel)) as running:
        kernel.failures["sweep"] = KernelError("no memory for the batch", "")
        await until(lambda: running.collector.notices, "a notice")
        kernel.push(make_rows(10))
        await running.drained()
        assert (await running.ask("status"))["notices"] == ["sweep: no memory for the batch"]


async def test_a_dying_part_ends_the_collector_and_loses_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    kernel = FakeKernel(1000)
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url)
    with pytest.raises(CollectorError, match="OSError: gone") as caught:
        async with collecting(settings, opener) as running:
            await running.connected()
            kernel.failures["read"] = OSError("gone")
            kernel.push(make_rows(10))
            await running.ended()
    assert caught.value.exit_status == 3
    assert kernel.attached and kernel.pinned
    async with collecting(settings, opener) as running:
        await running.drained()
    check_cover(await stored(nats_server), 10 * STRIDE)


async def test_two_collectors_of_one_instance(nats_server: NatsServer, tmp_path: Path) -> None:
    first, second = FakeKernel(100), FakeKernel(100)
    settings = settings_for(tmp_path, nats_server.url)
    async with collecting(settings, Opener(first)) as running:
        with pytest.raises(CollectorError, match="listens at"):
            async with collecting(settings, Opener(second)):
                pass
        assert (second.attached, second.pinned) == (False, False)
        assert first.attached
        assert (await running.ask("status"))["ring"] == first.ring_id
