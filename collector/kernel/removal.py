"""Taking away what a dead collector left: detach, unpin. For `ztlens down`; a live collector does this itself."""

from itertools import pairwise
from pathlib import Path

from collector.kernel import pins
from collector.kernel.datapath import PinnedDatapath
from collector.kernel.handle import Handle


def remove_datapath(directory: Path) -> int | None:
    """Detach and unpin the datapath at `directory` and its predecessors; events that nobody read go with it.

    Returns how many those were, None if nothing was pinned. Raises KernelError, also when a collector owns it.
    """
    if not any(path.exists() for path in (directory, pins.new_path(directory), *pins.old_paths(directory))):
        return None
    pins.require_privilege()
    lock = pins.Lock(directory)
    chain: list[PinnedDatapath] = []
    try:
        pins.settle(directory)
        for path in (directory, *pins.old_paths(directory)):
            if path.exists():
                chain.append(PinnedDatapath(Handle.open(path), path))
        for newer, older in pairwise(chain):
            newer.predecessor = older
        unread = 0
        for one in chain:
            one.detach()
            unread += (one.produced - one.consumed) // one.stride
            one.unpin()
        return unread
    finally:
        for one in reversed(chain):
            one.predecessor = None
            one.close()
        lock.release()
