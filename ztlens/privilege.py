"""What the parts of `up` keep of root's privilege: all but the collector none, unless what was chosen takes some.

They stay root by name, so that files and sockets of root are theirs; but root without capabilities is a stranger to
other people's files, and has no port below 1024.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from ztlens.config import Settings


def kept(settings: Settings, program: str) -> set[str]:
    """The capabilities, as setpriv calls them, that are left to a part whose first word is `program`."""
    where = (Path(program), Path(sys.prefix), Path(__file__), settings.database, settings.state, settings.run_dir)
    archive = [settings["archive"]] if settings["archive"] else []
    needed = {"dac_override"} if any(map(_strange, [*where, *archive])) else set()
    port = int(settings["web"].rpartition(":")[2]) if ":" in settings["web"] else 0
    return needed | ({"net_bind_service"} if 0 < port < 1024 else set())


def without(capabilities: Iterable[str]) -> list[str]:
    """Options of setpriv that leave these for good: no program that is started later gets another one."""
    left = ",".join(["-all", *(f"+{name}" for name in sorted(capabilities))])
    return ["--no-new-privs", f"--bounding-set={left}", "--inh-caps=-all", "--ambient-caps=-all"]


def _strange(path: Path) -> bool:
    """Whether it is another user's, or lies in a directory of one (a clone in somebody's home)."""
    found = path.resolve()
    return any(one.stat().st_uid != os.geteuid() for one in (found, *found.parents) if one.exists())
