"""An object file of BPF programs, through libbpf's own object API: open, size, load, take the descriptors.

ctypes, as in collector.kernel.libbpf, and no binding: PyPI has none that is kept up and uses the system's libbpf, and
the dozen functions used here are stable since libbpf 1.0. libbpf does what is long to do by hand: it reads ELF and
BTF, points instructions at maps, freezes read-only data, and leaves out what an older kernel does not know.
"""

import ctypes
import os
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import cache
from types import TracebackType

import numpy as np

from collector.errors import KernelError
from collector.kernel import libbpf

LOG_BYTES = 64 << 20
"""For each program's complaint; memory is taken only where the verifier writes."""
LOG_LINES = 60


@cache
def _lib() -> ctypes.CDLL:
    lib = libbpf._lib()
    for name, arguments, result in (
        ("bpf_object__open_mem", [c_char_p, c_size_t, c_void_p], c_void_p),
        ("bpf_object__close", [c_void_p], None),
        ("bpf_object__load", [c_void_p], c_int),
        ("bpf_object__find_map_by_name", [c_void_p, c_char_p], c_void_p),
        ("bpf_map__set_max_entries", [c_void_p, c_uint32], c_int),
        ("bpf_map__value_size", [c_void_p], c_uint32),
        ("bpf_map__set_value_size", [c_void_p, c_uint32], c_int),
        ("bpf_map__initial_value", [c_void_p, POINTER(c_size_t)], c_void_p),
        ("bpf_map__fd", [c_void_p], c_int),
        ("bpf_object__find_program_by_name", [c_void_p, c_char_p], c_void_p),
        ("bpf_program__set_expected_attach_type", [c_void_p, c_int], c_int),
        ("bpf_program__set_log_buf", [c_void_p, c_void_p, c_size_t], c_int),
        ("bpf_program__fd", [c_void_p], c_int),
    ):
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, result
    return lib


class BpfObject:
    """An opened object. Use as a context manager: what was not taken out with `map_fd` and `program_fd` then goes."""

    def __init__(self, data: bytes) -> None:
        """Raises KernelError if `data` is no object that this libbpf understands."""
        self._object = _lib().bpf_object__open_mem(data, len(data), None)
        if not self._object:
            raise KernelError(f"reading the object: {os.strerror(ctypes.get_errno())}", "build it again: make -C bpf")
        self._logs: dict[str, np.ndarray] = {}

    def __enter__(self) -> "BpfObject":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _lib().bpf_object__close(self._object)

    def _map(self, name: str) -> int:
        found = _lib().bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise KernelError(f"the object has no map {name}")
        return int(found)

    def _program(self, name: str) -> int:
        found = _lib().bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise KernelError(f"the object has no program {name}")
        return int(found)

    def size_map(self, name: str, entries: int, width: int = 1) -> None:
        """Before `load`: so many entries, each of `width` values as declared."""
        found = self._map(name)
        libbpf._check(_lib().bpf_map__set_max_entries(found, entries), f"sizing the map {name}")
        if width != 1:
            size = width * _lib().bpf_map__value_size(found)
            libbpf._check(_lib().bpf_map__set_value_size(found, size), f"sizing the map {name}")

    def constants(self, section: str, dtype: np.dtype) -> np.ndarray:
        """The read-only data of a section, shape (), to be written before `load`. Goes with the object."""
        size = c_size_t()
        address = _lib().bpf_map__initial_value(self._map(section), ctypes.byref(size))
        if not address or size.value != dtype.itemsize:
            raise KernelError(f"the object's {section} has {size.value} bytes, not {dtype.itemsize}")
        return np.ndarray((), dtype, memoryview((ctypes.c_uint8 * size.value).from_address(address)))

    def load(self, programs: Mapping[str, int]) -> None:
        """Make the maps and load the programs; `programs`: name → expected attach type.

        Raises KernelError with the errno; the tail of the verifier's complaint, if it was its, is a note.
        """
        for name, attach_type in programs.items():
            program = self._program(name)
            log = self._logs[name] = np.zeros(LOG_BYTES, np.uint8)
            libbpf._check(_lib().bpf_program__set_expected_attach_type(program, attach_type), f"preparing {name}")
            libbpf._check(_lib().bpf_program__set_log_buf(program, log.ctypes.data, log.nbytes), f"preparing {name}")
        result = _lib().bpf_object__load(self._object)
        refused = next((name for name, log in self._logs.items() if log[0]), "")
        doing = f"loading the program {refused}" if refused else "making the maps"
        try:
            libbpf._check(result, doing)
        except KernelError as error:
            if refused:
                error.add_note(tail(self._logs[refused]))
            raise

    def map_fd(self, name: str) -> int:
        """After `load`: a descriptor of one's own."""
        return os.dup(_lib().bpf_map__fd(self._map(name)))

    def program_fd(self, name: str) -> int:
        """After `load`: a descriptor of one's own."""
        return os.dup(_lib().bpf_program__fd(self._program(name)))


def tail(log: np.ndarray) -> str:
    """The last LOG_LINES lines of a log, which ends at its first zero byte."""
    end = int(np.argmin(log)) or log.nbytes
    return "\n".join(log[max(0, end - 16_384) : end].tobytes().decode(errors="replace").splitlines()[-LOG_LINES:])
