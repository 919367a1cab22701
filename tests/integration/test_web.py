"""The page in a real Chromium over a real sink: what each view says, live and of any time, and what is refused."""

import asyncio
import http.client
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from schemas.codes import Decision, EventKind, Outcome, Reason, RuleId
from schemas.messages import IdentityInfo, RuleInfo
from tests.support import batches
from tests.support.asking import copied
from tests.support.nats import NatsServer
from tests.support.pages import (
    Browser,
    PageProcess,
    Stage,
    addresses,
    alive,
    now,
    option,
    picture,
    rows,
    shows,
)
from tests.support.until import PATIENCE, until
from web.span import text as moment

RULE = RuleInfo(
    id=64, name="web-to-db", action="allow",
    text="- name: web-to-db\n  from: frontend\n  to: database\n  ports: [5432/tcp]\n  action: allow",
)  # fmt: skip
POLICY = "version: 1\ndefault: deny\n# the policy of then\n"
HOSTILE = '<img src=x onerror="window.bitten=1">'
WRITTEN = quote(HOSTILE, safe="")
IN_SQL = '"' + HOSTILE.replace('"', '""') + '"'
TOLD = (
    "/", f"/?since={WRITTEN}", "/map", f"/map?group=label&label={WRITTEN}", "/matrix?ports=true", "/flows?flow=1-1",
    f"/flows?identity={WRITTEN}&{WRITTEN}=1", f"/flows?where={WRITTEN}",
    f"/policy?chosen=:x\"'{WRITTEN}&revision=n1.r1.1", f"/policy?node={WRITTEN}&draft={WRITTEN}",
    f"/sql?sql=FROM+{WRITTEN}", "/sql?show=bar&sql=" + quote(f"SELECT src_identity, 1 AS {IN_SQL} FROM flows", safe=""),
)  # fmt: skip
NOT_THE_API = (
    "/api/v2/flows", "/api/v1/../v1/flows", "/api/v1/%2e%2e/x", "/api/v1/", "/api/", "/api/v1/flows/..%2f..",
    "/api/v1//flows", "/api/v1/.hidden", "/api/v1/fl%6fws", "/api/v1/flows/\\..\\x",
)  # fmt: skip


def status_of(origin: str, path: str, headers: dict[str, str]) -> int:
    """Of a GET of just this path: httpx would tidy it."""
    connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def flow(number: int, *, ago: float, denied: bool = False, dropped: bool = False, **fields: object) -> np.ndarray:
    """A conversation that ended `ago` seconds before now: its `new` and its `end`."""
    src, dst = addresses("10.0.1.10"), addresses("10.0.2.5")
    same: dict[str, object] = {"flow_id": number, "src": src, "dst": dst, "dport": 5432, "sport": 40000 + number}
    if denied:
        same |= {
            "decision": Decision.DENY, "reason": Reason.DEFAULT, "rule": RuleId.DEFAULT, "dport": 22,
            "outcome": Outcome.DROPPED if dropped else Outcome.PASSED,
        }  # fmt: skip
    same |= fields
    end = {"event": EventKind.END, "packets_original": 4, "bytes_original": 400, "packets_reply": 2, "bytes_reply": 600}
    if denied:
        end |= {"packets_reply": 0, "bytes_reply": 0}
    return np.concatenate(
        [batches.verdict(time=now(ago + 1), **same), batches.verdict(time=now(ago), **same, **end)]  # type: ignore[arg-type]
    )


def policy(**fields: Any) -> Any:
    given = {
        "yaml": POLICY,
        "rules": [RULE],
        "identities": batches.IDENTITIES,
        "time": now(600) + batches.CLOCK,
    } | fields
    return batches.policy_record("start", **given)


async def traffic(stage: Stage) -> None:
    """Five allowed conversations, three that would be dropped and two that were, within the last minutes."""
    await stage.record(policy())
    await stage.record(batches.loss_record(20, packets=48, time=now(0) + batches.CLOCK))
    await stage.publish(
        *(flow(i, ago=300 - 10 * i) for i in range(1, 6)),
        *(flow(i, ago=120 - i, denied=True) for i in range(6, 9)),
        *(flow(i, ago=100 - i, denied=True, dropped=True, dport=23) for i in range(9, 11)),
    )


