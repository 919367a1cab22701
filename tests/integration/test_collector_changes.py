"""Changes that wait, fall back, come from the file or from the host's addresses; what the records tell of them."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from collector.errors import RefusedError
from collector.kernel.interface import Connection, Interface
from schemas.codes import Mode
from schemas.messages import PolicyRecord
from tests.support.collectors import BROKEN, OTHER, POLICY, Opener, Running, collecting, records, settings_for
from tests.support.fake_datapath import FakeDatapath, FakeKernel
from tests.support.nats import NatsServer
from tests.support.until import until

ROOT = "root(0) via control socket"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.policyfile.POLL", 0.05)
    monkeypatch.setattr("collector.service.HOST_SECONDS", 0.05)
    monkeypatch.setattr("collector.control.operations.CONFIRM_SECONDS", (0.01, 100.0))
    monkeypatch.setattr("collector.service.TICK", 0.1)
    monkeypatch.setattr("collector.service.FLUSH_SECONDS", 60.0)


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def replace(file: Path, text: str) -> None:
    """As editors do."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def told(policy: list[PolicyRecord]) -> list[tuple[Any, ...]]:
    return [(r.kind, r.state, r.from_revision, r.revision, r.from_mode, r.mode) for r in policy]


async def all_told(server: NatsServer, running: Running) -> list[PolicyRecord]:
    await running.connected()
    await until(lambda: not running.collector.records.waiting, "the records to leave")
    return (await records(server))[0]


async def test_confirmed_and_fallen_back(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    kernel = FakeKernel()
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), Opener(kernel)) as running:
        await running.ask("policy.apply", text=OTHER, file="other.yaml", confirm_within=60)
        assert await running.ask("policy.confirm") == {"revision": 2, "mode": "monitor", "confirmed": "revision"}
        begin = time.time_ns()
        await running.ask("policy.apply", text=POLICY, file="back.yaml", confirm_within=0.05)
        end = time.time_ns()
        await until(lambda: kernel.confirm_until == 0, "the collector to make the fall-back last")
        assert (kernel.epoch, kernel.revision) == ((2, Mode.MONITOR), 2)
        shown = await running.ask("policy.show")
        assert (shown["revision"], shown["text"], shown["unconfirmed"]) == (2, OTHER, None)
        with pytest.raises(RefusedError, match="nothing waits"):
            await running.ask("policy.confirm")
        await running.ask("mode", mode="enforce", confirm_within=0.05)
        await until(lambda: kernel.confirm_until == 0, "the collector to make the fall-back last")
        policy = await all_told(nats_server, running)
    assert told(policy) == [
        ("start", "confirmed", 0, 1, "", "monitor"),
        ("revision", "pending", 1, 2, "monitor", "monitor"),
        ("revision", "confirmed", 1, 2, "monitor", "monitor"),
        ("revision", "pending", 2, 3, "monitor", "monitor"),
        ("revision", "fallen_back", 3, 2, "monitor", "monitor"),
        ("mode", "pending", 2, 2, "monitor", "enforce"),
        ("mode", "fallen_back", 2, 2, "enforce", "monitor"),
    ]
    assert [r.who for r in policy[-2:]] == [ROOT, "nobody confirmed in time"]
    assert (policy[4].yaml, policy[4].from_hash) == (OTHER, policy[0].hash)
    assert begin + 0.05e9 <= policy[4].time <= end + 0.05e9, "the moment it fell back, not when that was noticed"


