"""What a restarted collector must know and the kernel cannot tell: the text of the policies it runs.

`<run_dir>/policies.json`, 0600, on tmpfs beside the socket: a reboot takes it away together with the ring.
A revision is written before the kernel switches to it, so the running one is always here.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

log = logging.getLogger("ztlens.collector")

KEEP = 16


@dataclass(frozen=True)
class Kept:
    """One revision of one ring."""

    ring: str
    revision: int
    file: str
    hash: str
    text: str
    who: str
    host: list[str] = field(default_factory=list)  # the node's addresses it was compiled with


class Memory:
    """The file; the newest KEEP revisions, and the one in force."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "policies.json"
        self._kept: list[Kept] = []

    def load(self) -> None:
        """Read the file; one that is missing or damaged is empty, with a line in the log."""
        try:
            self._kept = [Kept(**item) for item in json.loads(self._path.read_text())]
        except FileNotFoundError:
            self._kept = []
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s: %s; names of older revisions are unknown", self._path, error)
            self._kept = []

    def of(self, ring: str) -> list[Kept]:
        """All that is known of `ring`, oldest first."""
        return sorted((kept for kept in self._kept if kept.ring == ring), key=lambda kept: kept.revision)

    def find(self, ring: str, revision: int) -> Kept | None:
        """What is known of one revision."""
        return next((k for k in self._kept if (k.ring, k.revision) == (ring, revision)), None)

    def keep(self, kept: Kept, in_force: int = 0) -> None:
        """Write `kept` to the file; `in_force` is the revision of its ring that runs until then. Raises OSError."""
        others = [k for k in self._kept if (k.ring, k.revision) != (kept.ring, kept.revision)]
        may_go = [k for k in others if (k.ring, k.revision) != (kept.ring, in_force)]
        old = may_go[: max(0, len(others) + 1 - KEEP)]
        self._kept = [*(k for k in others if k not in old), kept]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.touch(mode=0o600)
        new.chmod(0o600)
        new.write_text(json.dumps([asdict(k) for k in self._kept]))
        new.replace(self._path)

    def forget(self) -> None:
        """Remove the file: the ring is closed."""
        self._path.unlink(missing_ok=True)
