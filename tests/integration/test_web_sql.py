"""The view SQL in a real Chromium over a real sink: questions, answers as tables, charts and files, refusals."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page

from schemas.cells import cell
from tests.support.asking import HOSTILE, command, copied, nothing_bit, recorded, saved, shell, write
from tests.support.pages import Browser, Stage, option, shows
from tests.support.until import until
from web.cookbook import queries

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with recorded(tmp_path_factory.mktemp("stage")) as made:
        yield made


QUESTION = (
    f"SELECT dport, decision, '{HOSTILE}' AS hostile, count(*) AS flows, sum(packets) / 8 AS part,"
    " max(last_seen) AS last, NULL AS nothing, [1, 2] AS list, true AS yes FROM flows GROUP BY ALL ORDER BY dport"
)


async def drawn_as(page: Page, label: str, form: str) -> bool:
    return bool(await option(page, label, "series.0.type") == form)


async def drawn_along(page: Page, names: list[str]) -> bool:
    return bool(await option(page, "flows along decision", "xAxis.0.data") == names)


async def test_sql(stage: Stage, tmp_path: Path) -> None:
    async with Browser(stage.page) as browser:
        page = await browser.open("/sql")
        await page.get_by_text("Choose a question of the cookbook").wait_for()
        await write(page, "SQL question", QUESTION)
        await page.keyboard.press("Control+Enter")
        found = await shows(page, "Answer", lambda found: len(found) == 2)
        told = json.loads(command(stage, "sql", QUESTION, "-o", "json"))
        assert found == [[cell(value) for value in row.values()] for row in told]
        heads = await page.locator("[role=region][aria-label=Answer] th").all_inner_texts()
        assert heads == list(told[0])
        assert json.loads(await saved(page, "Save JSON", tmp_path)) == told
        heads, *lines = csv.reader(io.StringIO(await saved(page, "Save CSV", tmp_path)))
        assert heads == list(told[0])
        assert [line[:4] for line in lines] == [["22", "deny", HOSTILE, "3"], ["5432", "allow", HOSTILE, "5"]]
        assert shell(await copied(page, "Copy as command"), 'printf %s "${@: -1}"') == QUESTION
        await page.locator("[role=region][aria-label=Answer] tr[data-key='1']").click()
        await page.get_by_role("region", name="Row 2").get_by_text("NULL").wait_for()
        await nothing_bit(page)

        for form in ("bar", "line"):
            await page.get_by_label("Show as").select_option(form)
            await until(lambda form=form: drawn_as(page, "dport along", form), f"the chart as {form}")
            assert await option(page, "dport along", "series.0.data") == [22, 5432]
        await page.get_by_role("button", name="flows", exact=True).click()
        await page.get_by_role("button", name="dport", exact=True).click()
        await page.get_by_role("combobox", name="Along").select_option("1")
        await until(lambda: drawn_along(page, ["deny", "allow"]), "the chosen columns")
        assert await option(page, "flows along decision", "series.0.data") == [3, 5]
        await nothing_bit(page)
        again = await browser.open(page.url.removeprefix(stage.page.origin))  # the address holds it all
        assert await until(lambda: option(again, "flows along decision", "series.0.data"), "the same") == [3, 5]


async def test_sql_aids(stage: Stage) -> None:
    """The cookbook, the views and their columns, the time of the page."""
    async with Browser(stage.page) as browser:
        page = await browser.open("/sql?since=1h")
        titles = await page.get_by_label("Cookbook").locator("option").all_inner_texts()
        assert titles[1:] == list(queries()) and len(titles) > 20
        await page.get_by_label("Cookbook").select_option(label="Top denied pairs of the last day")
        wanted = ["frontend", "database", "tcp", "22", "default", "3"]
        await shows(page, "Answer", lambda found: found and found[0][:6] == wanted)
        await page.get_by_role("combobox", name="View", exact=True).select_option("changes")
        columns = await shows(page, "Columns", lambda found: found[2][0] == "ring" and len(found) == 13)
        assert columns[3][:2] == ["kind", "VARCHAR"]
        await write(
            page,
            "SQL question",
            "SELECT count(*) AS n FROM flows WHERE last_seen >= $since AND last_seen < $until AND ",
        )
        question = page.get_by_role("textbox", name="SQL question")
        await page.keyboard.press("Control+End")
        await page.get_by_role("combobox", name="View", exact=True).select_option("flows")
        await shows(page, "Columns", lambda found: found[2][0] == "flow_id")
        await page.locator("[role=region][aria-label=Columns] tr[data-key=dport]").click()
        await question.get_by_text("AND dport").wait_for()  # the page puts it there; until then keys choose a view
        await page.keyboard.type(" = 22")
        await page.keyboard.press("Control+Enter")
        await shows(page, "Answer", lambda found: found == [["3"]])
        await page.get_by_role("textbox", name="From").fill("90s")
        await page.get_by_role("textbox", name="From").press("Enter")
        await shows(page, "Answer", lambda found: found == [["0"]])


async def test_a_question_outlives_what_stops_its_load(stage: Stage) -> None:
    """Another time makes the page load anew, and so does a sink that is back: the question is asked again."""
    async with Browser(stage.page) as browser:
        page = await browser.open("/sql")
        stop = page.get_by_role("button", name="Stop")
        await write(page, "SQL question", "SELECT count(*) AS n FROM flows WHERE false")
        with stage.sink.frozen():  # else it would be answered at once
            await page.keyboard.press("Control+Enter")
            await stop.wait_for()
            await page.get_by_role("textbox", name="From").fill("90s")
            await page.get_by_role("textbox", name="From").press("Enter")
            await page.wait_for_url("**since=90s**")
            await stop.wait_for()
        await shows(page, "Answer", lambda found: found == [["0"]])
        assert await stop.is_hidden()


async def test_sql_that_is_refused_or_breaks_off(tmp_path: Path) -> None:
    async with recorded(tmp_path) as stage, Browser(stage.page) as browser:
        page = await browser.open("/sql")
        alert = page.get_by_role("alert")
        for question, error, hint in (
            ("DELETE FROM verdicts", "DELETE is not a question", "questions read, nothing else"),
            ("SELECT * FROM verdict", "verdict does not exist", "Did you mean"),
            (f"SELECT '{HOSTILE}", "Parser Error", "DESCRIBE verdicts"),
            ("SELECT 1; SELECT 2", "one statement a question, not 2", "one after the other"),
            ('SELECT "' + HOSTILE.replace('"', '""') + '" FROM flows', HOSTILE, "DESCRIBE verdicts"),
            ("SELECT " + "1 + " * 3000 + "1", "too many for an address", "ztlens sql -f FILE"),
        ):
            await write(page, "SQL question", question)
            await page.keyboard.press("Control+Enter")
            await alert.locator("strong").get_by_text(error).wait_for()
            assert hint in await alert.inner_text()
            await nothing_bit(page)
        await write(page, "SQL question", "SELECT count(*) AS n FROM range(1000000000000) WHERE hash(range) = 1")
        await page.keyboard.press("Control+Enter")
        await page.get_by_role("button", name="Stop").click()
        await alert.get_by_text("Stopped before it was answered").wait_for()
        late = "SELECT CASE WHEN range > 900000 THEN ('x' || range)::BIGINT ELSE range END AS n FROM range(1000000)"
        await write(page, "SQL question", late)
        await page.keyboard.press("Control+Enter")
        await page.get_by_text("the first 500 rows; a file has all").wait_for()
        assert await alert.is_hidden()
        await page.get_by_role("button", name="Save CSV").click()
        await alert.get_by_text("The answer broke off").wait_for()
        browser.errors.clear()  # the browser, too, says on its console that it broke off
        await write(page, "SQL question", "SELECT 1 AS one")
        await asyncio.to_thread(stage.sink.kill)
        await alert.get_by_text("The sink does not answer").wait_for()
        await page.keyboard.press("Control+Enter")
        await asyncio.to_thread(stage.sink.start)
        await shows(page, "Answer", lambda found: found == [["1"]])
