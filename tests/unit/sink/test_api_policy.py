"""What runs and what its rules did, revisions and what differs between them, drafts."""

from collections.abc import AsyncIterator

import pytest

from schemas.messages import RuleInfo
from schemas.verdict import STRIDE
from sink.history.meanings import VIEWS
from sink.store import Commit, Store, prepare
from tests.support import batches, served
from tests.support.batches import CLOCK, policy_record
from tests.support.served import Asker

OPEN = "version: 1\ndefault: allow\n"
CLOSED = """version: 1
rules:
- name: web
  from: 10.0.0.0/8
  to: 10.1.0.0/16
  ports: 443/tcp
  action: allow
- name: zone
  from: 10.2.0.0/16
  to: 10.1.0.0/16
  ports: 443/tcp
  action: allow
"""
RULES = [RuleInfo(id=64, name="web", action="allow", text="- name: web"),
         RuleInfo(id=65, name="zone", action="allow", text="- name: zone")]  # fmt: skip
GONE = RuleInfo(id=66, name="gone", action="deny", report_only=True, text="- name: gone")
DAY = 86_400_000_000_000


@pytest.fixture
async def asker(memory: Store) -> AsyncIterator[Asker]:
    """Node n1 had OPEN, then CLOSED, unconfirmed; n2 has OPEN."""
    memory.append(
        Commit(
            batches=[prepare(batches.batch(batches.verdict(flow_id=i, rule=rule), (i - 1) * STRIDE))
                     for i, rule in enumerate((64, 64, 65, 66), 1)],
            records=[
                policy_record("start", yaml=OPEN, rules=[RULES[0], GONE], hash="a", who="root"),
                policy_record(revision=2, time=CLOCK + DAY, yaml=CLOSED, rules=RULES, hash="b", state="pending"),
                policy_record("start", node="n2", yaml=OPEN, rules=[], hash="a", time=CLOCK + 2 * DAY),
            ],
        )
    )  # fmt: skip
    async with served.asking(memory) as made:
        yield made


async def test_what_runs_and_what_its_rules_did(asker: Asker) -> None:
    one, other = (await asker.get("policy"))["nodes"]
    running = one["running"]
    assert (running["node"], running["revision"], running["text"], running["state"]) == ("n1", 2, CLOSED, "pending")
    assert one["pending"] == {"kind": "revision", "from_revision": 1, "from_mode": "", "who": "root(0) control.sock",
                              "time": "2026-09-22T14:13:20.000000000Z"}  # fmt: skip
    web, again = one["rules"]
    assert (web["name"], web["flows"], web["packets"], web["shadowed"]) == ("web", 2, 2, "")
    assert web["last_hit"] == "2026-09-21T15:13:20.000000000Z"
    assert web["last_ever"] == web["last_hit"]
    assert (again["flows"], again["last_hit"], again["last_ever"]) == (0, None, None)
    assert "never decides" in again["shadowed"]
    gone, unknown = one["other"]
    assert (gone["name"], gone["flows"], gone["action"], gone["report_only"]) == ("gone", 1, "deny", True)
    assert gone["text"] == "- name: gone"
    assert (unknown["name"], unknown["flows"], unknown["action"]) == ("rule:65", 1, "")  # revision 1 has none
    assert (other["running"]["node"], other["pending"], other["rules"], other["other"]) == ("n2", None, [], [])
    (later,) = (await asker.get("policy", node="n1", since=str(CLOCK + DAY)))["nodes"]
    found = [(rule["flows"], rule["last_hit"], rule["last_ever"]) for rule in later["rules"]]
    assert found == [(0, None, "2026-09-21T15:13:20.000000000Z"), (0, None, None)]
    assert later["other"] == []  # nothing of it in the span
    assert "no node is called 'n3'" in await asker.refused(404, "policy", {"node": "n3"})


async def test_revisions_page_by_page_and_one_with_its_text(asker: Asker) -> None:
    found = await asker.pages("policy/revisions", "revisions", limit=1)
    assert [(r["node"], r["revision"], r["text"]) for r in found] == [("n2", 1, None), ("n1", 2, None), ("n1", 1, None)]
    assert [r["revision"] for r in (await asker.get("policy/revisions", node="n1"))["revisions"]] == [2, 1]
    assert (await asker.get("policy/revisions/1", node="n1"))["text"] == OPEN
    assert "there are several nodes" in await asker.refused(400, "policy/revisions/1")
    assert "has no revision 9" in await asker.refused(404, "policy/revisions/9", {"node": "n1"})
    for number in ("x", "-1", "4294967296", "99999999999999999999"):
        await asker.refused(404, f"policy/revisions/{number}", {"node": "n1"})


async def test_what_a_draft_changes_by_meaning(asker: Asker) -> None:
    found = await asker.post("policy/diff", before={"node": "n1", "revision": 1}, after={"node": "n1"})
    assert found["same"] is False
    assert {row["access"] for row in found["rows"]} == {"lost"}
    same = await asker.post("policy/diff", before={"node": "n2"}, after={"text": f"# as it is\n{OPEN}"})
    assert same == {"same": True, "rows": [], "builtins_on": [], "builtins_off": []}
    for body in (b"{}", b'{"before": {}, "after": {"text": ""}}', b'{"before": {"node": "n9"}, "after": {"text": ""}}',
                 b'{"before": {"text": "", "node": "n1"}, "after": {"text": ""}}',
                 b'{"before": {"text": "nonsense"}, "after": {"text": ""}}'):  # fmt: skip
        status = 404 if b"n9" in body else 400
        await asker.refused(status, "policy/diff", body=body)


async def test_a_draft_is_checked(asker: Asker) -> None:
    found = await asker.post("policy/check", text=CLOSED)
    assert (found["ok"], found["default"], found["rules"], found["identities"]) == (True, "deny", 2, 0)
    (warning,) = found["diagnostics"]
    assert (warning["severity"], warning["kind"], warning["subject"], warning["line"]) == (
        "warning",
        "shadowed",
        "zone",
        8,
    )
    wrong = await asker.post("policy/check", text="version: 1\nrules:\n- nmae: x\n")
    (error,) = wrong["diagnostics"]
    assert (wrong["ok"], error["severity"], error["line"], error["column"]) == (False, "error", 3, 3)
    large = await asker.post("policy/check", text=CLOSED + "# " + "x" * 20_000 + "\n")  # in a process of its own
    assert large["diagnostics"] == found["diagnostics"]


async def test_every_view_has_its_columns_and_meanings(asker: Asker) -> None:
    views = (await asker.get("schema"))["views"]
    assert [view["name"] for view in views] == list(VIEWS)
    for view in views:
        assert view["doc"], view["name"]
        assert view["columns"], view["name"]
