"""What the kernel's verifier says of a program that it refuses."""

import ctypes
import mmap
import os

from collector.errors import VerifierError

_BYTES = 64 << 20
"""Of a log. Memory is taken only where the verifier writes."""
_LINES = 60
_SUMMARY = "processed "
"""How the log's last line begins: of how much was verified, not of what is wrong."""


class Log:
    """A buffer for the verifier. `size` bytes at `address`; it must outlive the load."""

    size = _BYTES

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def __bool__(self) -> bool:
        """Whether anything was written."""
        return self._memory[0] != 0

    def lines(self) -> list[str]:
        """The last ones."""
        end = self._memory.find(b"\0")
        end = end if end >= 0 else _BYTES
        return self._memory[max(0, end - 16_384) : end].decode(errors="replace").splitlines()[-_LINES:]


def refusal(program: str, number: int, log: Log) -> VerifierError:
    """The error for a program whose load failed with errno `number`, in the verifier's own words."""
    lines = log.lines()
    words = [line.strip() for line in lines if line.strip() and not line.startswith(_SUMMARY)]
    said = words[-1] if words else os.strerror(number)
    error = VerifierError(
        f"the verifier refused the program {program}: {said}",
        "`ztlens doctor` says what this kernel lacks; --debug shows more of the verifier's log",
    )
    error.errno = number
    error.add_note("\n".join(lines))
    return error
