"""`policy suggest` by the command line: on a file, through a running sink, from an export; outputs, exit statuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from schemas.codes import Decision, Flag, Outcome, Reason, RuleId
from schemas.messages import IdentityInfo, RuleInfo
from sink.settings import SinkSettings
from sink.store import Commit, Store, prepare
from tests.support import batches
from tests.support.naive_audit import raw
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings
from ztlens.main import main

SHOP = """version: 1
identities:
  web: {addresses: [10.0.1.0/24]}
  db: {addresses: [10.0.2.7]}
rules:
  - {name: web-to-db, from: web, to: db, ports: [5432/tcp], action: allow}
"""
WHO: dict[str, Any] = {"src": raw("10.0.1.10"), "dst": raw("10.0.2.7")}
DENIED: dict[str, Any] = {"rule": RuleId.DEFAULT, "decision": Decision.DENY, "reason": Reason.DEFAULT}
SUGGESTED = """# Suggested by ztlens, generality service: recorded traffic that was allowed
# 2 flows, 2 packets, 2026-09-21T15:13:20Z – 2026-09-21T15:13:20Z
version: 1
default: deny

identities:
  web: {addresses: [10.0.1.0/24]}
  db: {addresses: [10.0.2.7]}

rules:
  # 2 flows, 2 packets, 2026-09-21T15:13:20Z – 2026-09-21T15:13:20Z
  - name: web-to-db
    from: web
    to: db
    ports: [5432/tcp]
    action: allow
"""


def rows() -> list[np.ndarray]:
    """Two flows that were allowed, one that was not."""
    return [
        batches.verdict(flow_id=1, dport=5432, **WHO),
        batches.verdict(flow_id=2, dport=5432, **WHO | {"src": raw("10.0.1.11")}),
        batches.verdict(flow_id=3, dport=22, outcome=Outcome.DROPPED, **WHO, **DENIED),
    ]


def record(given: SinkSettings, found: list[np.ndarray], first: int = 0) -> None:
    """Store rows from index `first` of the ring on."""
    identities = [IdentityInfo(16, "web", {}, ["10.0.1.0/24"]), IdentityInfo(17, "db", {}, ["10.0.2.7"])]
    policy = batches.policy_record(yaml=SHOP, rules=[RuleInfo(64, "web-to-db", "allow")], identities=identities)
    store = Store.open(given)
    batch = [prepare(batches.batch(np.concatenate(found), first * batches.STRIDE))] if found else []
    store.append(Commit(batches=batch, records=[policy, batches.loss_record(first + len(found))]))
    store.close()


@pytest.fixture
def installed(tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> SinkSettings:
    """Settings that name a database; no sink runs."""
    given = settings(tmp_path, nats_server.url)
    (tmp_path / "ztlens.toml").write_text(f'database = "{given.database}"\nrun_dir = "{given.run_dir}"\n')
    monkeypatch.setenv("ZTLENS_CONFIG", str(tmp_path / "ztlens.toml"))
    monkeypatch.chdir(tmp_path)
    return given


@pytest.fixture(params=["file", "sink"])
def history(installed: SinkSettings, request: pytest.FixtureRequest) -> Iterator[SinkSettings]:
    """A database with rows, on the file and through a running sink."""
    record(installed, rows())
    if request.param == "file":
        yield installed
        return
    with SinkProcess(installed):
        yield installed


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, list[str]]:
    """stdout, lines of stderr."""
    assert main(["policy", "suggest", *arguments]) == status
    out = capsys.readouterr()
    return out.out, out.err.splitlines()


def test_the_policy_and_what_is_said_of_it(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == (SUGGESTED, [
        "1 rule for 2 flows: 2 combinations of source, destination, port",
        "left out: 1 flow, 1 packet that policy denied (--include-denied allows it, too)",
        "opens beyond the record: web → db 5432/tcp: 254 sources never seen",
        "audited: 3 flows, of which none that is to be allowed would be denied",
    ])  # fmt: skip
    out, err = said(capsys, "--include-denied", "--generality", "exact")
    assert "    from: [10.0.1.10, 10.0.1.11]\n    to: db\n    ports: [5432/tcp]\n" in out
    assert err == [
        "2 rules for 3 flows: 3 combinations of source, destination, port",
        "opens nothing beyond the record",
        "audited: 3 flows, of which none that is to be allowed would be denied",
    ]


def test_all_that_it_opens(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "--diff")
    assert out == SUGGESTED
    start = next(i for i, line in enumerate(err) if line.startswith("access "))
    assert err[start + 1].split() == [
        "gained", "deny", "allow", "web", "except", "10.0.1.10/31", "db", "5432/tcp", "default", "web-to-db",
    ]  # fmt: skip
    document = json.loads(said(capsys, "--diff", "-o", "json")[0])
    (row,) = document["opened"]
    assert (row["from"], row["from_except"], row["to"]) == (["web"], ["10.0.1.10/31"], ["db"])
    assert "exact" not in document


def test_the_document(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "-o", "json")
    document = json.loads(out)
    assert err == []
    assert document["policy"] == SUGGESTED
    assert document["rules"][0]["opens"] == {"sources": 254, "destinations": 0, "tuples": 254}
    assert document["audit"]["newly_denied"] == []


def test_it_is_a_policy(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.yaml").write_text(said(capsys, "--include-denied")[0])
    assert main(["policy", "check", "--strict", "new.yaml"]) == 0
    assert main(["audit", "new.yaml", "--fail-on", "new-deny"]) == 0


def test_what_would_be_denied(installed: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody saw who had begun it."""
    midstream = batches.verdict(flow_id=4, sport=50000, dport=50001, flags=int(Flag.MIDSTREAM), **WHO)
    record(installed, [*rows(), midstream])
    out, err = said(capsys, status=1)
    assert out == SUGGESTED
    assert err[-3:] == [
        "uncertain: 1 packet: begun before it was seen",
        "error: recorded, and denied by this policy: 10.0.1.10 → 10.0.2.7 50001/tcp",
        "hint: nobody saw who had begun it: go on watching until it begins anew, or add a rule by hand",
    ]
    assert json.loads(said(capsys, "-o", "json", status=1)[0])["left_out"]["unsure"]["packets"] == 1


