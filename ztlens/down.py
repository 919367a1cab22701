"""Take everything down, whatever is left of it: a running `up`, a lone collector, or the pins of one that died."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from collector.errors import CollectorError
from ztlens import running
from ztlens.checks import pinned
from ztlens.config import Settings
from ztlens.errors import Missing

PATIENCE = 180.0
"""Seconds for a running `up` or collector to end in order."""
ENDING = 20.0
"""Seconds in which a collector that was sent SIGTERM is gone."""


def down(settings: Settings, report: Callable[[str], None]) -> bool:
    """Stop and detach. False if there was nothing to do. Raises CliError, CollectorError."""
    info = running.find(settings.run_dir)
    if info is not None:
        report(f"stopping `ztlens up` (process {info.get('pid', '?')})")
        if not running.stop(info, settings.run_dir, PATIENCE):
            raise Missing(
                f"process {info.get('pid', '?')} did not end within {PATIENCE:.0f} s", "its own output says why"
            )
        return True
    deadline = time.monotonic() + ENDING
    while True:
        if _ask_collector(settings.run_dir):
            report("the collector has detached and drained")
            return True
        try:
            unread = clean_up(settings)
        except CollectorError as error:
            # A collector that is starting or ending owns the pins and does not listen: in a moment it does, or is gone.
            if "already owns" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            continue
        if unread is None:
            return False
        report("took away the kernel side that a dead collector left" + lost(unread))
        return True


def _ask_collector(run_dir: Path) -> bool:
    """`down` through the control socket; False if no collector listens."""
    path = run_dir / "control.sock"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
    from collector.control.client import request

    request(run_dir, "down", timeout=PATIENCE)
    return True


def lost(unread: int) -> str:
    """What to add when events went with the ring."""
    return f"; {unread} events that nobody had read went with it" if unread else ""


def clean_up(settings: Settings) -> int | None:
    """Detach and unpin what no collector owns any more: how many events nobody read, None if nothing is pinned.

    Raises KernelError.
    """
    if not pinned(settings):
        return None
    from collector.kernel.removal import remove_datapath

    return remove_datapath(settings.pins)
