"""What a loader gives back, whichever it was."""

import errno
import os
from dataclasses import dataclass

from collector.errors import KernelError


@dataclass(frozen=True)
class Loaded:
    """Descriptors by name, owned by whoever holds this."""

    maps: dict[str, int]
    programs: dict[str, int]

    def close(self) -> None:
        for fd in (*self.maps.values(), *self.programs.values()):
            os.close(fd)


def of_maps(error: KernelError) -> KernelError:
    """What the kernel said to the making of maps, in our words where it says too little."""
    if error.errno != errno.EINVAL:
        return error
    plain = KernelError("the kernel does not know a map type or flag we need", "ring buffers need Linux 5.8 or later")
    plain.add_note(str(error))
    return plain
