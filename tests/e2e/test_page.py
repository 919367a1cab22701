"""The page over the demo: real traffic in namespaces, a real Chromium; every view, a denial, the past, a fall."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
import yaml
from playwright.async_api import Page

from tests.support.asking import copied, shell, write
from tests.support.demos import Demo
from tests.support.netns import call_in
from tests.support.pages import Browser, Published, option, picture, shows, violations
from tests.support.until import until
from web.span import text as moment
from ztlens.demo.run import POLICY
from ztlens.lookup import collector_request, sink_status
from ztlens.parts import ztlens_command

TEXT = POLICY.read_text(encoding="utf-8")
DECISIONS = {rule["name"]: rule["action"] for rule in yaml.safe_load(TEXT)["rules"]} | {"default": "deny"}
BUILT_IN = {"builtin:ndp": "allow", "builtin:mld": "allow"}
ALLOWED = {
    ("world", "frontend"), ("intruder", "frontend"), ("frontend", "dns"), ("frontend", "api"), ("api", "cache"),
    ("api", "database"), ("cache", "api"),
}  # fmt: skip
DENIED = {("intruder", name) for name in ("frontend", "api", "database", "cache", "dns")} | {("frontend", "database")}
NEW, PORT = ("world", "database"), 9999
"""What nobody in the demo does: the visitor knocks at the database."""
DRAFT = TEXT[: TEXT.index("  - name: cache-metrics")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with Demo(tmp_path_factory.mktemp("page") / "tmp", "--duration", "1h", "-o", "json") as demo:
        demo.until_said("traffic for")
        yield demo
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait() == 0, "the ledger balances, whatever fell"


@pytest.fixture
def link(demo: Demo) -> Published:
    return Published((demo.run_dir / "web.url").read_text(encoding="utf-8"))


def knock(demo: Demo) -> str:
    """A connection that the policy denies; from where."""
    with call_in(demo.network.namespace("visitor"), lambda: socket.socket(socket.AF_INET)) as one:
        one.settimeout(1.0)
        one.connect_ex(("10.77.3.10", PORT))
        return "{}:{}".format(*one.getsockname())


def pairs(found: list[list[str]]) -> set[tuple[str, str]]:
    """The ends of a table's rows."""
    return {(row[0], row[1]) for row in found}


def has_all(found: list[list[str]]) -> bool:
    return pairs(found) >= ALLOWED | DENIED


async def drawn_at(graph: Page) -> dict[str, tuple[float, float]]:
    """Where each node of the map is."""
    data = await until(lambda: option(graph, "Map of", "series.0.data"), "the map")
    return {one["id"]: (one["x"], one["y"]) for one in data}


async def styles(graph: Page, ends: tuple[str, str]) -> list[str]:
    """Of the lines between two nodes of the map."""
    lines = await option(graph, "Map of", "series.0.links") or []
    return [line["lineStyle"]["type"] for line in lines if (line["source"], line["target"]) == ends]


async def readable(page: Page, name: str, width: int, dark: bool) -> None:
    """By axe no serious violation, nothing wider than the screen; and a picture of it."""
    found = await violations(page)
    assert found == [], name
    assert await page.evaluate("document.documentElement.scrollWidth") == width, name
    await picture(page, f"demo-{name}-{width}{'-dark' if dark else ''}")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
async def test_every_view(demo: Demo, link: Published, width: int, dark: bool) -> None:
    async with Browser(link, dark=dark, width=width) as browser:
        page = await browser.open("/")
        decided = await shows(page, "Rules that decide most", lambda found: len(found) == 8)
        assert [row[:2] for row in decided] == [[row[0], (DECISIONS | BUILT_IN)[row[0]]] for row in decided]
        denied = await shows(page, "Pairs denied most", lambda found: len(found) == 8)
        assert pairs(denied) <= DENIED and {row[3] for row in denied} == {"would drop"}

        def well(found: list[list[str]]) -> bool:
            """The demo's addresses come by and by, each time with a revision."""
            running = str(collector_request(demo.run_dir, "status")["revision"])
            return [(*row[:4], row[9]) for row in found] == [("demo", "live", "monitor", running, "balanced")]

        await shows(page, "Health and loss of each node", well)
        await readable(page, "overview", width, dark)

        await browser.to(page, "/map")
        edges = await shows(page, "Edges of the map", has_all)
        assert {(row[0], row[1]) for row in edges if row[3] != "0"} - {NEW} == DENIED
        assert {row[4] for row in edges} == {"0"}, "nothing is dropped in mode monitor"
        await page.get_by_role("row", name=re.compile("^frontend database ")).click()
        newest = await shows(page, "Newest flows of this edge", len)
        assert {(row[1], row[5]) for row in newest} == {("deny, passed", "no-shortcut-to-database")}
        await readable(page, "map", width, dark)

        await browser.to(page, "/matrix?ports=true")
        wanted = {("frontend", "database", "5432/tcp"), ("intruder", "cache", "6379/tcp"), ("cache", "api", "8125/udp")}
        await shows(page, "Cells of the matrix", lambda found: {tuple(row[:3]) for row in found} >= wanted)
        await readable(page, "matrix", width, dark)

        await browser.to(page, "/flows?rule=no-shortcut-to-database&since=20s")
        flows = await shows(page, "Flows", len)
        assert {(row[1], row[2], row[4], row[6], row[7]) for row in flows} == {
            ("would drop", "frontend", "database", "tcp", "no-shortcut-to-database")
        }
        await page.locator("tr[data-key]").first.click()
        await page.get_by_role("region", name="frontend → database").get_by_text("ports: [any]").first.wait_for()
        await readable(page, "flows", width, dark)

        await browser.to(page, "/policy?since=1h")
        ruled = await shows(
            page, "Rules of the running policy", lambda found: found and all(row[3] != "0" for row in found)
        )
        assert {row[0] for row in ruled} == DECISIONS.keys() | BUILT_IN.keys()
        await page.locator("[role=region][aria-label=Revisions] tr[data-key]").last.click()
        await page.get_by_text("The first one that is recorded of this node.").wait_for()
        await write(page, "Draft of a policy", DRAFT)
        await page.get_by_text("It can be applied").wait_for()
        await page.keyboard.press("Control+Enter")
        lost = await shows(page, "Newly denied", len)
        assert [row[:5] for row in lost] == [["cache", "api", "8125/udp", "cache-metrics", "default"]]
        await readable(page, "policy", width, dark)
        await page.get_by_role("link", name="Draw it on the map").click()
        await page.get_by_text("− newly denied: cache → api").wait_for()

        asked = "SELECT rule, decision, count(*) AS flows FROM flows GROUP BY ALL ORDER BY ALL"
        await browser.to(page, "/sql?" + urlencode({"sql": asked}))
        answer = await shows(page, "Answer", len)
        assert {row[0]: row[1] for row in answer} == DECISIONS | BUILT_IN
        await page.get_by_label("Show as").select_option("bar")
        assert await until(lambda: option(page, "flows along", "series.0.type"), "the chart") == "bar"
        await readable(page, "sql", width, dark)