async def test_an_heir_goes_on_waiting(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    kernel = FakeKernel()
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    async with collecting(settings, opener) as running:
        await running.ask("policy.apply", text=OTHER, file="other.yaml", confirm_within=60)
    await asyncio.to_thread(policy_file.write_text, POLICY + "# edited meanwhile\n")
    async with collecting(settings, opener) as running:
        waits = (await running.ask("status"))["unconfirmed"]
        assert (waits["kind"], waits["revision"], waits["from_revision"]) == ("revision", 2, 1)
        assert kernel.revision == 2, "the file waits, too"
        await running.ask("policy.confirm")
        await until(lambda: kernel.revision == 3, "the file to be applied")
        await running.ask("policy.apply", text=OTHER, file="other.yaml", confirm_within=0.05)
    await until(lambda: kernel.revision == 3, "the fall-back")
    async with collecting(settings, opener) as running:
        assert (kernel.confirm_until, kernel.epoch[0]) == (0, 3)
        policy = await all_told(nats_server, running)
    assert [(r.kind, r.state, r.revision) for r in policy] == [
        ("start", "confirmed", 1), ("revision", "pending", 2),
        ("start", "pending", 2), ("revision", "confirmed", 2), ("revision", "confirmed", 3), ("revision", "pending", 4),
        ("revision", "fallen_back", 3), ("start", "confirmed", 3),
    ]  # fmt: skip


async def test_a_first_policy_that_fell_back_to_none_is_not_tried_again(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path
) -> None:
    kernel = FakeKernel()
    opener = Opener(kernel)
    async with collecting(settings_for(tmp_path, nats_server.url), opener) as running:
        await running.ask("policy.apply", text=POLICY, file=str(policy_file), confirm_within=0.05)
        await until(lambda: kernel.revision == 0, "the fall-back")
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), opener) as running:
        assert (await running.ask("policy.show"))["text"] == ""
        await asyncio.to_thread(replace, policy_file, OTHER)
        await until(lambda: kernel.revision == 3, "the corrected file")


async def test_a_predecessor_hands_on_only_what_was_confirmed(nats_server: NatsServer, tmp_path: Path) -> None:
    old, kernel = FakeKernel(), FakeKernel()
    settings = settings_for(tmp_path, nats_server.url)
    async with collecting(settings, Opener(old)) as running:
        await running.ask("policy.apply", text=POLICY, file="p.yaml")
        await running.ask("policy.apply", text=OTHER, file="p.yaml", confirm_within=60)
    old.attached = False
    async with collecting(settings, Opener(kernel, predecessor=FakeDatapath(old))) as running:
        assert (await running.ask("policy.show"))["text"] == POLICY


async def test_sixteen_failed_trials_leave_the_running_policy_known(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path
) -> None:
    kernel = FakeKernel()
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    async with collecting(settings, opener) as running:
        for n in range(20):
            await running.ask("policy.apply", text=OTHER + f"# {n}\n", file="other.yaml", confirm_within=60)
            assert (await running.ask("policy.apply", text=POLICY, file="p.yaml"))["revision"] == 1
        assert (await running.ask("policy.show"))["text"] == POLICY
    async with collecting(settings, opener) as running:
        assert (await running.ask("policy.show"))["text"] == POLICY


async def test_the_connection_to_nats_would_be_cut(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    kernel = FakeKernel()
    kernel.host.move("10.0.0.5")
    kernel.host.established = [Connection("10.0.0.5", 40000, "127.0.0.1", nats_server.port)]
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), Opener(kernel)) as running:
        await running.connected()
        line = "the connection to NATS at 127.0.0.1 would be cut (rule default)"
        assert (await running.ask("mode", mode="enforce"))["warnings"] == [line]
        allowed = POLICY + f"  - {{name: nats, from: host, ports: [{nats_server.port}/tcp], action: allow}}\n"
        assert (await running.ask("policy.apply", text=allowed, file="a.yaml"))["warnings"] == []
        assert (await running.ask("policy.apply", text=OTHER, file="b.yaml"))["warnings"] == [line]
        assert (kernel.mode, kernel.revision) == (Mode.ENFORCE, 3), "told, and done: only one's own session is refused"


