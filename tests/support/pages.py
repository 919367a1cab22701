"""A page in a process of its own over a real sink, and a real Chromium that looks at it.

    async with Stage(tmp_path, nats_server.url) as stage:      # a sink, a page
        await stage.publish(rows)
        async with Browser(stage) as browser:
            page = await browser.open("/flows")

Whatever a browser's console says, and every address it asked for, is kept: `Browser.close` fails the test for an error
on the console and for a request that leaves the page; a failure tells what each tab shows. Pictures go to
$ZTLENS_SCREENSHOTS, else below /tmp.
"""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import nats
import numpy as np
from nats.aio.client import Client
from playwright.async_api import BrowserContext, Error, Page, Playwright, async_playwright

from schemas import messages, streams, subjects
from schemas.messages import LossRecord, PolicyRecord
from schemas.verdict import STRIDE
from tests.support import batches
from tests.support.nats import NatsServer
from tests.support.sinks import SinkProcess, settings
from tests.support.until import PATIENCE, until
from ztlens.parts import clean_environment, ztlens_command

CHROMIUM = "/usr/bin/chromium"
SCREENSHOTS = Path(os.environ.get("ZTLENS_SCREENSHOTS", f"/tmp/ztlens-screenshots-{os.getuid()}"))


def addresses(text: str) -> bytes:
    """An IPv4 address as 16 bytes."""
    return bytes(12) + bytes(int(part) for part in text.split("."))


def now(seconds: float = 0.0) -> int:
    """The made-up node's clock, so many seconds before now: verdicts of this time are live."""
    return time.time_ns() - int(seconds * 1e9) - batches.CLOCK


class Published:
    """A page that answers; `link` lets a browser in."""

    def __init__(self, link: str = "") -> None:
        self.link = link

    @property
    def origin(self) -> str:
        """Without path and token."""
        return "http://" + urlsplit(self.link).netloc

    @property
    def token(self) -> str:
        return self.link.rpartition("=")[2]


class PageProcess(Published):
    """`ztlens web` on a port of its own."""

    def __init__(self, state: Path, run_dir: Path, listen: str = "127.0.0.1:0") -> None:
        super().__init__()
        self._run_dir, self._log = run_dir, state / "web.log"
        self._command = ztlens_command("web", "--state", str(state), "--run-dir", str(run_dir), "--config", os.devnull)
        self.program = f"sudo ztlens --state {state} --run-dir {run_dir}"
        """How commands to copy begin."""
        self._listen = listen
        self.process: subprocess.Popen[bytes] | None = None

    def moved_to(self, listen: str) -> None:
        """Where it listens when it is started again."""
        self._listen = listen

    async def start(self) -> None:
        """Until it answers."""
        self._spawn()
        self.link = await until(self._published, "the page's link")

    def _spawn(self) -> None:
        (self._run_dir / "web.url").unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command, "--web", self._listen], stdout=log, stderr=log, env=clean_environment()
            )

    def _published(self) -> str:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()
        file = self._run_dir / "web.url"
        return file.read_text() if file.exists() else ""

    def end(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)


