"""The demo as people run it: one command, real traffic, a summary that adds up, nothing left behind."""

import json
import signal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from tests.support.demos import Demo
from tests.support.netns import wait_for
from tests.support.until import PATIENCE
from ztlens.demo import leftovers
from ztlens.demo.run import POLICY

KEYS = ["verdicts", "flows", "packets", "bytes", "allowed", "denied", "families", "top_denied", "by_rule", "balanced",
        "ledger"]  # fmt: skip
RULES = {rule["name"] for rule in yaml.safe_load(POLICY.read_text())["rules"]}


def nothing_remains(demo: Demo) -> None:
    wait_for(lambda: not demo.remains() or None, f"everything of the demo to go: {demo.remains()}", 10)


def test_json_is_one_document_that_adds_up(tmp_path: Path, loader: str) -> None:
    with Demo(tmp_path / "tmp", "--duration", "8s", "-o", "json", "--loader", loader) as demo:
        assert demo.wait() == 0
    document: dict[str, Any] = json.loads(demo.stdout.read_text())
    assert list(document) == KEYS
    assert document["balanced"] is True
    assert document["verdicts"] > document["flows"] > 0
    assert document["allowed"] > 0
    assert document["denied"] > 0
    assert document["allowed"] + document["denied"] == document["flows"] == sum(document["families"].values())
    assert document["families"]["ipv4"] > 0
    assert document["families"]["ipv6"] > 0
    by_rule = document["by_rule"]
    assert {row["rule"] for row in by_rule} == RULES | {"default", "builtin:ndp", "builtin:mld"}
    assert len(by_rule) == len(RULES) + 3
    for key in ("flows", "packets", "bytes"):
        assert sum(row[key] for row in by_rule) == document[key]
    denied = {row["rule"] for row in by_rule if row["decision"] == "deny"}
    assert denied == {"default", "no-shortcut-to-database"}
    top = document["top_denied"]
    assert {row["src_identity"] for row in top} <= {"intruder", "frontend"}
    assert [row["flows"] for row in top] == sorted((row["flows"] for row in top), reverse=True)
    assert all(row["dropped"] == 0 for row in top)  # monitor mode
    nothing_remains(demo)


def test_enforced_denials_reach_nobody_and_a_given_state_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    arguments = ("--duration", "1s", "--enforce", "-o", "json", "--state", str(state))
    with Demo(tmp_path / "tmp", *arguments) as demo:
        assert demo.wait() == 0
    document = json.loads(demo.stdout.read_text())
    assert document["balanced"] is True
    database = duckdb.connect(state / "ztlens.duckdb", read_only=True)
    asked = "SELECT outcome, sum(packets_reply)::BIGINT, count(*)::BIGINT FROM flows WHERE decision = 'deny' GROUP BY 1"
    assert database.sql(asked).fetchall() == [("dropped", 0, document["denied"])]
    asked = "SELECT DISTINCT outcome FROM flows WHERE decision = 'allow'"
    assert database.sql(asked).fetchall() == [("passed",)]
    database.close()
    nothing_remains(demo)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with Demo(tmp_path / "tmp", "--duration", "1h") as demo:
        demo.until_said("traffic for 3600 s")
        demo.process.send_signal(number)
        assert demo.wait() == 0
    text = demo.stdout.read_text()
    assert "By rule" in text
    assert "every packet and event accounted for" in text
    nothing_remains(demo)


def test_what_a_killed_run_leaves_is_taken_away_by_the_next(tmp_path: Path) -> None:
    with Demo(tmp_path / "tmp", "--duration", "1h", "-o", "json") as demo:
        demo.until_said("traffic for 3600 s")
        demo.process.kill()
        demo.process.wait(PATIENCE)
    assert any(demo.remains())
    wait_for(lambda: not demo.processes() or None, "its processes to end")
    leftovers.reclaim()  # another demo that starts meanwhile may have done it
    nothing_remains(demo)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--duration", "soon"), 2, "'soon' is not a duration"),
        (("-o", "xml"), 2, "'xml' is not an output of `demo`"),
        (("--nats", "nats://127.0.0.1:4222"), 2, "--nats is not for the demo"),
        (("--state", "/proc"), 2, "/proc is not an empty directory"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    with Demo(tmp_path / "tmp", *arguments) as demo:
        assert demo.wait() == status
    lines = demo.stderr.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {message}")
    assert lines[1].startswith("hint: ")
    assert demo.stdout.read_text() == ""
    nothing_remains(demo)
