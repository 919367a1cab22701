"""The view Policy in a real Chromium over a real sink: hits, revisions, drafts, their checks and audits."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page

from schemas.messages import RuleInfo
from schemas.times import amount
from tests.support import batches
from tests.support.asking import (
    DRAFT,
    HOSTILE,
    NEW,
    OLD,
    command,
    copied,
    nothing_bit,
    recorded,
    revision,
    saved,
    shell,
    write,
)
from tests.support.pages import Browser, Stage, alive, now, option, picture, rows, shows
from tests.support.until import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with recorded(tmp_path_factory.mktemp("stage")) as made:
        yield made


async def test_what_runs_and_what_was_before(tmp_path: Path) -> None:
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        page = await browser.open("/policy")
        found = await shows(page, "Rules of the running policy", lambda found: len(found) == 4)
        assert [row[:5] for row in found] == [
            ["web-to-db", "allow", "", "5", "20"], [HOSTILE, "allow", "never hit", "0", "0"],
            ["zz-again", "allow", "shadowed", "0", "0"], ["default", "–", "", "3", "12"],
        ]  # fmt: skip
        assert (await facts(page))[:4] == ["n1", "2", "monitor", "deny"]
        enforce = await copied(page, "Copy mode enforce")
        assert enforce == f"{stage.page.program} mode enforce --confirm-within 60s"
        assert not await page.get_by_text("are of now").is_visible()
        await page.locator("tr[data-key='zz-again'] td").nth(2).click()
        shown = page.get_by_role("region", name="Rule zz-again")
        await shown.get_by_text("'web-to-db' (line 7) covers all of it").wait_for()
        revisions = await shows(page, "Revisions", lambda found: len(found) == 2)
        assert [(row[1], row[2], row[3]) for row in revisions] == [("n1", "2", HOSTILE), ("n1", "1", HOSTILE)]
        await page.locator("tr[data-key='n1.r1.2'] td").nth(4).click()
        changed = await shows(page, "What changes by meaning", len)
        assert changed == [["gained", "frontend", "database", "53/udp", "deny: default", f"allow: {HOSTILE}"]]
        await page.get_by_text("The text", exact=True).click()
        text = page.get_by_role("region", name="Revision 2 of n1").locator("pre")
        assert await text.inner_text() == NEW.rstrip("\n") or await text.inner_text() == NEW
        again = await copied(page, "Copy to apply it again")
        assert again.startswith(f"{stage.page.program} policy apply - --confirm-within 60s <<'POLICY'\n")
        assert shell(again, "cat") == NEW
        assert await page.get_by_text("to be run on n1", exact=True).count() == 2
        await page.locator("tr[data-key='n1.r1.1'] td").nth(4).click()
        await page.get_by_text("The first one that is recorded of this node.").wait_for()
        await nothing_bit(page)

        assert await page.get_by_label("Node").count() == 0, "there is one"
        other = RuleInfo(id=64, name="dns-to-all", action="deny", text="name: dns-to-all")
        await stage.record(
            batches.policy_record(
                "start", node=HOSTILE, ring="r2", mode="enforce", yaml=OLD, rules=[other], time=now(400) + batches.CLOCK
            )
        )
        await page.get_by_label("Node").select_option(HOSTILE)
        found = await shows(page, "Rules of the running policy", lambda found: found and found[0][0] == "dns-to-all")
        assert [row[:5] for row in found] == [["dns-to-all", "deny", "never hit", "0", "0"]]
        assert (await facts(page))[:3] == [HOSTILE, "1", "enforce"]
        assert await copied(page, "Copy mode monitor") == f"{stage.page.program} mode monitor"
        await page.get_by_text(f"to be run on {HOSTILE}", exact=True).wait_for()
        revisions = await shows(page, "Revisions", lambda found: len(found) == 1)
        assert revisions[0][1:3] == [HOSTILE, "1"]
        await page.reload()  # it stands in the address
        await alive(page)
        await shows(page, "Rules of the running policy", lambda found: found and found[0][0] == "dns-to-all")
        await page.get_by_label("Node").select_option("n1")
        await shows(page, "Rules of the running policy", lambda found: len(found) == 4)
        await shows(page, "Revisions", lambda found: len(found) == 2)
        await nothing_bit(page)


async def facts(page: Page) -> list[str]:
    """What stands below each label of the running policy."""
    return list(await page.evaluate("[...document.querySelectorAll('.fact')].map((one) => one.children[1].innerText)"))


async def test_what_was_not_hit_and_what_is_of_before(tmp_path: Path) -> None:
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        (whole, late, ends) = (stamped(time.time() - ago) for ago in (400, 200, 30))
        page = await browser.open(f"/policy?since={late}")
        found = await shows(page, "Rules of the running policy", lambda found: len(found) == 4)
        assert [(row[2], row[4], row[6] == "–") for row in found] == [
            ("no event in this time", "0", False), ("never hit", "0", True), ("shadowed", "0", True), ("", "12", False),
        ]  # fmt: skip

        rules = [RuleInfo(id=64, name="later", action="deny", text="name: later")]
        third = batches.policy_record(revision=3, rules=rules, yaml="", hash="f" * 64, time=now(50) + batches.CLOCK)
        await stage.record(third)
        await shows(page, "Rules of the running policy", lambda found: found[0][0] == "later")  # it is stored
        await browser.to(page, f"/policy?since={whole}&until={ends}")
        await page.get_by_text("Rules, revision and mode are of now; what the rules decided is of").wait_for()
        found = await shows(page, "Rules of the running policy", lambda found: len(found) == 3)
        assert [row[:4] for row in found] == [
            ["later", "deny", "never hit", "0"], ["default", "–", "", "3"],
            ["web-to-db", "allow", "of an earlier revision", "5"],
        ]  # fmt: skip
        await page.locator("tr[data-key='web-to-db'] td").nth(2).click()
        await page.get_by_role("region", name="Rule web-to-db").get_by_text("name: web-to-db").wait_for()
        await page.locator("tr[data-key='n1.r1.3'] td").nth(4).click()
        await page.get_by_text("Not compared: the text of revision 3 was too long to be recorded.").wait_for()
        assert await page.get_by_role("button", name="Copy to apply it again").count() == 0


def stamped(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def test_a_change_that_waits_is_confirmed_where_it_was_made(tmp_path: Path) -> None:
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        page = await browser.open("/")
        for kind, word, revision in (("revision", "policy", 3), ("mode", "mode", 3)):
            waits = batches.policy_record(
                kind, revision=revision, yaml=OLD, state="pending", time=now(40 - len(word)) + batches.CLOCK
            )
            await stage.record(waits)
            for path in ("/", "/policy"):
                await browser.to(page, path)
                notice = page.locator(".notice", has_text=f"The {word} of n1, by root(0) control.sock at ")
                await notice.wait_for()
                assert await copied(page, "Copy the command", notice) == f"{stage.page.program} {word} confirm"


async def test_a_draft_is_for_the_node_that_is_chosen(tmp_path: Path) -> None:
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        other = batches.policy_record("start", node="n2", ring="r2", yaml=NEW, time=now(400) + batches.CLOCK)
        await stage.record(other)
        page = await browser.open("/policy?node=n1")
        await write(page, "Draft of a policy", OLD)
        draft = page.get_by_role("region", name="Draft", exact=True)
        await draft.get_by_text("to be run on n1", exact=True).wait_for()
        await page.get_by_text("against what runs on n1, by meaning").wait_for()
        await page.get_by_label("Node").select_option("n2")
        await draft.get_by_text("to be run on n2", exact=True).wait_for()
        await page.get_by_text("against what runs on n2, by meaning").wait_for()


async def test_a_revision_beyond_the_first_page(tmp_path: Path) -> None:
    """It can be chosen after More, and is there under its address."""
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        await stage.record(*(revision(i, NEW, ["web-to-db", HOSTILE, "zz-again"], 400 - i) for i in range(3, 63)))
        page = await browser.open("/policy")
        await shows(page, "Revisions", lambda found: len(found) == 50)
        await page.get_by_role("button", name="More").click()
        await shows(page, "Revisions", lambda found: len(found) == 62)
        await page.locator("tr[data-key='n1.r1.2'] td").nth(4).click()
        found = await shows(page, "What changes by meaning", len)
        assert found == [["gained", "frontend", "database", "53/udp", "deny: default", f"allow: {HOSTILE}"]]
        assert len(await rows(page, "Revisions")) == 62
        again = await browser.open(page.url.removeprefix(stage.page.origin))
        assert await shows(again, "What changes by meaning", len) == found


async def test_a_draft_is_checked_where_it_is_wrong(stage: Stage) -> None:
    """Each text as `ztlens policy check` places it."""
    wrong = OLD.replace("from: frontend", "from: frontent") + "# " + "ü😀" * 10
    other = f"version: 1\nrules:\n  - {{name: a, {HOSTILE}: any}}\n"
    async with Browser(stage.page) as browser:
        page = await browser.open("/policy")
        for text in (wrong, other, "{", "version: 1\nrules: []\n" + "\t"):
            await write(page, "Draft of a policy", text)
            error = json.loads(command(stage, "policy", "check", "-", "-o", "json", given=text))["errors"][0]
            said = page.locator(".diagnostic.error").get_by_text(error["message"], exact=True)
            await said.wait_for()
            place = f"line {error['line']}, column {error['column']}"
            await page.locator(".diagnostic.error").get_by_role("button", name=place, exact=True).click()
            await page.locator(".editor .mark-line.error").wait_for(state="attached")
            number = str(min(error["line"], text.count("\n") + 1))
            active = page.locator(".cm-activeLineGutter").first  # the cursor comes there by way of the page
            await active.filter(has_text=re.compile(f"^{number}$")).wait_for()
            assert not await page.get_by_role("button", name="Copy the command").is_visible()
            await nothing_bit(page)
        await write(page, "Draft of a policy", NEW)
        await page.get_by_text("It can be applied: 1 warning, default deny, 3 rules, 2 identities.").wait_for()
        assert await page.locator(".editor .mark-line.warning").count() == 1
        await page.get_by_text("The draft means the same as what runs.").wait_for()


async def test_a_draft_is_checked_when_the_sink_is_back(tmp_path: Path) -> None:
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        page = await browser.open("/policy")
        await asyncio.to_thread(stage.sink.kill)
        await write(page, "Draft of a policy", NEW)
        await page.get_by_text("The sink does not answer. Start it with").wait_for()
        await asyncio.to_thread(stage.sink.start)
        await page.get_by_text("It can be applied: 1 warning").wait_for()


async def test_a_draft_is_audited(stage: Stage, tmp_path: Path) -> None:
    async with Browser(stage.page) as browser:
        page = await browser.open("/policy?since=1h")
        await write(page, "Draft of a policy", DRAFT)
        await page.get_by_text("It can be applied").wait_for()
        await page.keyboard.press("Control+Enter")
        await page.get_by_text("Audited.").wait_for()
        told = json.loads(command(stage, "audit", "-", "--since", "1h", "-o", "json", given=DRAFT))
        assert [len(told[name]) for name in ("newly_denied", "newly_allowed", "uncertain")] == [1, 1, 0]
        for label, name in (("Newly denied", "newly_denied"), ("Newly allowed", "newly_allowed")):
            shown = [
                [one["src_identity"], one["dst_identity"], f"{one['dport']}/{one['proto']}", one["rule_before"],
                 one["rule_after"], str(one["flows"]), str(one["packets"]), amount(one["bytes"]),
                 one["last_seen"][:23].replace("T", " "), ""]
                for one in told[name]
            ]  # fmt: skip
            assert await rows(page, label) == shown
        figures = await page.evaluate("[...document.querySelectorAll('.figure')].map(f => f.innerText.split('\\n'))")
        assert [(figure[0], figure[1]) for figure in figures] == [
            ("Flows judged", str(told["flows"])), ("Decided the same", str(told["unchanged"]["flows"])),
            ("Newly denied", "5"), ("Newly allowed", "3"), ("Cannot be told", "0"),
        ]  # fmt: skip
        changed = await shows(page, "What changes by meaning", lambda found: len(found) == 2)
        assert sorted(row[0] for row in changed) == ["gained", "lost"]
        await nothing_bit(page)
        await picture(page, "policy-draft")

        applied = await copied(page, "Copy the command")
        assert applied.startswith(f"{stage.page.program} policy apply - --confirm-within 60s <<'POLICY'\n")
        audited = await copied(page, "Copy as command")
        for line in (applied, audited):  # a shell hands on the draft, to the last character
            assert shell(line, "cat") == DRAFT
        assert await saved(page, "Save draft.yaml", tmp_path) == DRAFT
        document = json.loads(await saved(page, "Save as JSON", tmp_path))
        lists = ("newly_denied", "newly_allowed", "uncertain")
        assert {name: document[name] for name in lists} == {name: told[name] for name in lists}


async def test_an_audit_is_drawn(stage: Stage) -> None:
    async with Browser(stage.page) as browser:
        page = await browser.open("/policy?since=1h")
        await write(page, "Draft of a policy", DRAFT)
        await page.get_by_role("button", name="Audit against the time above").click()
        await page.get_by_role("link", name="Draw it on the map").click()
        await page.wait_for_url("**/map?**draft=**")
        await page.get_by_text("− newly denied: frontend → database 5").wait_for()
        lines = await until(lambda: option(page, "Map of 2 nodes", "series.0.links"), "the map's lines")
        assert [line["lineStyle"]["type"] for line in lines] == ["solid", "dashed", [12, 5], "solid"]
        await picture(page, "map-draft")
        await page.get_by_role("link", name="Matrix").click()
        cells = await shows(page, "Cells of the matrix", len)
        assert cells[0][3].endswith("newly denied: 5 flows, newly allowed: 3 flows")
        await alive(page)
        await page.get_by_label("Columns").select_option("true")
        data = await until(lambda: option(page, "Matrix of 1 sources and 2", "series.0.data"), "the heat map")
        assert [one["label"]["formatter"] for one in data] == ["−5", "+3"]
        await picture(page, "matrix-draft")
        await page.get_by_role("link", name="The draft").click()
        await page.get_by_text("Newly allowed: 1").wait_for()
        await page.get_by_text("It can be applied").wait_for()
        await write(page, "Draft of a policy", DRAFT + "# later\n")
        await page.get_by_text("The draft was changed since").wait_for()
        await page.get_by_role("button", name="Discard").click()
        await page.wait_for_url(lambda url: "draft=" not in url)


def rules_of(text: str) -> list[str]:
    """Without the comments, which tell of times."""
    return [line for line in text.split("rules:")[1].splitlines() if not line.strip().startswith("#")]


async def test_a_draft_begins_with_what_runs_or_was_recorded(stage: Stage, tmp_path: Path) -> None:
    async with Browser(stage.page) as browser:
        page = await browser.open("/policy?since=1h")
        await page.get_by_role("button", name="Start from what runs").click()
        await page.get_by_text("The draft means the same as what runs.").wait_for()
        await page.get_by_role("button", name="Suggest from what was recorded").click()
        suggested = json.loads(command(stage, "policy", "suggest", "--since", "1h", "-o", "json"))
        await page.get_by_text("The draft means the same as what runs.").wait_for(state="hidden")
        await page.get_by_text("It can be applied").wait_for()
        text = await saved(page, "Save draft.yaml", tmp_path)
        assert rules_of(text) == rules_of(suggested["policy"])
        page = await browser.open("/policy?draft=gone")
        await page.get_by_text("This draft is no longer kept").wait_for()


async def test_a_large_draft(stage: Stage, tmp_path: Path) -> None:
    """More than a message of the page may hold."""
    large = OLD + "".join(f"# {i:07d} {'ü😀' * 50}\n" for i in range(4000))
    async with Browser(stage.page) as browser:
        page = await browser.open("/policy")
        await write(page, "Draft of a policy", large)
        await page.get_by_text("It can be applied: no warnings, default deny, 1 rules").wait_for()
        assert await saved(page, "Save draft.yaml", tmp_path) == large