def test_late_replies(installed: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """Packets after the end of their flow have none; this one went to the client's port."""
    reply = {"src": WHO["dst"], "dst": WHO["src"], "sport": 5432, "dport": 40000}
    record(installed, [*rows(), batches.verdict(flow_id=0, flags=int(Flag.UNTRACKED), **reply)])
    out, err = said(capsys)
    assert "# 2 flows, 3 packets, " in out
    assert err[-2:] == [
        "uncertain: 1 packet: without a flow, maybe replies",
        "audited: 3 flows, of which none that is to be allowed would be denied",
    ]


def test_from_an_export(installed: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    record(installed, rows())
    assert main(["export", "--to", "exported"]) == 0
    capsys.readouterr()
    assert said(capsys, "--from", "exported")[0] == SUGGESTED


def test_nothing_to_suggest(installed: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    record(installed, [])
    assert said(capsys, status=3) == ("", [
        "error: nothing is recorded that a policy could allow", "hint: watch with `ztlens up`, or name a longer span",
    ])  # fmt: skip
    record(installed, rows()[2:])
    assert said(capsys, status=3) == ("", [
        "error: nothing that was allowed is recorded", "hint: what was denied is: --include-denied allows it",
    ])  # fmt: skip
    midstream = batches.verdict(flow_id=4, sport=50000, dport=50001, flags=int(Flag.MIDSTREAM), **WHO)
    record(installed, [midstream], 1)
    assert said(capsys, status=3) == ("", [
        "error: of nothing recorded it is known who began it",
        "hint: go on watching until conversations begin anew",
    ])  # fmt: skip


def test_bad_input(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text("version: 1\nrules: 5\n")
    cases = [
        (["--generality", "wide"], "error: --generality 'wide'", "hint: one of exact, service, network"),
        (["--node", "n9"], "error: no node is called 'n9'", "hint: recorded are: n1"),
        (["--since", "1h", "--until", "2h"], "error: --until is not later than --since",
         "hint: name a span that has a length"),
        (["-o", "table"], "error: 'table' is not an output of this command", "hint: one of yaml, json"),
    ]  # fmt: skip
    for arguments, error, hint in cases:
        assert said(capsys, *arguments, status=2) == ("", [error, hint]), arguments
    out, err = said(capsys, "--identities", "broken.yaml", status=2)
    assert (out, len(err)) == ("", 2)
    assert err[0].startswith("error: broken.yaml:2:8: `rules`: expected a list")
    assert (
        said(capsys, "--identities", "nowhere.yaml", status=2)[1][0] == "error: nowhere.yaml: No such file or directory"
    )


def test_what_the_sink_refuses(installed: SinkSettings) -> None:
    record(installed, rows())
    transport = httpx.HTTPTransport(uds=str(installed.socket))
    with SinkProcess(installed), httpx.Client(transport=transport, base_url="http://sink", timeout=60) as client:
        for body in ("{", '{"generality": "wide"}', '{"since": "1h"}'):
            answer = client.post("/api/v1/suggest", content=body)
            assert (answer.status_code, answer.json()["exit"]) == (400, 2)
            assert answer.json()["error"].startswith("not a question of a suggestion: ")
        assert client.post("/api/v1/suggest", content="{}").json()["policy"] == SUGGESTED
