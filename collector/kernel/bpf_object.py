"""An object file of BPF programs, through libbpf's own object API: open, size, load, take the descriptors.

ctypes, as in collector.kernel.libbpf, and no binding: PyPI has none that is kept up and uses the system's libbpf, and
the dozen functions used here are stable since libbpf 1.0. libbpf does what is long to do by hand: it reads ELF and
BTF, points instructions at maps, freezes read-only data, and leaves out what an older kernel does not know.
"""

import ctypes
import os
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_void_p
from functools import cache
from types import TracebackType

from collector.errors import KernelError
from collector.kernel import libbpf, verifier


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
        self._logs: dict[str, verifier.Log] = {}

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

    def constants(self, section: str) -> memoryview:
        """The read-only data of a section as bytes, to be written before `load`. Goes with the object."""
        size = c_size_t()
        address = _lib().bpf_map__initial_value(self._map(section), ctypes.byref(size))
        if not address:
            raise KernelError(f"the object has no data in {section}")
        return memoryview((c_uint8 * size.value).from_address(address)).cast("B")

    def load(self, programs: Mapping[str, int]) -> None:
        """Make the maps and load the programs; `programs`: name → expected attach type.

        Raises VerifierError for the verifier's no, KernelError with the errno.
        """
        for name, attach_type in programs.items():
            program, log = self._program(name), verifier.Log()
            self._logs[name] = log
            libbpf._check(_lib().bpf_program__set_expected_attach_type(program, attach_type), f"preparing {name}")
            libbpf._check(_lib().bpf_program__set_log_buf(program, log.address, log.size), f"preparing {name}")
        result = _lib().bpf_object__load(self._object)
        for name, log in self._logs.items():
            if result < 0 and log:
                raise verifier.refusal(name, -result, log)
        libbpf._check(result, "making the maps")

    def map_fd(self, name: str) -> int:
        """After `load`: a descriptor of one's own."""
        return os.dup(_lib().bpf_map__fd(self._map(name)))

    def program_fd(self, name: str) -> int:
        """After `load`: a descriptor of one's own."""
        return os.dup(_lib().bpf_program__fd(self._program(name)))
