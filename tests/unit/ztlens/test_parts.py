"""Children of `up`: awaited, explained when they fail, restarted when they die, stopped, never left over."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.until import PATIENCE, until
from ztlens import parts
from ztlens.errors import CliError, Missing
from ztlens.parts import Part


def child(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def part(code: str, said: list[str], flag: Path | None = None, changed: Callable[[], None] = lambda: None) -> Part:
    def there() -> bool:
        return flag is None or flag.exists()

    async def ready() -> None:
        if not there():
            raise Missing("not yet", "wait")

    return Part("worker", child(code), ready, said.append, changed)


SLEEP = "import time; time.sleep(60)"


async def test_a_part_is_awaited_and_its_words_are_passed_on(tmp_path: Path) -> None:
    said: list[str] = []
    flag = tmp_path / "ready"
    one = part(
        f"""
        import pathlib, sys, time
        print("compiling", file=sys.stderr, flush=True)
        pathlib.Path({str(flag)!r}).touch()
        time.sleep(60)
        """,
        said,
        flag,
    )
    await one.start(20)
    assert one.alive and one.pid
    assert said == []  # of a start that fails only the error is told: `keep` speaks once all is up
    keeper = asyncio.ensure_future(one.keep(20))
    await until(lambda: said == ["worker: compiling"], "its words")
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert await one.stop(10) == -signal.SIGTERM
    assert not one.alive and await one.stop(1) is None


@pytest.mark.parametrize(("status", "expected"), [(2, 2), (3, 3), (1, 3), (70, 3)])
async def test_a_part_that_fails_speaks_for_itself(tmp_path: Path, status: int, expected: int) -> None:
    one = part(
        f"""
        import sys
        print("starting\\nerror: no interface eth9\\nhint: look\\nbye", file=sys.stderr)
        sys.exit({status})
        """,
        said := [],
        tmp_path / "never",
    )
    with pytest.raises(CliError) as caught:
        await one.start(20)
    assert (str(caught.value), caught.value.hint, caught.value.exit_status) == ("no interface eth9", "look", expected)
    assert said == []  # it is told once, by whoever started it


async def test_a_part_that_dies_without_a_word(tmp_path: Path) -> None:
    one = part("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", [], tmp_path / "never")
    with pytest.raises(Missing, match="worker ended at once \\(killed by SIGKILL\\)"):
        await one.start(20)


async def test_nats_server_words_are_understood(tmp_path: Path) -> None:
    line = "[1] 2026/01/01 00:00:00.0 [FTL] Error listening on port: 127.0.0.1:1, in use"
    one = part(f"import sys; print({line!r}, file=sys.stderr); sys.exit(1)", [], tmp_path / "never")
    with pytest.raises(Missing, match="worker: Error listening on port"):
        await one.start(20)


async def test_a_part_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    one = part(SLEEP, [], tmp_path / "never")
    with pytest.raises(Missing, match="not ready within 0 s: not yet"):
        await one.start(0.3)
    assert not one.alive


async def test_a_part_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    flag = tmp_path / "ready"
    one = part(
        f"""
        import pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({str(flag)!r}).touch()
        time.sleep(60)
        """,
        said,
        flag,
    )
    await one.start(20)
    assert await one.stop(0.2) == -signal.SIGKILL
    assert said == ["worker did not end within 0 s: killed"]


async def test_a_part_that_dies_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FIRST_WAIT", 0.01)
    said: list[str] = []
    told: list[int | None] = []
    one = part(SLEEP, said, changed=lambda: told.append(one.pid))
    await one.start(20)
    keeper = asyncio.ensure_future(one.keep(20))
    pids = [one.pid]
    for n in (1, 2):
        before = one.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await until(lambda n=n: one.restarts == n, "restarted")
        assert one.alive and one.pid != before
        pids.append(one.pid)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await one.stop(5)
    assert told == [pids[0], None, pids[1], None, pids[2], None]
    assert said == [
        f"worker ended at once (killed by SIGKILL); restarting worker in {wait} s" if i % 2 == 0
        else f"worker is back (restart {i // 2 + 1})"
        for i, wait in enumerate(("0.01", "", "0.02", ""))
    ]  # fmt: skip


async def test_a_part_that_cannot_start_again_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FIRST_WAIT", 0.01)
    said: list[str] = []
    broken = tmp_path / "broken"
    one = part(
        f"""
        import pathlib, sys, time
        if pathlib.Path({str(broken)!r}).exists():
            sys.exit("error: it is broken\\nhint: mend it")
        time.sleep(60)
        """,
        said,
    )
    flag = tmp_path / "ready"
    flag.touch()
    await one.start(20)
    keeper = asyncio.ensure_future(one.keep(20))
    broken.touch()
    assert one.pid is not None
    os.kill(one.pid, signal.SIGKILL)
    await until(lambda: any("trying again in 0.08 s" in line for line in said) or one.restarts > 0, "tried again")
    broken.unlink()
    await until(lambda: one.alive and any("is back" in line for line in said), "back")
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await one.stop(5)


def test_children_do_not_see_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTLENS_NATS", "nats://u:secret@h")
    monkeypatch.setenv("OTHER", "kept")
    environment = parts.clean_environment()
    assert "ZTLENS_NATS" not in environment and environment["OTHER"] == "kept"


async def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """Killed with SIGKILL, `up` stops nobody: the kernel sends its children SIGTERM."""
    pid_file = tmp_path / "pid"
    code = f"""
    import asyncio, pathlib, sys
    from ztlens.parts import Part
    async def main():
        async def ready(): pass
        one = Part("w", [sys.executable, "-c", {SLEEP!r}], ready, print, lambda: None)
        await one.start(10)
        pathlib.Path({str(pid_file)!r}).write_text(str(one.pid))
        await asyncio.sleep(60)
    asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(*child(code))
    await until(lambda: pid_file.exists() and pid_file.read_text() != "", "a child")
    pid = int(pid_file.read_text())
    process = os.pidfd_open(pid)
    try:
        given = Path(f"/proc/{pid}/cmdline")
        await until(lambda: b"setpriv" not in given.read_bytes(), "the child to have said what ends it")
        parent.kill()
        await parent.wait()
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(process, gone.set)
        await asyncio.wait_for(gone.wait(), PATIENCE)
        loop.remove_reader(process)
    finally:
        os.close(process)