async def test_whom_an_interface_that_comes_later_cuts_off(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is asked about it, so nothing is refused; but the log says it, once the interface is under enforce."""
    caplog.set_level("INFO", "ztlens.collector")
    kernel, watched = FakeKernel(), (Interface("veth*"),)
    settings = settings_for(tmp_path, nats_server.url, policy_file=policy_file, interfaces=watched)
    kernel.host.move("10.0.0.5")
    line = "the SSH session from 203.0.113.7 would be cut (rule default)"
    async with collecting(settings, Opener(kernel)) as running:
        kernel.host.established = [Connection("10.0.0.5", 22, "203.0.113.7", 40000)]
        kernel.set_links("veth0", "veth1")
        await until(lambda: "veth1" in running.collector.datapath.interfaces, "veth1")
        assert line not in caplog.text  # monitor
        assert line in (await running.ask("mode", mode="enforce"))["warnings"]
        caplog.clear()
        kernel.set_links("veth0", "veth1", "veth2")
        await until(lambda: line in caplog.text, "the warning")
        assert (await running.ask("status"))["interfaces"] == dict.fromkeys(
            ("veth0", "veth1", "veth2"), "native+egress"
        )
        kernel.set_links("veth0")
        await until(lambda: "not watching veth1, veth2 any more: gone" in caplog.text, "word of those that went")


async def test_the_file_is_followed(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    kernel = FakeKernel()
    async with collecting(settings_for(tmp_path, nats_server.url, policy_file=policy_file), Opener(kernel)) as running:
        await asyncio.to_thread(replace, policy_file, OTHER)
        await until(lambda: kernel.revision == 2, "the file to be applied")
        await asyncio.to_thread(replace, policy_file, BROKEN)
        status = await until(lambda: _with_error(running), "the error")
        assert status["policy_error"].startswith(f"{policy_file}:2:")
        assert (await running.ask("policy.show"))["text"] == OTHER
        await asyncio.to_thread(policy_file.unlink)
        await until(lambda: _with_error(running, "No such file"), "the file to be missed")
        await asyncio.to_thread(replace, policy_file, OTHER)
        await until(lambda: _with_error(running, ""), "the error to be gone")
        assert kernel.revision == 2
        # Somebody applies another by hand: it stays until the file says something new, or SIGHUP asks for the file.
        await running.ask("policy.apply", text=POLICY, file="by-hand.yaml")
        file = running.collector.file
        assert file is not None
        before = file._seen
        await asyncio.to_thread(replace, policy_file, OTHER)
        await until(lambda: file._seen != before, "the file to be looked at")
        assert kernel.revision == 3
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: kernel.revision == 4, "the file to be applied")
        policy = await all_told(nats_server, running)
    changed = f"policy file {policy_file} changed"
    assert [(r.kind, r.who) for r in policy] == [
        ("start", "collector start"), ("revision", changed), ("refused", changed), ("refused", changed),
        ("revision", ROOT), ("revision", changed),
    ]  # fmt: skip


async def test_a_file_asked_for_too_early_waits(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    """SIGHUP while a change waits: what the file says anew is in force afterwards, without another word."""
    third = OTHER + "# third\n"
    kernel = FakeKernel()
    settings = settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    async with collecting(settings, Opener(kernel)) as running:
        file = running.collector.file
        assert file is not None
        await until(lambda: file._seen is not None, "the first look at the file")
        await running.ask("policy.apply", text=OTHER, file="other.yaml", confirm_within=60)
        await asyncio.to_thread(replace, policy_file, third)
        await file.reload()
        assert (kernel.revision, file.error) == (2, "")
        await running.ask("policy.confirm")
        await until(lambda: kernel.revision == 3, "the file to be applied")
        assert (await running.ask("policy.show"))["text"] == third
        policy = await all_told(nats_server, running)
    assert [(r.kind, r.state) for r in policy] == [
        ("start", "confirmed"), ("revision", "pending"), ("refused", "confirmed"), ("revision", "confirmed"),
        ("revision", "confirmed"),
    ]  # fmt: skip
    assert policy[2].error == "revision 2 waits for its confirmation"


async def _with_error(running: Running, text: str | None = None) -> dict[str, Any] | None:
    status: dict[str, Any] = await running.ask("status")
    error = status["policy_error"]
    return status if (bool(error) if text is None else text in error and bool(text) == bool(error)) else None


async def test_host_is_where_the_node_is(nats_server: NatsServer, tmp_path: Path, policy_file: Path) -> None:
    to_host = "version: 1\nrules: [{name: ssh, to: host, ports: [22/tcp], action: allow}]\n"
    await asyncio.to_thread(policy_file.write_text, to_host)
    kernel = FakeKernel()
    kernel.host.move("10.0.0.1")
    opener, settings = Opener(kernel), settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    async with collecting(settings, opener) as running:
        assert kernel.applied[-1][0].host == ("10.0.0.1",)
        kernel.host.move("10.0.0.1", "fd00::1")
        await until(lambda: kernel.revision == 2, "the new address")
        assert kernel.applied[-1][0].host == ("10.0.0.1", "fd00::1")
        # While a change waits the slot it may go back to is not touched.
        await running.ask("mode", mode="enforce", confirm_within=60)
        kernel.host.move("10.0.0.9")
        await until(lambda: running.collector.node._host == ("10.0.0.9",), "the move to be noticed")
        assert kernel.revision == 2
        await running.ask("mode.confirm")
        assert (kernel.revision, kernel.applied[-1][0].host) == (3, ("10.0.0.9",))
    async with collecting(settings, opener) as running:
        assert kernel.revision == 3, "nothing has moved"
    kernel.host.move("10.0.0.10")
    async with collecting(settings, opener) as running:
        assert (kernel.revision, kernel.applied[-1][0].host) == (4, ("10.0.0.10",))
        policy = await all_told(nats_server, running)
    assert {r.who for r in policy if r.kind == "revision"} == {"host addresses changed"}
    assert len({r.hash for r in policy}) == 1
    told = {r.revision: [i.addresses for i in r.identities if i.name == "host"] for r in policy if r.identities}
    assert told == {1: [["10.0.0.1"]], 2: [["10.0.0.1", "fd00::1"]], 3: [["10.0.0.9"]], 4: [["10.0.0.10"]]}


@pytest.mark.parametrize("change", ["policy.apply", "mode"])
async def test_what_is_taken_back_is_where_the_node_is_by_now(
    nats_server: NatsServer, tmp_path: Path, policy_file: Path, change: str
) -> None:
    to_host = "version: 1\nrules: [{name: ssh, to: host, ports: [22/tcp], action: allow}]\n"
    await asyncio.to_thread(policy_file.write_text, to_host)
    kernel = FakeKernel()
    kernel.host.move("10.0.0.1")
    settings = settings_for(tmp_path, nats_server.url, policy_file=policy_file)
    there: dict[str, str] = {"text": POLICY, "file": "other.yaml"} if change != "mode" else {"mode": "enforce"}
    back: dict[str, str] = {"text": to_host, "file": "back.yaml"} if change != "mode" else {"mode": "monitor"}
    async with collecting(settings, Opener(kernel)) as running:
        await running.ask(change, **there, confirm_within=60)
        kernel.host.move("10.0.0.9")
        await until(lambda: running.collector.node._host == ("10.0.0.9",), "the move to be noticed")
        answer = await running.ask(change, **back)
        assert answer["changed"] is True and answer["unconfirmed"] is None
        shown = await running.ask("policy.show")
        assert (shown["text"], shown["host"]) == (to_host, ["10.0.0.9"])
        assert kernel.applied[-1][0].host == ("10.0.0.9",)
        assert shown["revision"] == kernel.revision == answer.get("revision", kernel.revision)


async def test_a_time_to_confirm_that_is_none(nats_server: NatsServer, tmp_path: Path) -> None:
    kernel = FakeKernel()
    async with collecting(settings_for(tmp_path, nats_server.url), Opener(kernel)) as running:
        for seconds in (-1, 0.001, 101, 1e300, "60"):
            with pytest.raises(RefusedError, match="the time to confirm is out of range"):
                await running.ask("mode", mode="enforce", confirm_within=seconds)
    assert kernel.mode is Mode.MONITOR


async def test_where_the_node_is_without_a_policy(nats_server: NatsServer, tmp_path: Path) -> None:
    """`policy diff running FILE` reads the first policy of a node by it."""
    kernel = FakeKernel()
    kernel.host.move("10.0.0.1")
    async with collecting(settings_for(tmp_path, nats_server.url), Opener(kernel)) as running:
        shown = await running.ask("policy.show")
    assert (shown["text"], shown["host"]) == ("", ["10.0.0.1"])