async def test_a_denial_comes_and_is_found_again(demo: Demo, link: Published) -> None:
    async with Browser(link) as browser:
        table, graph = await browser.open(f"/flows?port={PORT}/tcp"), await browser.open("/map")
        await shows(graph, "Edges of the map", has_all)
        await table.get_by_text("No conversation in this time").wait_for()
        places = await drawn_at(graph)
        before = datetime.now(UTC)
        source = knock(demo)
        after = datetime.now(UTC) + timedelta(seconds=2)
        (row,) = await shows(table, "Flows", len)
        assert row[1:8] == ["would drop", "world", source, "database", f"10.77.3.10:{PORT}", "tcp", "default"]
        edges = await shows(graph, "Edges of the map", lambda found: NEW in pairs(found))
        assert next(row for row in edges if (row[0], row[1]) == NEW)[2:5] == ["0", "1", "0"]
        assert await until(lambda: styles(graph, NEW), "the new line of the map") == ["dashed"]
        assert (await drawn_at(graph)).items() >= places.items(), "what is drawn stays where it is"

        await table.bring_to_front()
        await table.locator("tr[data-key]").first.click()
        detail = table.get_by_role("region", name="world → database")
        await detail.get_by_text("No rule matched").wait_for()
        line = await copied(table, "Copy as observe", detail)
        told = [json.loads(one) for one in shell(line, f'{" ".join(ztlens_command())} "$@" -o json').splitlines()]
        assert {(one["src"], one["sport"], one["dst"], one["dport"]) for one in told} == {
            ("10.77.6.10", int(source.rpartition(":")[2]), "10.77.3.10", PORT)
        }

        begin = before - timedelta(seconds=60)
        for since, until_, there in ((begin, before, DENIED), (before, after, {NEW})):
            asked = urlencode({"since": moment(since), "until": moment(until_)})
            await browser.to(graph, f"/map?{asked}")
            found = await shows(graph, "Edges of the map", lambda found, there=there: there & pairs(found))
            assert (NEW in pairs(found)) is (there == {NEW})
            assert await graph.get_by_role("status").first.inner_text() == "past"


KEPT_SOCKETS = """
const Socket = window.WebSocket;
window.sockets = [];
window.WebSocket = class extends Socket { constructor(...how) { super(...how); window.sockets.push(this); } };
"""
STATES = """() => {
    const state = document.querySelector(".state");
    window.states = [];
    new MutationObserver(() => window.states.push(state.innerText))
        .observe(state, { childList: true, characterData: true, subtree: true });
}"""


async def test_it_goes_on_after_a_fall(demo: Demo, link: Published) -> None:
    """Of the sink; and of the browser's connection."""
    async with Browser(link) as browser:
        assert browser.context is not None
        await browser.context.add_init_script(KEPT_SOCKETS)
        page = await browser.open("/flows")
        before = await shows(page, "Flows", len)
        await page.evaluate(STATES)
        os.kill(sink_status(demo.run_dir)["pid"], signal.SIGKILL)
        await until(lambda: page.evaluate("states.includes('sink away')"), "the page to say it")
        await until(lambda: page.evaluate("states.at(-1) === 'live'"), "the page to go on")
        await page.get_by_role("alert").wait_for(state="hidden")
        later = await shows(page, "Flows", lambda found: found and found[0][0] > before[0][0])

        count = await page.evaluate("sockets.forEach((one) => one.close()) ?? sockets.length")
        again = f"sockets.length > {count} && sockets.at(-1).readyState === 1"
        await until(lambda: page.evaluate(again), "another connection")
        await shows(page, "Flows", lambda found: found and found[0][0] > later[0][0])
