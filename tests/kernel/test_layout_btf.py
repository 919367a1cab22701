"""Every struct that the kernel side and user space share, and every map, against the object's BTF."""

import struct
from dataclasses import dataclass

import numpy as np
import pytest

from collector.kernel.loader_core import read_object
from collector.kernel.sources import PROGRAMS
from schemas import maps, structs, verdict
from schemas.structs import Struct, dtype

SHARED = (*structs.STRUCTS, structs.CONSTANTS, verdict.VERDICT_EVENT)
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = range(
    1, 16
)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)
BEHIND = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
"""Bytes that follow a type's head; EACH: bytes for each of its `vlen` parts."""
EACH = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
KERNEL_KINDS = {"hash": 1, "array": 2, "percpu_array": 6, "lru_hash": 9, "ringbuf": 27}
MMAPABLE = 1024


@dataclass(frozen=True)
class Type:
    """As Documentation/bpf/btf.rst has it; `parts` are bytes."""

    name: str
    kind: int
    size: int  # or the type it refers to
    parts: bytes

    def members(self) -> list[tuple[int, int, int]]:
        """(offset of the name, type, offset in bits) of a struct."""
        return list(struct.iter_unpack("<III", self.parts))


class Btf:
    """The types of an object file, by number and by name."""

    def __init__(self, elf: bytes) -> None:
        data = section(elf, ".BTF")
        _, _, _, head, types_at, types_size, strings_at, strings_size = struct.unpack_from("<HBBIIIII", data)
        self._strings = data[head + strings_at : head + strings_at + strings_size]
        at, end = head + types_at, head + types_at + types_size
        self.types = [Type("void", 0, 0, b"")]
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
            length = BEHIND.get(kind, 0) + EACH.get(kind, 0) * vlen
            self.types.append(Type(self.text(name), kind, size, data[at + 12 : at + 12 + length]))
            at += 12 + length

    def text(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def named(self, name: str, kind: int) -> Type:
        (found,) = [one for one in self.types if (one.name, one.kind) == (name, kind)]
        return found

    def plain(self, number: int) -> Type:
        """Behind typedef, const and volatile."""
        one = self.types[number]
        while one.kind in (TYPEDEF, CONST, VOLATILE):
            one = self.types[one.size]
        return one

    def bytes_of(self, number: int) -> int:
        one = self.plain(number)
        if one.kind == ARRAY:
            element, _, count = struct.unpack("<III", one.parts)
            return self.bytes_of(element) * count
        return one.size

    def behind_pointer(self, number: int) -> int:
        one = self.types[number]
        assert one.kind == PTR
        return one.size

    def number_behind(self, number: int) -> int:
        """`__uint(name, 5)` is a pointer to an array of five."""
        element = self.types[self.behind_pointer(number)]
        return int(struct.unpack("<III", element.parts)[2])


def section(elf: bytes, wanted: str) -> bytes:
    """A section's bytes of a little-endian ELF64 file."""
    table, size, count, names = *struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<HHH", elf, 58)
    heads = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    text = heads[names][4]
    for name, _, _, _, at, length in heads:
        if elf[text + name : elf.index(b"\0", text + name)].decode() == wanted:
            return elf[at : at + length]
    raise LookupError(wanted)


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf(read_object())


@pytest.mark.parametrize("shared", SHARED, ids=lambda shared: shared.name)
def test_structs(btf: Btf, shared: Struct) -> None:
    """Name, offset and size of every field."""
    found, expected = btf.named(shared.name, STRUCT), dtype(shared)
    assert expected.names is not None
    assert found.size == expected.itemsize
    assert [(btf.text(name), bits // 8, btf.bytes_of(number)) for name, number, bits in found.members()] == [
        (name, expected.fields[name][1], expected[name].itemsize) for name in expected.names  # type: ignore[index]
    ]  # fmt: skip


@pytest.mark.parametrize("described", maps.MAPS, ids=lambda described: described.name)
def test_maps(btf: Btf, described: maps.Map) -> None:
    """Kind, flags, and the types of key and value."""
    variable = btf.named(described.name, VAR)
    fields = {btf.text(name): number for name, number, _ in btf.types[variable.size].members()}
    assert btf.number_behind(fields["type"]) == KERNEL_KINDS[described.kind]
    if described.kind == "ringbuf":
        assert set(fields) == {"type", "max_entries"}
        return
    assert btf.number_behind(fields["map_flags"]) == (MMAPABLE if described.mmapable else 0)
    for part, text in (("key", described.key), ("value", described.value)):
        number = btf.behind_pointer(fields[part])
        assert btf.types[number].name == text.removeprefix("struct ")
        kinds = {s.name: dtype(s).itemsize for s in SHARED} | {"u32": 4, "u64": 8}
        if text != "struct scratch":  # the kernel side's own
            assert btf.bytes_of(number) == kinds[text.removeprefix("struct ")]


def test_there_is_nothing_else(btf: Btf) -> None:
    (datasec,) = [one for one in btf.types if (one.name, one.kind) == (".maps", DATASEC)]
    named = {btf.types[number].name for number, _, _ in struct.iter_unpack("<III", datasec.parts)}
    assert named == {one.name for one in maps.MAPS}
    functions = {one.name for one in btf.types if one.kind == FUNC}
    assert set(PROGRAMS) <= functions
    assert np.dtype(dtype(structs.CONSTANTS)).itemsize == len(section(read_object(), ".rodata.constants"))


def test_no_dwarf_and_no_path() -> None:
    data = read_object()
    for name in (".debug_info", ".debug_line", ".debug_str"):
        with pytest.raises(LookupError):
            section(data, name)
    assert b"/work/" not in data and b"/home/" not in data and b"/tmp/" not in data
