"""Pictures of the page for docs/images, of a demo that runs for it: first in mode monitor, then in enforce."""

import asyncio
import re
import signal
import sys
from pathlib import Path

from playwright.async_api import BrowserContext, async_playwright

from tests.support.pages import CHROMIUM
from ztlens.parts import ztlens_command

TRAFFIC = 40.0
"""Seconds of traffic in each mode."""
VIEWS = {
    "overview": ("/?since=5m", ""),
    "map": ("/map?since=5m", ""),
    "matrix": ("/matrix?since=5m&ports=true", ""),
    "flows": ("/flows?since=5m&rule=no-shortcut-to-database&sort=packets", "tr[data-key]"),
    "policy": ("/policy?since=5m", ""),
    "sql": ("/sql?since=5m", ""),
}
"""Name of the picture → address, and what is clicked there."""


async def _line(stream: asyncio.StreamReader, pattern: str) -> re.Match[str]:
    """The first line that has it; what comes before is passed on."""
    while raw := await stream.readline():
        line = raw.decode(errors="replace")
        sys.stderr.write(line)
        if found := re.search(pattern, line):
            return found
    raise SystemExit("the demo ended before its time")


async def _take(context: BrowserContext, origin: str, directory: Path, name: str, picture: str = "") -> None:
    address, clicked = VIEWS[name]
    page = await context.new_page()
    await page.goto(origin + address)
    await page.locator("tbody tr[data-key]").first.wait_for()
    await page.wait_for_timeout(2500)
    if clicked:
        await page.locator(clicked).first.click()
        await page.locator(".chosen-flow").wait_for()
        await page.wait_for_timeout(1500)
    await page.screenshot(path=directory / f"{picture or name}.png")
    await page.close()


async def main(directory: Path) -> None:
    """Start the demo, look at it, end it."""
    demo = await asyncio.create_subprocess_exec(
        *ztlens_command("demo", "--duration", "20m", "-o", "json"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert demo.stderr is not None
    try:
        run_dir = (await _line(demo.stderr, r"answering on (\S+)/sink\.sock"))[1]
        link = (await _line(demo.stderr, r"(http://\S+)\?token=(\S+)"))[0]
        await _line(demo.stderr, r"^traffic for")
        draining = asyncio.create_task(demo.stderr.read())
        await asyncio.sleep(TRAFFIC)
        enforcing = await asyncio.create_subprocess_exec(*ztlens_command("mode", "enforce", "--run-dir", run_dir))
        await enforcing.wait()
        await asyncio.sleep(TRAFFIC)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = await browser.new_context(viewport={"width": 1280, "height": 840}, color_scheme="light")
            await context.request.get(link)
            for name in VIEWS:
                await _take(context, link.partition("/?")[0], directory, name)
            context = await browser.new_context(viewport={"width": 1280, "height": 840}, color_scheme="dark")
            await context.request.get(link)
            await _take(context, link.partition("/?")[0], directory, "map", "map-dark")
            await browser.close()
    finally:
        demo.send_signal(signal.SIGINT)
        await demo.wait()
    await draining


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
