"""Whose `web.url` is: the first page's, until it ends."""

import asyncio
from pathlib import Path

import pytest

from tests.support.until import until
from web import published as module
from web.published import published, told


async def page(run_dir: Path, link: str) -> asyncio.Task[None]:
    """One that has published, or waits."""
    task = asyncio.create_task(published(run_dir, link))
    await asyncio.sleep(0)
    return task


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_a_second_page_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.01)
    file = tmp_path / "run" / "web.url"
    first = await page(file.parent, "first")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("first", 0o600)
    for link in ("second", "third"):
        await end(await page(file.parent, link))
        assert file.read_text() == "first"
    waiting = await page(file.parent, "waiting")
    await end(first)
    assert await until(lambda: file.exists() and file.read_text(), "the other's link") == "waiting"
    await end(waiting)
    assert list(file.parent.iterdir()) == []


async def test_what_a_dead_page_left_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "web.url").write_text("dead")
    task = await page(tmp_path, "alive")
    assert (tmp_path / "web.url").read_text() == "alive"
    (tmp_path / "web.url").write_text("somebody wrote into it")
    (tmp_path / "other").write_text("somebody's")
    (tmp_path / "other").replace(tmp_path / "web.url")
    await end(task)
    assert (tmp_path / "web.url").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("terminal", "said"),
    [(True, "http://h:1/?token=t"), (False, "http://h:1/ (`ztlens status` shows the link that lets you in)")],
)
def test_only_a_terminal_is_told_the_token(terminal: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert told("http://h:1/?token=t") == said
