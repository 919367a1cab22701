"""The demo's protocols, its choice of lines, its settings; the network itself is in tests/e2e."""

import ipaddress
from pathlib import Path
from typing import Any

import pytest
import yaml

from ztlens import config
from ztlens.demo import live, servers
from ztlens.demo.network import MACHINES, DemoNetwork
from ztlens.demo.run import POLICY, settings_of, state_directory
from ztlens.errors import BadInput


@pytest.mark.parametrize("family", [4, 6])
def test_dns_gives_a_machines_address(family: int) -> None:
    reply = servers.dns_reply(servers.dns_query(7, "api.demo", family))
    address = ipaddress.ip_address(MACHINES["api"].address(family)).packed
    assert reply[:4] == b"\x00\x07\x85\x80"  # same id; response, authoritative, no error
    assert reply[6:8] == b"\x00\x01"
    assert reply.endswith(len(address).to_bytes(2, "big") + address)


def test_dns_knows_no_other_name() -> None:
    reply = servers.dns_reply(servers.dns_query(7, "elsewhere.demo", 4))
    assert reply[2:8] == b"\x85\x83\x00\x01\x00\x00"  # NXDOMAIN, no answer


@pytest.mark.parametrize("length", range(17))
def test_dns_refuses_what_is_too_short(length: int) -> None:
    with pytest.raises(ValueError, match="not a DNS query"):
        servers.dns_reply(servers.dns_query(7, "api.demo", 4)[:length])


def test_cache_speaks_resp() -> None:
    answer = servers.cache_answers()
    assert answer("GET a") == "$-1\r\n"
    assert answer("SET a 1 2") == "+OK\r\n"
    assert answer("get a") == "$3\r\n1 2\r\n"
    assert answer("KEYS *") == ":1\r\n"
    assert answer("FLUSHALL") == "-ERR unknown command\r\n"


def test_cache_forgets_the_oldest() -> None:
    answer = servers.cache_answers()
    for key in range(servers.CACHE_ENTRIES + 1):
        answer(f"SET {key} x")
    assert answer("KEYS *") == f":{servers.CACHE_ENTRIES}\r\n"
    assert answer("GET 0") == "$-1\r\n"


def test_policy_names_the_machines_addresses() -> None:
    identities: dict[str, Any] = yaml.safe_load(POLICY.read_text())["identities"]
    for name, identity in identities.items():
        networks = [ipaddress.ip_network(text) for text in identity["addresses"]]
        for family in (4, 6):
            assert any(ipaddress.ip_address(MACHINES[name].address(family)) in network for network in networks)
    assert set(MACHINES) - set(identities) == {"visitor"}  # `world`


def test_the_demo_is_an_installation_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in config.BY_NAME:
        monkeypatch.setenv(f"ZTLENS_{name.upper()}", "x")
    network = DemoNetwork("ztd1")
    settings = settings_of("demo-1", network, tmp_path, enforce=True)
    assert settings.run_dir == config.RUN / "demo-1"
    assert settings.pins == config.PINS / "demo-1"
    assert settings.database == tmp_path / "ztlens.duckdb"
    assert settings["netns"] == "ztd1-router"
    assert settings["interfaces"] == tuple(f"{name}:ingress" for name in MACHINES)
    assert (settings.nats, settings["mode"], settings["nats_port"]) == ("", "enforce", 0)


def test_a_state_directory_must_be_empty(tmp_path: Path) -> None:
    assert state_directory(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is not an empty directory"):
        state_directory(tmp_path)
    with pytest.raises(BadInput, match="is not an empty directory"):
        state_directory(tmp_path / "file")
    assert state_directory(tmp_path / "new") == tmp_path / "new"


def row(**columns: Any) -> dict[str, Any]:
    """A verdict as the view gives it."""
    flags = dict.fromkeys(("egress", "midstream", "report_only", "untracked", "aggregated", "reversed"), False)
    return {
        "time": 0, "event": "new", "decision": "allow", "outcome": "passed", "reason": "rule", "rule": "r",
        "src": "10.0.0.1", "sport": 1, "dst": "10.0.0.2", "dport": 2, "proto": "tcp", "family": 4,
        "src_identity": "a", "dst_identity": "b", "packets": 1, "bytes": 60,
    } | flags | columns  # fmt: skip


def test_each_kind_shows_once_then_a_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    highlights = live.Highlights()
    highlights.write([row() for _ in range(100)] + [row(rule="other", event="end"), row(event="end")])
    burst = int(live.LINES_A_SECOND["allow"] * live.BURST_SECONDS)
    assert len(capsys.readouterr().out.splitlines()) == 1 + burst + 1
    assert highlights.held_back == 102 - burst - 2
    now += 1.0
    highlights.write([row() for _ in range(100)])
    assert len(capsys.readouterr().out.splitlines()) == int(live.LINES_A_SECOND["allow"])
    highlights.write([row(decision="deny") for _ in range(100)])  # these do not wait for the others
    assert len(capsys.readouterr().out.splitlines()) == 1 + int(live.LINES_A_SECOND["deny"] * live.BURST_SECONDS)
