"""`policy check`, `diff` and `explain` over files: what they print, and their exit status."""

import json
from pathlib import Path
from typing import Any

import pytest

from collector.errors import KernelError
from policy.explain import Explanation
from ztlens import probing
from ztlens.commands import policies
from ztlens.main import main

OLD = """version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10]}
  db: {addresses: [10.0.2.0/24]}
rules:
  - {name: a, from: {app: web}, to: db, ports: [5432/tcp], action: allow}
"""
NEW = OLD.replace("5432/tcp", "5432-5433/tcp") + "  - {name: n, from: web, to: 10.0.2.9, action: deny}\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZTLENS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ZTLENS_CONFIG", "empty.toml")
    Path("empty.toml").touch()
    Path("old.yaml").write_text(OLD)
    Path("new.yaml").write_text(NEW)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert main([*arguments, "-o", "json"]) == status
    return json.loads(capsys.readouterr().out)


def test_check_warns(capsys: pytest.CaptureFixture[str]) -> None:
    Path("open.yaml").write_text(OLD + "  - {name: o, to: db, action: allow}\n")
    found = answer(capsys, "policy", "check", "open.yaml")
    assert [{**w, "message": "", "hint": ""} for w in found["warnings"]] == [
        {"kind": "world_open", "subject": "o", "file": "open.yaml", "line": 7, "column": 5, "message": "", "hint": ""}
    ]
    assert (found["rules"], found["room"]["rules"]) == (2, 4096)
    assert answer(capsys, "policy", "check", "--strict", "open.yaml", status=1)["ok"] is True
    assert answer(capsys, "policy", "check", "--strict", "old.yaml")["warnings"] == []
    assert main(["policy", "check", "open.yaml"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("open.yaml:7:5: world_open: ")
    assert out[-2].startswith("open.yaml: 1 warning, default deny, 2 of 4,096 rules, ")


def test_check_refuses_what_the_kernel_has_no_room_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.toml").write_text("[knobs]\nPREFIXES_MAX = 1\n")
    found = answer(capsys, "--config", "small.toml", "policy", "check", "old.yaml", status=1)
    assert (found["ok"], found["errors"][0]["file"]) == (False, "old.yaml")
    assert found["errors"][0]["message"] == "the policy needs 2 prefixes, the kernel table has room for 1"


def test_diff(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "policy", "diff", "old.yaml", "new.yaml", status=1)
    assert (found["a"], found["b"], found["same"]) == ("old.yaml", "new.yaml", False)
    assert found["rows"] == [
        {"access": "gained", "before": "deny", "after": "allow", "from": ["web"], "from_except": [],
         "to": ["db"], "to_except": ["10.0.2.9"], "ports": ["5433/tcp"], "ports_except": [],
         "example": {"src": "10.0.1.10", "dst": "10.0.2.1", "proto": "tcp", "port": 5433, "rule_before": "default",
                     "rule_after": "a"}},
        {"access": "lost", "before": "allow", "after": "deny", "from": ["web"], "from_except": [],
         "to": ["10.0.2.9"], "to_except": [], "ports": ["5432/tcp"], "ports_except": [],
         "example": {"src": "10.0.1.10", "dst": "10.0.2.9", "proto": "tcp", "port": 5432, "rule_before": "a",
                     "rule_after": "n"}},
    ]  # fmt: skip
    found = answer(capsys, "policy", "diff", "old.yaml", "old.yaml")
    assert (found["same"], found["rows"]) == (True, [])
    assert main(["policy", "diff", "old.yaml", "old.yaml"]) == 0
    assert capsys.readouterr().out == "old.yaml and old.yaml mean the same\n"


def test_diff_of_built_in_rules(capsys: pytest.CaptureFixture[str]) -> None:
    Path("off.yaml").write_text(OLD + "builtins: {ndp: false}\n")
    assert main(["policy", "diff", "old.yaml", "off.yaml"]) == 1
    assert capsys.readouterr().out == "builtin:ndp is turned off\n"


HOST = (
    OLD
    + """  - {name: h, from: web, to: host, ports: [22/tcp], action: allow}
  - {name: w, from: web, to: world, ports: [80/tcp], action: allow}
"""
)


def test_diff_of_what_is_said_of_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    """A file does not say where the host is; that does not make a rule about it mean nothing."""
    Path("host.yaml").write_text(HOST)
    rows = answer(capsys, "policy", "diff", "old.yaml", "host.yaml", status=1)["rows"]
    assert [(row["access"], row["from"], row["to"], row["ports"]) for row in rows] == [
        ("gained", ["web"], ["host"], ["22/tcp"]),
        ("gained", ["web"], ["world"], ["80/tcp"]),
    ]
    assert (rows[0]["example"]["dst"], rows[0]["example"]["rule_after"]) == ("198.51.100.2", "h")
    assert rows[1]["example"]["dst"] == "198.51.100.1"
    assert answer(capsys, "policy", "diff", "host.yaml", "host.yaml")["same"] is True
    Path("any.yaml").write_text(HOST.replace("to: world", "to: any"))
    (row,) = answer(capsys, "policy", "diff", "host.yaml", "any.yaml", status=1)["rows"]
    assert (row["to"], row["to_except"]) == (["any"], ["world"]), "db, web and the host itself"


def test_explain_of_a_file_that_speaks_of_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    Path("host.yaml").write_text(HOST)
    question = ("policy", "explain", "--from", "web", "--to", "192.0.2.7", "--port", "22/tcp", "--no-kernel")
    found = answer(capsys, *question, "host.yaml")
    assert (found["decision"], found["rule"]) == ("deny", "default")
    told = "which addresses are the node's own is not known here: as if it had none, `host` matches nothing"
    assert found["notes"] == [told]
    assert answer(capsys, *question, "old.yaml")["notes"] == []


def test_diff_by_rules(capsys: pytest.CaptureFixture[str]) -> None:
    Path("renamed.yaml").write_text(OLD.replace("name: a", "name: b"))
    assert answer(capsys, "policy", "diff", "old.yaml", "renamed.yaml")["same"] is True
    (row,) = answer(capsys, "policy", "diff", "--rules", "old.yaml", "renamed.yaml", status=1)["rows"]
    assert (row["access"], row["example"]["rule_before"], row["example"]["rule_after"]) == ("kept", "a", "b")


QUESTION = ("policy", "explain", "--from", "web", "--to", "10.0.2.9", "--port", "5432/tcp", "new.yaml")


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *QUESTION, "--no-kernel")
    assert [found[key] for key in ("decision", "reason", "rule", "src_identity", "dst_identity")] == [
        "deny", "rule", "n", "web", "db",
    ]  # fmt: skip
    assert [(m["rule"], m["decides"]) for m in found["matched"]] == [("n", True), ("a", False)]
    assert (found["src"], found["dst"], found["proto"], found["port"]) == ("10.0.1.10", "10.0.2.9", "tcp", 5432)
    assert (found["kernel"], found["agrees"], len(found["tuples"])) == (None, None, 1)
    assert main([*QUESTION, "--no-kernel"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "10.0.1.10 (web) → 10.0.2.9 (db) 5432/tcp: DENY",
        "  'n' denies, and deny beats allow",
        "  * deny 'n' (line 7): denies, and deny beats allow",
        "    allow 'a' (line 6): deny beats allow",
    ]


def test_explain_of_several_says_what_they_share(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(
        capsys, "policy", "explain", "--from", "web", "--to", "db", "--port", "5432/tcp", "new.yaml", "--no-kernel"
    )
    assert [(t["dst"], t["decision"]) for t in found["tuples"]] == [("10.0.2.1", "allow"), ("10.0.2.9", "deny")]
    assert (found["decision"], found["rule"], found["reason"], found["src"]) == (None, None, "rule", "10.0.1.10")


def kernel(says: dict[str, Any], loader: str = "auto") -> Any:
    def answers(compiled: object, found: list[Explanation], asked: str) -> list[dict[str, Any]]:
        assert asked == loader
        return [{name: getattr(one, name) for name in (*probing.FIELDS, "report_only")} | says for one in found]

    return answers


def test_explain_compares_with_the_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "kernel_answers", kernel({}))
    found = answer(capsys, *QUESTION, "--kernel")
    assert (found["agrees"], found["kernel"]["rule"]) == (True, "n")
    monkeypatch.setattr(probing, "kernel_answers", kernel({"decision": "allow", "rule": "a"}))
    assert main([*QUESTION, "--kernel"]) == 1
    out, err = capsys.readouterr()
    assert "  kernel: decision allow, reason rule, rule a, " in out
    assert err.startswith("error: ") and err.count("\n") == 2
    assert answer(capsys, *QUESTION, "--kernel", status=1)["agrees"] is False
    monkeypatch.setattr(probing, "kernel_answers", kernel({}, "bcc"))
    assert answer(capsys, *QUESTION, "--kernel", "--loader", "bcc")["agrees"] is True
    monkeypatch.setenv("ZTLENS_LOADER", "bcc")
    assert answer(capsys, *QUESTION, "--kernel")["agrees"] is True


def test_a_kernel_that_cannot_be_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error if it was to be asked, else a word on stderr."""

    def fails(compiled: object, found: object, loader: str) -> None:
        raise KernelError("no headers", "install them")

    monkeypatch.setattr(probing, "kernel_answers", fails)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main([*QUESTION]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("10.0.1.10 (web)")
    assert err == "the kernel program was not asked: no headers\n"
    assert main([*QUESTION, "--kernel"]) == 3
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main([*QUESTION]) == 0
    assert capsys.readouterr().err == "error: no headers\nhint: install them\n"


def test_against_running_a_file_is_read_as_it_would_run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = OLD + "  - {name: h, from: web, to: host, ports: [22/tcp], action: allow}\n"
    Path("host.yaml").write_text(text)
    now = {"known": True, "text": text, "host": ["192.0.2.7"]}
    monkeypatch.setattr(policies, "collector_request", lambda run_dir, op: now)
    assert answer(capsys, "policy", "diff", "running", "host.yaml")["same"] is True
    (row,) = answer(capsys, "policy", "diff", "old.yaml", "running", status=1)["rows"]
    assert (row["from"], row["to"], row["ports"]) == (["web"], ["host"], ["22/tcp"])
    question = ("policy", "explain", "--from", "web", "--to", "host", "--port", "22/tcp", "--no-kernel")
    assert answer(capsys, *question)["rule"] == "h"
    now["text"] = ""
    assert answer(capsys, "policy", "diff", "running", "running", "--rules")["rows"] == []
    assert answer(capsys, *("any" if word == "web" else word for word in question))["reason"] == "no_policy"
    now["known"] = False
    assert main(["policy", "diff", "running", "old.yaml"]) == 3
    assert capsys.readouterr().err.startswith("error: the text of the running policy is not known\n")