class Stage:
    """A sink with what is published, and a page that asks it."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        self.sink = SinkProcess(settings(directory, url))
        self.page = PageProcess(directory, self.sink.settings.run_dir)
        self._client: Client | None = None
        self._published = self._recorded = 0

    async def __aenter__(self) -> Self:
        self._client = await nats.connect(self.url)
        for name in (subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM):
            await streams.ensure(self._client, name)
        await asyncio.to_thread(self.sink.start)
        await self.page.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        assert self.page.end() == 0
        await asyncio.to_thread(self.sink.__exit__, kind, error, trace)
        await self._client.close()

    async def record(self, *records: PolicyRecord | LossRecord) -> None:
        """Policy and loss; returns when they are stored."""
        assert self._client is not None
        for one in records:
            subject = subjects.policy if isinstance(one, PolicyRecord) else subjects.loss
            await self._client.jetstream(timeout=PATIENCE).publish(subject(one.node), messages.encode(one))
        self._recorded += len(records)
        await until(self._read, f"{self._recorded} records in the store")

    async def _read(self) -> bool:
        status = await asyncio.to_thread(self.sink.ask, lambda history: history.status())
        return bool(status["streams"][subjects.RECORDS_STREAM].get("sequence", 0) >= self._recorded)

    async def publish(self, *rows: np.ndarray) -> None:
        """Verdicts, the next ones of the ring; returns when they are stored."""
        assert self._client is not None
        one = np.concatenate(rows)
        data = batches.packed(one, self._published * STRIDE)
        await self._client.jetstream(timeout=PATIENCE).publish(subjects.verdicts("n1"), data)
        self._published += len(one)
        await until(self._stored, f"{self._published} verdicts in the store")

    async def _stored(self) -> bool:
        count = await asyncio.to_thread(self.sink.value, "SELECT count(*) FROM store.verdicts")
        return bool(count == self._published)


@asynccontextmanager
async def staged(directory: Path) -> AsyncIterator[Stage]:
    """A stage with a nats-server of its own."""
    with NatsServer(directory / "nats") as server:
        async with Stage(directory, server.url) as stage:
            yield stage


class Browser:
    """Chromium without a window, let in by the page's link."""

    def __init__(self, page: Published, *, dark: bool = False, width: int = 1280) -> None:
        self._page, self._dark, self._width = page, dark, width
        self._playwright: Playwright | None = None
        self.context: BrowserContext | None = None
        self.errors: list[str] = []
        self.asked: list[str] = []

    async def __aenter__(self) -> Self:
        self._playwright = await async_playwright().start()
        browser = await self._playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE * 1000
        )
        self.context = await browser.new_context(
            viewport={"width": self._width, "height": 900}, color_scheme="dark" if self._dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        self.context.set_default_timeout(PATIENCE * 1000)
        entry = await self.context.request.get(self._page.link)
        assert entry.ok
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.context is not None and self._playwright is not None
        if kind is not None:
            for page in self.context.pages:
                with contextlib.suppress(Error):
                    print(f"--- {page.url}\n{await page.inner_text('body', timeout=5000)}")
        if self.context.browser is not None:
            await self.context.browser.close()
        await self._playwright.stop()
        if kind is None:
            assert self.errors == []
            host = urlsplit(self._page.origin).netloc
            assert {urlsplit(url).netloc for url in self.asked if not url.startswith(("data:", "blob:"))} == {host}

    async def open(self, path: str = "/") -> Page:
        """A tab at this address."""
        page = await self.tab()
        await self.to(page, path)
        return page

    async def tab(self) -> Page:
        """An empty tab."""
        assert self.context is not None
        page = await self.context.new_page()
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        return page

    async def to(self, page: Page, path: str) -> None:
        """Another address in this tab."""
        await page.goto(self._page.origin + path)
        await alive(page)

    def _said(self, kind: str, text: str) -> None:
        if kind == "error":
            self.errors.append(text)


async def alive(page: Page) -> None:
    """What is painted first (web/first.py) is dead: who presses more than a link waits for the scripts."""
    await page.wait_for_selector("#app header.top")


async def picture(page: Page, name: str) -> Path:
    """A screenshot, kept."""
    path = SCREENSHOTS / f"{name}.png"
    await page.evaluate("window.scrollTo(0, 0)")  # else the header is in the middle of it
    await page.screenshot(path=path, full_page=True)
    return path


async def looked(page: Page, script: str, given: Any) -> Any:
    """What a script finds; None while the page is on its way to another address."""
    try:
        return await page.evaluate(script, given)
    except Error as error:
        if "Execution context was destroyed" in error.message:
            return None
        raise


async def rows(page: Page, label: str) -> list[list[str]]:
    """The cells of a table, by its label, as they are read."""
    found = await looked(
        page,
        """label => [...document.querySelectorAll(`[role=region][aria-label="${label}"] tbody tr:not(.empty)`)]
            .map(row => [...row.cells].map(cell => cell.innerText.trim()))""",
        label,
    )
    return found or []


async def shows(page: Page, label: str, wanted: Any) -> list[list[str]]:
    """Wait for a table to be as `wanted` says, which may look at rows that are not there yet."""

    async def found() -> Any:
        there = await rows(page, label)
        with contextlib.suppress(IndexError):
            return there if wanted(there) else None

    try:
        return list(await until(found, f"table {label!r}"))
    except AssertionError as error:
        there = await rows(page, label)
        raise AssertionError(f"{error}; at {page.url} it has {len(there)} rows: {there[:5]}") from None


async def option(page: Page, label: str, path: str) -> Any:
    """Something of the options of the chart with a label that begins so, as ECharts has them: `series.0.data`."""
    return await looked(
        page,
        """async ([label, path]) => {
            const { echarts } = await import("nicegui-echart");
            const element = document.querySelector(`.chart[aria-label^="${label}"]`);
            const chart = element && echarts.getInstanceByDom(element);
            return path.split(".").reduce((value, key) => value?.[key], chart?.getOption()) ?? null;
        }""",
        [label, path],
    )


AXE = Path(__file__).parents[1] / "integration/javascript/node_modules/axe-core/axe.min.js"


async def violations(page: Page) -> list[str]:
    """What axe finds that is serious, and where."""
    await page.evaluate(AXE.read_text(encoding="utf-8"))
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
