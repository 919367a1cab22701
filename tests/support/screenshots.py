"""Pictures of the page for docs/images, of a demo that runs for it: first in mode monitor, then in enforce."""

import asyncio
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from tests.support.demos import Demo
from tests.support.pages import Browser, Published
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
        async with Browser(link, dark=True) as browser:
            await _take(browser, "map", directory / "map-dark.png")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
