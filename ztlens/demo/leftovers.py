"""What a run of the demo makes outside its process is written down first, so that a later run can take it away.

A run that is killed with -9 cannot clean up. Its record in /run/ztlens-demo names everything it made; the next run
takes exactly that away, and nothing that merely looks like it. A living run holds a lock on its record.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from collector.errors import KernelError
from collector.kernel.removal import remove_datapath
from ztlens import show
from ztlens.demo import netns

RECORDS = Path("/run/ztlens-demo")


def remove_paths(paths: Sequence[str | Path]) -> None:
    """Delete files and whole directories, as far as they are there."""
    for path in map(Path, paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Record:
    """What a run owns: `namespaces` by full name, `pins`, `paths` wholly its own. Held from `__init__` to `close`."""

    def __init__(
        self, name: str, namespaces: Sequence[str], pins: Path, paths: Sequence[Path], folder: Path = RECORDS
    ) -> None:
        self._path = folder / f"{name}.json"
        fresh = self._path.with_suffix(".new")
        while True:  # the last of other runs may remove the empty directory in between
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                break
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        content = {"namespaces": list(namespaces), "pins": str(pins), "paths": [str(path) for path in paths]}
        os.write(self._descriptor, json.dumps(content).encode())
        fresh.rename(self._path)  # locked before anybody can see it

    def close(self) -> None:
        """Forget it: everything it names is gone, or meant to stay."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()


def reclaim(folder: Path = RECORDS) -> list[str]:
    """Take away what dead runs left; the names of those runs.

    A run whose collector is still ending is left to the next call. Raises NetworkError; the record stays.
    """
    reclaimed = []
    for path in sorted(folder.glob("*.json")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it ended just now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists():
                continue
            content = json.loads(path.read_text())
            remove_datapath(Path(content["pins"]))
            for name in reversed(content["namespaces"]):
                netns.delete_namespace(name)
            remove_paths(content["paths"])
            path.unlink()
            reclaimed.append(path.stem)
        except BlockingIOError:
            continue  # it lives
        except KernelError as error:
            show.say(f"what {path.stem} left behind stays for now: {error}")
        finally:
            os.close(descriptor)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return reclaimed
