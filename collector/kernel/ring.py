"""The BPF ring buffer, read through mmap: no call per event, no callback.

Memory of a BPF_MAP_TYPE_RINGBUF: page 0 is the consumer's position (ours, read-write), page 1 the producer's
position, then the data, mapped twice in a row so that no record wraps. Every record has 8 bytes of header (length,
BUSY and DISCARD bits) and here all have one size, so records lie a fixed stride apart and the datapath never
discards one: row i behind position p stands at p + i·stride.
"""

import contextlib
import mmap
import os

import numpy as np

from collector.errors import KernelError
from collector.kernel import libbpf, libc
from collector.kernel.interface import Events
from schemas import verdict

_BUSY = np.uint32(1 << 31)


class Ring:
    """An open ring. `fd` is owned; `dtype` is that of its records (schemas.verdict.DTYPE, or an older one).

    Reading goes on behind the kernel's consumer position, so an heir begins where JetStream's acknowledgements
    ended.
    """

    def __init__(self, fd: int, dtype: np.dtype = verdict.DTYPE) -> None:
        self.fd, self.size = fd, libbpf.map_info(fd).max_entries
        self.stride = (dtype.itemsize + 8 + 7) // 8 * 8
        page = mmap.PAGESIZE
        self._consumer_map = mmap.mmap(fd, page)
        self._producer_map = mmap.mmap(fd, page + 2 * self.size, prot=mmap.PROT_READ, offset=page)
        self._consumer = np.ndarray(1, np.uint64, self._consumer_map)
        self._producer = np.ndarray(1, np.uint64, self._producer_map)
        self._data, self._dtype = page, dtype
        self._record = np.dtype(
            {"names": ["header", "row"], "formats": ["<u4", dtype], "offsets": [0, 8], "itemsize": self.stride}
        )
        self._next = self.consumed
        if self._next % self.stride:
            raise KernelError(f"the ring stands at {self._next}, not a multiple of {self.stride}: not our records")

    @property
    def produced(self) -> int:
        """Position behind the last record, which may still be being written."""
        return int(self._producer[0])

    @property
    def consumed(self) -> int:
        """Position up to which the kernel may overwrite."""
        return int(self._consumer[0])

    @property
    def room(self) -> int:
        """Records that still fit."""
        return (self.size - 1 - (self.produced - self.consumed)) // self.stride

    def read(self, limit: int) -> Events | None:
        """Up to `limit` complete records behind those read before, copied, as today's dtype; None if there is none."""
        start = self._next
        n = min((self.produced - start) // self.stride, limit, self.size // self.stride)
        if n <= 0:
            return None
        records = np.ndarray(n, self._record, self._producer_map, self._data + start % self.size)
        busy = np.flatnonzero(records["header"] & _BUSY)
        if len(busy):
            n = int(busy[0])
            if n == 0:
                return None
        # The producer cleared BUSY after writing the record; x86 loads keep their order, so what is copied below is
        # at least as new as the headers above. On weakly ordered CPUs (arm64) a load barrier must stand here; once
        # a batch its system call costs nothing beside the copy.
        if not _STRONGLY_ORDERED:
            libc.load_barrier()
        # As plain bytes: numpy copies a struct with gaps field by field, 104 ns a record against 22.
        rows = records["row"].view(f"V{self._dtype.itemsize}")[:n].copy().view(self._dtype)
        self._next = start + n * self.stride
        return Events(start, rows if self._dtype == verdict.DTYPE else _convert(rows))

    def release(self, position: int) -> None:
        """Give the space before `position` back. Raises ValueError unless it is the end of a record already read."""
        if not self.consumed <= position <= self._next or position % self.stride:
            raise ValueError(f"release({position}): not a record's end in [{self.consumed}, {self._next}]")
        self._consumer[0] = position

    def close(self) -> None:
        """Unmap and close; the kernel goes on writing if the ring is pinned."""
        del self._consumer, self._producer
        for mapped in (self._consumer_map, self._producer_map):
            with contextlib.suppress(BufferError):
                mapped.close()
        os.close(self.fd)


_STRONGLY_ORDERED = os.uname().machine in ("x86_64", "i686", "s390x")


def _convert(rows: np.ndarray) -> np.ndarray:
    """Rows of another version as today's: same names are copied, columns it lacks are 0."""
    out = np.zeros(len(rows), verdict.DTYPE)
    for name in set(out.dtype.names or ()) & set(rows.dtype.names or ()):
        out[name] = rows[name]
    return out
