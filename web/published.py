"""The page's link as a file of the run directory while it answers: its address with the token, for its owner alone.

The file is its maker's as long as that one lives, by a lock on it that ends with the process. Of several pages in one
run directory the first has it; when that one ends, another puts its own there.
"""

import asyncio
import fcntl
import os
import sys
from pathlib import Path
from typing import IO

NAME = "web.url"
AGAIN = 1.0
"""Seconds until a page whose link is not there looks again whether it may be."""


async def published(run_dir: Path, link: str) -> None:
    """Have `link` there, for ever; cancelled, it is taken away again. Raises OSError."""
    file = run_dir / NAME
    while _is_held(file):  # noqa: ASYNC110 (a lock is let go without a word)
        await asyncio.sleep(AGAIN)
    with _put(file, link) as ours:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if _is(file, ours):  # of two that began at the same moment the later one has it
                file.unlink()


def told(link: str) -> str:
    """`link` for a terminal; for a log, which others read, too, without its token."""
    if sys.stderr.isatty():
        return link
    return f"{link.partition('?')[0]} (`ztlens status` shows the link that lets you in)"


def _put(file: Path, link: str) -> IO[str]:
    """Whole, and held from the beginning."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{NAME}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    ours = os.fdopen(descriptor, "w", encoding="utf-8")
    fcntl.flock(ours, fcntl.LOCK_EX)
    ours.write(link)
    ours.flush()
    draft.replace(file)
    return ours


def _is_held(file: Path) -> bool:
    try:
        with file.open() as known:
            fcntl.flock(known, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _is(file: Path, ours: IO[str]) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(ours.fileno()))
    except FileNotFoundError:
        return False
