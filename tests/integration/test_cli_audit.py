"""`audit` by the command line: on a file, through a running sink, from an export; outputs and exit statuses."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from policy.document import MAX_BYTES
from schemas.codes import Decision, Outcome, Reason, RuleId
from schemas.messages import RuleInfo
from sink.client import History
from sink.errors import BusyError
from sink.history.audit import Question, Text
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
  db: {addresses: [10.0.2.0/24]}
rules:
  - {name: web-to-db, from: web, to: db, ports: [5432/tcp], action: allow}
"""
STRICT = SHOP.replace("5432/tcp", "5433/tcp")
OPEN = "version: 1\ndefault: allow\n"
PORTS = range(8000, 8025)


def rows() -> np.ndarray:
    """One flow the policy allowed, and denied ones to 25 ports, that to the last the biggest."""
    who = {"src": raw("10.0.1.10"), "dst": raw("10.0.2.7")}
    denied: dict[str, Any] = {"rule": RuleId.DEFAULT, "decision": Decision.DENY, "reason": Reason.DEFAULT}
    found = [batches.verdict(flow_id=1, dport=5432, **who)]
    found += [
        batches.verdict(
            flow_id=port, dport=port, packets_original=port - 7999, outcome=Outcome.DROPPED, **who, **denied
        )
        for port in PORTS
    ]
    return np.concatenate(found)


@pytest.fixture
def recorded(tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> SinkSettings:
    """A database, files of policies, and settings that name all of it; no sink runs."""
    given = settings(tmp_path, nats_server.url)
    store = Store.open(given)
    record = batches.policy_record(yaml=SHOP, rules=[RuleInfo(64, "web-to-db", "allow")], identities=[])
    store.append(Commit(batches=[prepare(batches.batch(rows()))], records=[record, batches.loss_record(26)]))
    store.close()
    (tmp_path / "ztlens.toml").write_text(f'database = "{given.database}"\nrun_dir = "{given.run_dir}"\n')
    monkeypatch.setenv("ZTLENS_CONFIG", str(tmp_path / "ztlens.toml"))
    monkeypatch.chdir(tmp_path)
    for name, text in (("shop", SHOP), ("strict", STRICT), ("open", OPEN), ("broken", "version: 1\nrules: 5\n")):
        Path(f"{name}.yaml").write_text(text)
    return given


@pytest.fixture(params=["file", "sink"])
def history(recorded: SinkSettings, request: pytest.FixtureRequest) -> Iterator[SinkSettings]:
    """The same, on the file and through a running sink."""
    if request.param == "file":
        yield recorded
        return
    with SinkProcess(recorded):
        yield recorded


def document(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["audit", *arguments, "-o", "json"]) == status
    out: dict[str, Any] = json.loads(capsys.readouterr().out)
    return out


def test_the_answer(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "strict.yaml")
    assert (found["flows"], found["unchanged"]["flows"], found["newly_allowed"]) == (26, 25, [])
    (entry,) = found["newly_denied"]
    assert (entry["src_identity"], entry["dst_identity"], entry["rule_after"]) == ("web", "db", "default")
    found = document(capsys, "open.yaml", "--identities", "now", "--node", "n1")
    assert [(e["dport"], e["packets"], e["lower_bound"]) for e in found["newly_allowed"]] == [
        (port, port - 7999, True) for port in reversed(PORTS)
    ]
    found = document(capsys, "strict.yaml", "--against", "running")
    assert [entry["rule_before"] for entry in found["newly_denied"]] == ["web-to-db"]
    assert document(capsys, "shop.yaml", "--against", "shop.yaml")["unchanged"]["flows"] == 26
    assert document(capsys, "shop.yaml", "--until", "2026-01-01")["flows"] == 0


def test_exit_statuses(history: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "strict.yaml", "--fail-on", "new-allow,uncertain")["newly_denied"]
    document(capsys, "strict.yaml", "--fail-on", "new-allow", "--fail-on", "new-deny", status=1)
    assert main(["audit", "open.yaml", "--fail-on", "new-allow"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: the audit has entries: 25 newly allowed", "hint: they are what --fail-on forbids",
    ]  # fmt: skip
    assert main(["audit", "shop.yaml", "--node", "n9"]) == 2
    assert capsys.readouterr().err == "error: no node is called 'n9'\nhint: recorded are: n1\n"
    assert main(["audit", "broken.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: broken.yaml:2:8: `rules`: expected a list")


def test_the_table(recorded: SinkSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    assert main(["audit", "open.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "26 flows, 326 packets, 1.9 KiB: 1 unchanged, 0 newly denied, 25 newly allowed, 0 uncertain"
    assert lines[1:3] == ["", "newly allowed:"]
    head = r"from +to +port +rule before +rule after +flows +packets +bytes +first seen +last seen +note"
    assert re.fullmatch(head, lines[3])
    assert lines[4].split()[:8] == ["world", "world", "8024/tcp", "default", "default", "1", "25", "74"]
    assert lines[4].endswith("  at least")
    assert len(lines) == 4 + 20 + 1
    assert lines[-1] == "… and 5 more (-o json)"


def test_from_an_export(recorded: SinkSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--to", "exported"]) == 0
    capsys.readouterr()
    assert document(capsys, "strict.yaml", "--from", "exported") == document(capsys, "strict.yaml")


def test_what_the_sink_refuses(recorded: SinkSettings) -> None:
    wrong = json.dumps({"candidate": {"text": "version: 1\nrules: 5\n", "file": "a.yaml"}})
    cases = [
        ("{", "not an audit: "), ('{"candidate": 5}', "not an audit: "), (wrong, "a.yaml:2:8: "),
        ('{"candidate": {"text": "version: 1"}, "identities": "then"}', "not an audit: "),
        ("x" * (4 * MAX_BYTES + 1), "the question is longer than"),
    ]  # fmt: skip

    def counted(sink: SinkProcess) -> tuple[int, int, int]:
        questions = sink.ask(lambda history: history.status())["questions"]
        return questions["questions"], questions["answered"], questions["refused"]

    with SinkProcess(recorded) as sink:
        before = counted(sink)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(recorded.socket)), base_url="http://sink") as client:
            for body, error in cases:
                answer = client.post("/api/v1/audit", content=body, timeout=60)
                assert (answer.status_code, answer.json()["exit"]) == (400, 2)
                assert answer.json()["error"].startswith(error)
            answer = client.post("/api/v1/audit", content=json.dumps({"candidate": {"text": OPEN}}), timeout=60)
            assert answer.json()["flows"] == 26
        # Six, and the question of the counters, which is answered after it counted.
        assert [now - then for now, then in zip(counted(sink), before, strict=True)] == [6 + 1, 1 + 1, 5]


def test_an_audit_takes_its_time_and_no_more(recorded: SinkSettings) -> None:
    """As SQL: when it is over, the reader is free again."""
    with SinkProcess(replace(recorded, audit_timeout=0.0, readers=1)) as sink:
        question = Question(candidate=Text(OPEN))
        with History.over_socket(recorded.socket) as history:
            for _ in range(3):
                with pytest.raises(BusyError, match="took longer than 0 s"):
                    history.audit(question)
        assert sink.value("SELECT count(*) FROM store.verdicts") == 26