@pytest.fixture
async def stage(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(tmp_path, nats_server.url) as made:
        yield made


async def test_overview(stage: Stage) -> None:
    ended = datetime.now(UTC) - timedelta(seconds=150)  # between what was allowed and what was denied
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/")
        denied = await shows(page, "Pairs denied most", len)
        assert [row[:5] for row in denied] == [
            ["frontend", "database", "22/tcp", "would drop", "3"], ["frontend", "database", "23/tcp", "dropped", "2"],
        ]  # fmt: skip
        decided = await shows(page, "Rules that decide most", len)
        assert decided == [
            ["web-to-db", "allow", "5", "30", "4.9 KiB"], ["default", "deny", "5", "20", "2.0 KiB"],
        ]  # fmt: skip
        node = (await shows(page, "Health and loss of each node", len))[0]
        assert (node[0], *node[2:4], *node[5:10]) == ("n1", "monitor", "1", "0", "0", "0", "0", "balanced")
        figures = await page.evaluate("[...document.querySelectorAll('.figure')].map(f => f.innerText.split('\\n'))")
        known = dict(figures)
        assert (known["Flows allowed"], known["Would be denied"], known["Denied"]) == ("5", "3", "2")
        assert known["Ledger"] == "balanced"
        await picture(page, "overview")
        await browser.to(page, f"/?since=1h&until={quote(ended.isoformat())}")
        await page.get_by_text("all else is of the range above").wait_for()
        await shows(page, "Rules that decide most", lambda found: found == [decided[0]])
        assert await rows(page, "Pairs denied most") == []
        assert await page.get_by_role("status").inner_text() == "past"
        await page.go_back()
        await (page.get_by_role("link", name="frontend").first).click()
        await page.wait_for_url("**/flows?**")
        assert len(await shows(page, "Flows", len)) == 3


async def test_flows_filter_sort_and_detail(stage: Stage) -> None:
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/flows")
        assert len(await shows(page, "Flows", lambda found: len(found) == 10)) == 10
        await page.keyboard.press("/")
        await page.keyboard.type("deny port=23/tcp")
        await page.keyboard.press("Enter")
        found = await shows(page, "Flows", lambda found: len(found) == 2)
        assert [row[1:9] for row in found] == [
            ["dropped", "frontend", f"10.0.1.10:{40000 + i}", "database", "10.0.2.5:23", "tcp", "default", "4"]
            for i in (10, 9)
        ]  # fmt: skip
        assert page.url.endswith("/flows?decision=deny&port=23%2Ftcp")
        await page.get_by_role("button", name="Take out port=23/tcp").click()
        await shows(page, "Flows", lambda found: len(found) == 5)
        await page.get_by_label("Decision").select_option("allow")
        await shows(page, "Flows", lambda found: len(found) == 5 and found[0][1] == "allow")
        await page.get_by_role("button", name="Address").first.click()
        ascending = await shows(page, "Flows", lambda found: found[0][3] == "10.0.1.10:40005")
        await page.get_by_role("button", name="Address").first.click()
        assert await shows(page, "Flows", lambda found: found == ascending[::-1])
        await page.locator("tr[data-key='1-3']").focus()
        await page.keyboard.press("Enter")
        detail = page.get_by_role("region", name="frontend → database")
        await detail.get_by_text("the policy of then").wait_for(state="attached")
        said = await detail.inner_text()
        for part in (
            "10.0.1.10:40003 → 10.0.2.5:5432 tcp",
            "allow, passed",
            "rule: web-to-db",
            "ports: [5432/tcp]",
            "4, 2",
            "400, 600",
        ):
            assert part in said, part
        data = await until(lambda: option(page, "Packets and bytes", "series.0.data"), "its chart")
        assert [point[1] for point in data] == [1, 6]
        await picture(page, "flows")
        seen = await detail.locator(".fact").filter(has_text="seen (UTC)").all_inner_texts()
        first, last = (datetime.fromisoformat(f"{told.splitlines()[1][:19]}Z") for told in seen)
        its = f"--since {moment(first)} --until {moment(last + timedelta(seconds=1))}"
        for label, wanted in (
            (
                "Copy as observe",
                f"{stage.page.program} observe --from-ip 10.0.1.10 --to-ip 10.0.2.5 --port 5432/tcp " + its,
            ),
            ("Copy as SQL", "SELECT * FROM verdicts WHERE ring = 'r1' AND flow_id = 3 ORDER BY position"),
            (
                "Copy as a rule",
                "- {name: frontend-to-database-5432-tcp, from: frontend, to: database, ports: [5432/tcp],"
                " action: allow}",
            ),
        ):
            assert await copied(page, label, detail) == wanted
        await page.reload()  # it all stands in the address
        await page.get_by_role("region", name="frontend → database").wait_for()
        assert await shows(page, "Flows", lambda found: found == ascending[::-1])


async def test_pages_of_flows(stage: Stage) -> None:
    await stage.record(policy())
    await stage.publish(*(flow(i, ago=400 - i) for i in range(1, 251)))
    async with Browser(stage.page) as browser:
        page = await browser.open("/flows?since=1h")
        for count in (100, 200):
            await shows(page, "Flows", lambda found, count=count: len(found) == count)
            await page.get_by_role("button", name="More").click()
        found = await shows(page, "Flows", lambda found: len(found) == 250)
        assert [row[3] for row in found] == [f"10.0.1.10:{40000 + i}" for i in range(250, 0, -1)]
        assert not await page.get_by_role("button", name="More").is_visible()


async def test_map(stage: Stage) -> None:
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/map")
        edges = await shows(page, "Edges of the map", len)
        assert edges == [["frontend", "database", "5", "3", "2", "50", "6.8 KiB"]]
        lines = await until(lambda: option(page, "Map of 2 nodes and 1 edges", "series.0.links"), "the map's lines")
        assert [(line["source"], line["target"], line["lineStyle"]["type"]) for line in lines] == [
            ("frontend", "database", "solid"), ("frontend", "database", "dashed"), ("frontend", "database", "dotted"),
        ]  # fmt: skip
        assert len({line["lineStyle"]["color"] for line in lines}) == 3
        await picture(page, "map")
        x, y = await page.evaluate(PLACE_OF_A_NODE, "database")
        await page.mouse.click(x, y)
        await page.wait_for_url("**/flows?identity=database")
        await page.go_back()
        await alive(page)
        await page.locator("tr[data-key]").first.click()
        newest = await shows(page, "Newest flows of this edge", len)
        assert len(newest) == 10 and newest[0][1] == "deny, dropped"
        await page.get_by_role("link", name="All its flows").click()
        await page.wait_for_url("**/flows?**")
        assert "from_identity=frontend&to_identity=database" in page.url
        await shows(page, "Flows", lambda found: len(found) == 10)
        page = await browser.open("/map?group=address")
        assert (await shows(page, "Edges of the map", len))[0][:2] == ["10.0.1.10", "10.0.2.5"]
        page = await browser.open("/map?group=network")
        assert (await shows(page, "Edges of the map", len))[0][:2] == ["10.0.1.0/24", "10.0.2.0/24"]
        await page.get_by_label("IPv4 prefix").fill("/22")
        await page.get_by_label("IPv4 prefix").press("Enter")
        await page.wait_for_url("**/map?group=network&prefix_4=22")
        await shows(page, "Edges of the map", lambda found: found[0][:2] == ["10.0.0.0/22", "10.0.0.0/22"])
        page = await browser.open("/map?group=network&prefix_4=33")
        await page.get_by_text("prefix_4").wait_for()
        page = await browser.open("/map?group=label&label=app")
        assert (await shows(page, "Edges of the map", len))[0][:2] == ["app=frontend", "app=db"]
        page = await browser.open("/map?group=label&label=tier")
        assert (await shows(page, "Edges of the map", len))[0][:2] == ["(none)", "(none)"]
        await page.locator("tr[data-key]").first.click()
        await page.get_by_role("link", name="All its flows").click()
        await page.wait_for_url("**/flows?from_label=%21tier&to_label=%21tier")
        await shows(page, "Flows", lambda found: len(found) == 10)


async def test_a_map_of_500_nodes_and_5000_edges(stage: Stage) -> None:
    """All are drawn; what is clicked unfolds; pointer and wheel still do what they do."""
    edges = [(source, (source + 1 + 13 * i) % 500) for source in range(500) for i in range(10)]
    verdicts = np.concatenate([
        flow(i, ago=200, src=addresses(f"10.1.{source // 250}.{source % 250}"),
             dst=addresses(f"10.1.{destination // 250}.{destination % 250}"), src_identity=0, dst_identity=0)
        for i, (source, destination) in enumerate(edges, 1)
    ])  # fmt: skip
    for i in range(0, len(verdicts), 4000):
        await stage.publish(verdicts[i : i + 4000])
    async with Browser(stage.page) as browser:
        page = await browser.open("/map?group=address")
        links = await until(lambda: option(page, "Map of 500 nodes and 5,000 edges", "series.0.links"), "the map")
        assert len(links) == 5000
        await page.get_by_text("500 nodes, 5,000 edges", exact=True).wait_for()
        assert len(await rows(page, "Edges of the map")) == 200
        x, y = await page.evaluate(MIDDLE_OF_AN_EDGE)
        await page.mouse.click(x, y)
        newest = await shows(page, "Newest flows of this edge", lambda found: len(found) == 1)
        source, _, destination = parse_qs(urlsplit(page.url).query)["chosen"][0].partition("\n")
        assert [end.split(":")[0] for end in newest[0][2:4]] == [source, destination]
        await picture(page, "map-large")
        await page.evaluate(MIDDLE_OF_AN_EDGE)  # back there
        await page.mouse.move(x, y)
        await page.mouse.wheel(0, -600)
        await until(lambda: page.evaluate(f"async () => {ZOOM} > 1"), "the map to come nearer")

        async def above() -> bool:
            lines = await option(page, "Map of 500 nodes and 5,000 edges", "series.0.links")
            return (lines[-1]["key"], lines[-1]["lineStyle"]["width"]) == (f"{source}\n{destination}", 4)

        await until(above, "the chosen line above all others")


# Of the longest one: no node is there, and whatever line the pointer finds there is one.
MIDDLE_OF_AN_EDGE = """async () => {
    const { echarts } = await import("nicegui-echart");
    const element = document.querySelector(".chart[aria-label^='Map of']");
    element.scrollIntoView({block: "center"});
    const chart = echarts.getInstanceByDom(element);
    const edges = chart.getModel().getSeriesByIndex(0).getEdgeData();
    const lines = Array.from({length: edges.count()}, (_, i) => edges.getItemLayout(i));
    const long = ([from, to]) => Math.hypot(to[0] - from[0], to[1] - from[1]);
    const [from, to] = lines.reduce((one, other) => long(one) > long(other) ? one : other);
    const at = chart.convertToPixel({seriesIndex: 0}, [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2]);
    const box = element.getBoundingClientRect();
    return [box.x + at[0], box.y + at[1]];
}"""
PLACE_OF_A_NODE = """async name => {
    const { echarts } = await import("nicegui-echart");
    const element = document.querySelector(".chart[aria-label^='Map of']");
    element.scrollIntoView({block: "center"});
    const chart = echarts.getInstanceByDom(element);
    const nodes = chart.getModel().getSeriesByIndex(0).getData();
    const at = chart.convertToPixel({seriesIndex: 0}, nodes.getItemLayout(nodes.indexOfName(name)));
    const box = element.getBoundingClientRect();
    return [box.x + at[0], box.y + at[1]];
}"""
ZOOM = """(await import("nicegui-echart")).echarts.getInstanceByDom(
    document.querySelector(".chart[aria-label^='Map of']")).getOption().series[0].zoom"""


async def test_matrix(stage: Stage) -> None:
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/matrix")
        cells = await shows(page, "Cells of the matrix", len)
        said = "allowed: 5 flows, would deny: 3 flows, denied: 2 flows"
        assert cells == [["frontend", "database", "any", said, "10 flows"]]
        await page.get_by_label("Columns").select_option("true")
        cells = await shows(page, "Cells of the matrix", lambda found: len(found) == 3)
        assert [row[2:4] for row in cells] == [
            ["5432/tcp", "allowed: 5 flows"], ["22/tcp", "would deny: 3 flows"], ["23/tcp", "denied: 2 flows"],
        ]  # fmt: skip
        data = await until(lambda: option(page, "Matrix of 1 sources and 3", "series.0.data"), "the heat map")
        assert [cell["value"][2] for cell in data] == [5, 3, 2]
        await picture(page, "matrix")
        assert [cell["label"]["formatter"] for cell in data] == ["", "!", "×"], "told without colours"
        await page.get_by_role("region", name="Cells of the matrix").locator("tr[data-key]").nth(1).click()
        await page.wait_for_url("**/flows?from_identity=frontend&to_identity=database&port=22%2Ftcp")
        await shows(page, "Flows", lambda found: len(found) == 3)


async def test_time_travel(stage: Stage) -> None:
    """A range that was drawn, one that was typed, one that stands still while traffic goes on, and back."""
    denials = datetime.now(UTC) - timedelta(seconds=150)
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/flows")
        await shows(page, "Flows", lambda found: len(found) == 10)
        await page.get_by_role("button", name="Pause").click()
        await page.get_by_role("button", name="Live").wait_for()
        await page.wait_for_url(re.compile("since=20.*until=20"))
        await shows(page, "Flows", lambda found: len(found) == 10)
        await stage.publish(flow(11, ago=-3, denied=True))  # its first verdict, too, is after the pause
        await page.get_by_label("From").fill(denials.isoformat())
        await page.get_by_label("From").press("Enter")
        found = await shows(page, "Flows", lambda found: len(found) == 5)
        assert {row[1] for row in found} == {"dropped", "would drop"}
        await page.get_by_role("button", name="Live").click()
        await shows(page, "Flows", lambda found: len(found) == 11)
        await page.reload()  # the histogram is of now as well, not of what was typed
        await shows(page, "Flows", lambda found: len(found) == 11)
        await until(lambda: option(page, "Flows over time: ", "xAxis.0.data.0"), "the histogram's times")
        chart = page.locator(".timeline canvas").first
        box = await chart.bounding_box()
        assert box is not None
        for x, act in ((0.70, page.mouse.down), (0.97, page.mouse.up)):
            await page.mouse.move(box["x"] + x * box["width"], box["y"] + 20, steps=5)
            await act()
        await page.wait_for_url("**until=**")
        found = await shows(page, "Flows", lambda found: len(found) < 11)
        assert found


async def test_recovers_when_the_sink_was_away(stage: Stage) -> None:
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/flows")
        await shows(page, "Flows", lambda found: len(found) == 10)
        await asyncio.to_thread(stage.sink.kill)
        await page.get_by_role("alert").get_by_text("The sink does not answer").wait_for()
        await page.get_by_role("status").get_by_text("sink away", exact=True).wait_for()
        assert len(await rows(page, "Flows")) == 10
        other = await browser.open("/map")
        await other.get_by_role("alert").get_by_text("The sink does not answer").wait_for()
        await asyncio.to_thread(stage.sink.start)
        await page.get_by_role("alert").wait_for(state="hidden")
        await other.get_by_role("alert").wait_for(state="hidden")
        await stage.publish(flow(11, ago=0, denied=True))
        await shows(page, "Flows", lambda found: len(found) == 11)
        await shows(other, "Edges of the map", len)


async def test_recovers_when_the_page_was_away(stage: Stage) -> None:
    """Its process is killed and started again on its port: the token still holds."""
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/flows?decision=deny")
        await shows(page, "Flows", lambda found: len(found) == 5)
        assert stage.page.process is not None
        stage.page.process.kill()
        stage.page.process.wait()
        await page.locator("#popup[aria-hidden=false]").wait_for()
        stage.page.moved_to(stage.page.origin.removeprefix("http://"))
        await stage.page.start()
        await page.locator("#popup[aria-hidden=true]").wait_for(state="attached")
        await shows(page, "Flows", lambda found: len(found) == 5)
        assert page.url.endswith("/flows?decision=deny")
        browser.errors.clear()  # that it was away is said on the console, and should be


async def test_bad_words_in_an_address_are_told(stage: Stage) -> None:
    async with Browser(stage.page) as browser:
        page = await browser.tab()
        for path in (
            "/flows?since=nonsense", "/flows?since=1h&until=2h", "/flows?port=70000", "/map?where=1%2B",
            "/flows?where=" + "x" * 5000,
        ):  # fmt: skip
            await browser.to(page, path)
            await page.get_by_role("alert").locator("strong").wait_for()
            assert await page.get_by_role("alert").inner_text()
            await page.goto(stage.page.origin + "/")
            await page.get_by_text("No verdicts in this time").wait_for()


async def test_nothing_that_is_told_is_markup(stage: Stage) -> None:
    """Names of identities, rules, nodes, labels, a policy's text, words of an address."""
    bad = [
        IdentityInfo(id=16, name=HOSTILE, labels={HOSTILE: HOSTILE}, addresses=["10.0.1.10"]),
        IdentityInfo(id=17, name="{{7*7}}`${1}`</script><script>window.bitten=1</script>", labels={}, addresses=[]),
    ]  # fmt: skip
    rule = RuleInfo(id=64, name=":x\"'" + HOSTILE, action="allow", text=HOSTILE)
    await stage.record(*(policy(identities=bad, rules=[rule], yaml=HOSTILE, who=HOSTILE, node=node, ring=ring)
                         for node, ring in (("n1", "r1"), (HOSTILE, "r2"))))  # fmt: skip
    await stage.publish(*(flow(i, ago=60) for i in (1, 2)), flow(3, ago=50, denied=True))
    async with Browser(stage.page) as browser:
        page = await browser.open("/")
        for path in TOLD:
            await browser.to(page, path)
            await page.get_by_text(HOSTILE).first.wait_for(state="attached")
            for chart in await page.locator(".chart canvas").all():
                await chart.hover(force=True)
            await page.wait_for_timeout(300)
            assert await page.evaluate("window.bitten") is None, path
            assert await page.locator("img").count() == 0, path
            assert await page.locator("script:not([nonce]):not([src])").count() == 0, path


async def test_it_is_painted_before_the_scripts_have_come(stage: Stage) -> None:
    """With the very words that they will draw, once the answers are there in time; and hostile ones are only words."""
    await stage.record(policy(identities=[IdentityInfo(id=16, name=HOSTILE, labels={}, addresses=["10.0.1.10"])]))
    await stage.publish(*(flow(i, ago=60) for i in (1, 2)), flow(3, ago=50, denied=True))
    to = datetime.now(UTC)
    its = f"since={quote(moment(to - timedelta(seconds=90)))}&until={quote(moment(to))}"
    async with Browser(stage.page) as browser:
        assert browser.context is not None
        page, bare = await browser.open("/"), await browser.context.new_page()
        await bare.route("**/*.js", lambda route: route.abort())

        async def same(path: str) -> bool:
            await browser.to(page, path)
            await page.locator("#app tbody tr[data-key]").first.wait_for()
            assert await page.locator("#first").count() == 0
            await bare.goto(stage.page.origin + path, wait_until="domcontentloaded")
            assert await bare.locator("#first script, #first img").count() == 0
            first, drawn = [re.sub(r"\d+s", "", await tab.inner_text(where)).split()  # how long nothing was heard
                            for tab, where in ((bare, "#first"), (page, "#app"))]  # fmt: skip
            return first == drawn

        for view in ("/?", "/flows?", "/flows?sort=bytes&order=asc&decision=deny&", "/map?", "/matrix?"):
            await until(lambda path=view + its: same(path), view)


async def test_an_empty_history_says_what_to_do(stage: Stage) -> None:
    async with Browser(stage.page) as browser:
        for path, said in (
            ("/", "ztlens up -i INTERFACE"), ("/flows", "Choose a longer time"), ("/map", "Choose a longer time"),
            ("/matrix", "Choose a longer time"),
        ):  # fmt: skip
            page = await browser.open(path)
            await page.get_by_text(said).first.wait_for()


async def test_keys(stage: Stage) -> None:
    await traffic(stage)
    async with Browser(stage.page) as browser:
        page = await browser.open("/")
        for key, path in zip("423561", ("/flows", "/map", "/matrix", "/policy", "/sql", "/"), strict=True):
            await page.keyboard.press(key)
            await page.wait_for_url(f"**{path}")
            await alive(page)
        await page.keyboard.press("l")
        await page.get_by_role("button", name="Live").wait_for()
        await page.keyboard.press("t")
        assert await page.evaluate("document.activeElement.tagName") == "SELECT"


async def test_the_api_is_passed_through_to_who_has_the_token(stage: Stage) -> None:
    await traffic(stage)
    known = {"authorization": f"Bearer {stage.page.token}"}
    async with httpx.AsyncClient(base_url=stage.page.origin, timeout=PATIENCE) as client:
        found = (await client.get("/api/v1/flows", params={"decision": "deny"}, headers=known)).json()
        assert len(found["flows"]) == 5
        asked = {"sql": "SELECT count(*) AS n FROM flows", "format": "csv"}
        answer = await client.post("/api/v1/sql", json=asked, headers=known)
        assert (answer.text, answer.headers["content-type"]) == ('"n"\n10\n', "text/csv; charset=utf-8")
        refused = await client.get("/api/v1/flows", params={"since": "nonsense"}, headers=known)
        assert (refused.status_code, refused.json()["exit"]) == (400, 2)
        async with client.stream("GET", "/api/v1/verdicts/live", headers=known) as live:
            assert live.headers["content-type"].startswith("text/event-stream")
            publishing = asyncio.create_task(stage.publish(flow(11, ago=0)))
            async for line in live.aiter_lines():
                if line.startswith("data: ["):
                    assert '"sport":40011' in line.replace(" ", "")
                    break
            await publishing
        assert (await client.get("/api/v1/flows")).status_code == 403
        for path in NOT_THE_API:
            assert await asyncio.to_thread(status_of, stage.page.origin, path, known) in (404, 403), path
        assert (await client.delete("/api/v1/flows", headers=known)).status_code == 405
        await asyncio.to_thread(stage.sink.kill)
        away = await client.get("/api/v1/flows", headers=known)
        assert (away.status_code, away.json()["error"]) == (503, "the sink does not answer")
        await asyncio.to_thread(stage.sink.start)


async def test_a_websocket_needs_the_token_and_our_own_page(stage: Stage) -> None:
    """The real handshake: 403 without the cookie, or from another site."""
    port = stage.page.origin.rpartition(":")[2]
    url = f"ws://127.0.0.1:{port}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    entered = await asyncio.to_thread(httpx.get, stage.page.link)
    cookie = {"Cookie": f"ztlens_{port}={entered.cookies[f'ztlens_{port}']}"}
    for headers in ({}, {"Origin": "http://evil.example"} | cookie, {"Host": "evil.example"} | cookie):
        with pytest.raises(InvalidStatus, match="403"):
            await connect(url, additional_headers=headers)
    async with connect(url, additional_headers=cookie) as socket:
        assert str(await socket.recv()).startswith("0{")


async def test_a_port_that_is_taken(stage: Stage, tmp_path: Path) -> None:
    second = PageProcess(tmp_path / "second", tmp_path / "second", stage.page.origin.removeprefix("http://"))
    (tmp_path / "second").mkdir()
    with pytest.raises(AssertionError, match="Address already in use"):
        await second.start()
    assert second.process is not None and second.process.wait() == 2
    error, hint = (tmp_path / "second/web.log").read_text().splitlines()
    assert error.startswith("error: the page cannot listen on 127.0.0.1:") and hint.startswith("hint: choose another")
