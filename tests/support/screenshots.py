"""Pictures of the page for docs/images, of a demo that runs for it: first in mode monitor, then in enforce."""

import asyncio
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from tests.support.asking import write
from tests.support.demos import Demo
from tests.support.pages import Browser, Published
from ztlens import demo as demo_policy
from ztlens.parts import ztlens_command

TRAFFIC = 40.0
"""Seconds of traffic in each mode."""
BY_RULE = "SELECT rule, sum(packets_original) AS there, sum(packets_reply) AS back\nFROM flows GROUP BY ALL ORDER BY 1"
VIEWS = {
    "overview": ("/?since=5m", ""),
    "map": ("/map?since=5m", ""),
    "matrix": ("/matrix?since=5m&ports=true", ""),
    "flows": ("/flows?since=5m&rule=no-shortcut-to-database&sort=packets", "tr[data-key]"),
    "policy": ("/policy?since=5m", ""),
    "sql": ("/sql?since=5m&show=bar&" + urlencode({"sql": BY_RULE}), ""),
}
"""Name of the picture → address, and what is clicked there."""


async def _take(browser: Browser, name: str, path: Path) -> None:
    address, clicked = VIEWS[name]
    page = await browser.open(address)
    await page.locator("tbody tr[data-key]").first.wait_for()
    await page.locator('.timeline[aria-label^="Flows over time: "]').wait_for()
    await page.wait_for_timeout(2500)
    if clicked:
        await page.locator(clicked).first.click()
        await page.locator(".chosen-flow").wait_for()
        await page.wait_for_timeout(1500)
    await page.screenshot(path=path)
    await page.close()


async def _audit(browser: Browser, directory: Path) -> None:
    """What the running policy would do without two of its rules."""
    text = (Path(demo_policy.__file__).parent / "policy.yaml").read_text(encoding="utf-8")
    for name in ("api-to-cache", "no-shortcut-to-database"):
        text = re.sub(rf"  - name: {name}\b.*?(?=  - name:)", "", text, flags=re.DOTALL)
    page = await browser.open("/policy?since=5m")
    await page.locator("tbody tr[data-key]").first.wait_for()
    await write(page, "Draft of a policy", text)
    await page.get_by_text("It can be applied").wait_for()
    await page.get_by_role("button", name="Audit against the time above").click()
    audit = page.get_by_role("region", name="Audit")
    await audit.get_by_text("Newly denied").first.wait_for()
    await page.set_viewport_size({"width": 1280, "height": 1500})
    await page.get_by_role("region", name="Draft", exact=True).evaluate("panel => panel.scrollIntoView()")
    await page.wait_for_timeout(1500)
    await page.screenshot(path=directory / "policy-draft.png")
    await page.set_viewport_size({"width": 1280, "height": 900})
    await audit.get_by_role("link", name="Draw it on the map").click()
    await page.get_by_text("newly denied").first.wait_for()
    await page.wait_for_timeout(2500)
    await page.screenshot(path=directory / "map-draft.png")
    await page.close()


async def main(directory: Path) -> None:
    """Start the demo, look at it, end it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Demo(Path(folder) / "tmp", "--duration", "20m", "-o", "json") as demo,
    ):
        await asyncio.to_thread(demo.until_said, "traffic for")
        await asyncio.sleep(TRAFFIC)
        command = ztlens_command("mode", "enforce", "--run-dir", str(demo.run_dir))
        assert await (await asyncio.create_subprocess_exec(*command)).wait() == 0
        await asyncio.sleep(TRAFFIC)
        link = Published((demo.run_dir / "web.url").read_text(encoding="utf-8"))
        async with Browser(link) as browser:
            for name in VIEWS:
                await _take(browser, name, directory / f"{name}.png")
            await _audit(browser, directory)
        async with Browser(link, dark=True) as browser:
            await _take(browser, "map", directory / "map-dark.png")
        async with Browser(link, width=390) as browser:
            await _take(browser, "overview", directory / "overview-390.png")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
