"""BPF maps as numpy: each class is one way to hold a map, typed by a dtype of schemas.structs.

Arrays are mmapped (no system call a read); hashes and per-CPU arrays are read in batches, where the kernel has these,
else entry by entry. A descriptor is owned by the map object that was made from it.
"""

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator

import numpy as np

from collector.errors import KernelError
from collector.kernel import libbpf, probes

_BATCH = 16_384  # entries a system call: 3 MB of flows, small enough to stay in cache, large enough to cost nothing


def _round_up(size: int, to: int) -> int:
    return -(-size // to) * to


def _check_size(fd: int, key_size: int, value_size: int) -> libbpf.MapInfo:
    info = libbpf.map_info(fd)
    if (info.key_size, info.value_size) != (key_size, value_size):
        raise KernelError(
            f"map {info.name} has entries of {info.key_size} + {info.value_size} bytes, "
            f"not {key_size} + {value_size}: it is of another version"
        )
    return info


class MappedArray:
    """An ARRAY made with BPF_F_MMAPABLE. `values` is the live map: shape (entries,), writes take effect at once."""

    def __init__(self, fd: int, value: np.dtype) -> None:
        info = _check_size(fd, 4, value.itemsize)
        self.fd = fd
        stride = _round_up(value.itemsize, 8)  # the kernel lays elements 8 bytes apart at least
        self._mmap = mmap.mmap(fd, _round_up(stride * info.max_entries, mmap.PAGESIZE))
        base, shape = value.subdtype if value.subdtype else (value, ())
        inner = np.zeros(shape, base).strides
        self.values = np.ndarray((info.max_entries, *shape), base, self._mmap, 0, (stride, *inner))

    def words(self) -> np.ndarray:
        """The same memory as u64: storing one element is one 8-byte store, which no CPU sees by halves."""
        return np.ndarray(len(self._mmap) // 8, np.uint64, self._mmap)

    def close(self) -> None:
        """Unmap and close. Views handed out before keep the memory until they go."""
        del self.values
        with contextlib.suppress(BufferError):
            self._mmap.close()
        os.close(self.fd)


class PerCpuArray:
    """A PERCPU_ARRAY: every CPU counts in a value of its own."""

    def __init__(self, fd: int, value: np.dtype) -> None:
        info = _check_size(fd, 4, value.itemsize)
        if value.itemsize % 8:
            raise ValueError("per-CPU values are handed out rounded up to 8 bytes")
        self.fd, self.entries, self._dtype, self._cpus = fd, info.max_entries, value, libbpf.num_cpus()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Values of entries [start, stop) of every CPU, shape (stop - start, CPUs)."""
        stop = self.entries if stop is None else stop
        keys, behind = np.zeros(stop - start, np.uint32), np.zeros(1, np.uint32)
        values = np.zeros((stop - start, self._cpus), self._dtype)
        if start == stop:
            return values
        if not probes.has("percpu_batch"):
            for i in range(stop - start):
                libbpf.lookup(self.fd, np.array([start + i], np.uint32), values[i])
            return values
        after = np.array([start - 1], np.uint32) if start else None  # a batch begins behind the key it is given
        n = libbpf.lookup_batch(self.fd, after, behind, keys, values)
        n = n if n >= 0 else -n - 1
        if n != stop - start or keys[0] != start:
            raise KernelError(f"a per-CPU map gave {n} of {stop - start} values")
        return values

    def sums(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Sums over CPUs of entries [start, stop): shape (stop - start,), the value's dtype, whose fields are u64."""
        values = self.read(start, stop)
        if values.dtype.names is None:
            return values.sum(axis=1, dtype=np.uint64)
        fields = values.view(np.uint64).reshape(len(values), self._cpus, -1)
        return fields.sum(axis=1).view(self._dtype).reshape(-1)

    def close(self) -> None:
        os.close(self.fd)


class HashMap:
    """A HASH."""

    def __init__(self, fd: int, key: np.dtype, value: np.dtype) -> None:
        self.info = _check_size(fd, key.itemsize, value.itemsize)
        self.fd, self.key, self.value = fd, key, value

    def batches(self, size: int = _BATCH) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All entries as (keys, values), in arrays that the next round reuses.

        Entries that come or go meanwhile may be missing; none that stays is missed or seen twice.
        """
        if not probes.has("batch"):
            yield from self._by_key(size)
            return
        here, behind = (np.zeros(4, np.uint8) for _ in range(2))  # bucket numbers
        keys, values = np.zeros(size, self.key), np.zeros(size, self.value)
        start = None
        while True:
            try:
                n = libbpf.lookup_batch(self.fd, start, behind, keys, values)
            except KernelError as error:
                if error.errno != errno.ENOSPC:  # one bucket holds more than `size` entries
                    raise
                size *= 2
                keys, values = np.zeros(size, self.key), np.zeros(size, self.value)
                continue
            last, n = n < 0, (n if n >= 0 else -n - 1)
            if n:
                yield keys[:n], values[:n]
            if last:
                return
            here, behind = behind, here
            start = here

    def _by_key(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`batches` by two system calls an entry: first all keys, then what they lead to."""
        found: dict[bytes, None] = {}
        key, after = None, np.zeros(1, self.key)
        steps = 0
        # Behind a key that has gone meanwhile the kernel begins anew: known ones are passed over, not for ever.
        while steps < 2 * self.info.max_entries and libbpf.next_key(self.fd, key, after):
            found[after.tobytes()] = None
            key = after.copy()
            steps += 1
        every = np.frombuffer(b"".join(found), self.key)
        values = np.zeros(size, self.value)
        for at in range(0, len(every), size):
            keys = every[at : at + size]
            there = np.array([libbpf.lookup(self.fd, keys[i : i + 1], values[i : i + 1]) for i in range(len(keys))])
            yield keys[there], values[: len(keys)][there]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All entries, copied: (keys, values)."""
        parts = [(keys.copy(), values.copy()) for keys, values in self.batches()]
        if not parts:
            return np.zeros(0, self.key), np.zeros(0, self.value)
        return np.concatenate([k for k, _ in parts]), np.concatenate([v for _, v in parts])

    def get(self, key: np.ndarray) -> np.ndarray | None:
        """The value of one key (shape (1,)); None if it is not there."""
        value = np.zeros(1, self.value)
        return value if libbpf.lookup(self.fd, key, value) else None

    def put(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Write entries, `keys[i]` → `values[i]`."""
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        if probes.has("batch"):
            libbpf.update_batch(self.fd, keys, values)
        else:
            for i in range(len(keys)):
                libbpf.update(self.fd, keys[i : i + 1], values[i : i + 1])

    def remove(self, keys: np.ndarray) -> None:
        """Delete entries, all of which are there."""
        keys = np.ascontiguousarray(keys)
        if probes.has("batch"):
            libbpf.delete_batch(self.fd, keys)
        else:
            for i in range(len(keys)):
                libbpf.delete(self.fd, keys[i : i + 1])

    def close(self) -> None:
        os.close(self.fd)


class PlainArray:
    """An ARRAY that is not mmapable, for what is written once: bytes, padded with zeros."""

    def __init__(self, fd: int) -> None:
        self.info = libbpf.map_info(fd)
        self.fd = fd

    def read(self, index: int) -> bytes:
        value = np.zeros(self.info.value_size, np.uint8)
        libbpf.lookup(self.fd, np.array([index], np.uint32), value)
        return value.tobytes().rstrip(b"\0")

    def write(self, index: int, data: bytes) -> None:
        """Raises KernelError if `data` is too long."""
        if len(data) > self.info.value_size:
            raise KernelError(f"{len(data)} bytes do not fit the map {self.info.name}")
        value = np.frombuffer(data.ljust(self.info.value_size, b"\0"), np.uint8)
        libbpf.update(self.fd, np.array([index], np.uint32), value)

    def close(self) -> None:
        os.close(self.fd)
