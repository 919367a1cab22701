"""The child that imports BCC: C in, bytecode out, nothing loaded.

    python -m collector.kernel.compile MAIN.c FUNCTION[,…] OUTPUT.json [CFLAG …]

BCC brings LLVM, 146 MB resident after a compile, so it never enters the collector. The output holds the maps' sizes
and each program's instructions, in which a reference to a map is its place in the list of maps; the collector makes
the maps and loads the programs through libbpf. Whatever goes wrong is said on stderr, and the exit status is 1.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from collector.kernel import libbpf

INSTRUCTION = np.dtype([("code", "u1"), ("registers", "u1"), ("offset", "<i2"), ("immediate", "<i4")])
_LOAD_IMMEDIATE_64, _MAP_BY_FD = 0x18, 1


def map_references(instructions: np.ndarray) -> np.ndarray:
    """Where `instructions` (dtype INSTRUCTION) load a map: the map is the `immediate` of these."""
    is_load = instructions["code"] == _LOAD_IMMEDIATE_64
    # The second half of a 16-byte instruction has code 0, so no load is mistaken for one.
    return np.flatnonzero(is_load & (instructions["registers"] >> 4 == _MAP_BY_FD))


def main() -> int:
    """Compile as the command line says."""
    source, wanted, output, cflags = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
    try:
        from bcc import BPF, lib  # noqa: PLC0415
    except ImportError:
        sys.path.append("/usr/lib/python3/dist-packages")  # a virtual environment without the system's packages
        from bcc import BPF, lib  # noqa: PLC0415
    program = BPF(src_file=source, cflags=cflags)
    lib.bpf_table_name.restype = ctypes.c_char_p  # bcc's own binding leaves these two out
    lib.bpf_table_name.argtypes = lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    maps: dict[str, list[int]] = {}
    place: dict[int, int] = {}
    for i in range(lib.bpf_num_tables(program.module)):
        name, fd = lib.bpf_table_name(program.module, i).decode(), lib.bpf_table_fd_id(program.module, i)
        if name.startswith("."):
            raise SystemExit(f"error: {source} needs the data section {name}: bytecode cannot carry it")
        info = libbpf.map_info(fd)
        place[fd] = len(maps)
        maps[name] = [info.type, info.key_size, info.value_size, info.max_entries, info.flags]
    programs = {}
    for name in wanted.split(","):
        start = lib.bpf_function_start(program.module, name.encode())
        if not start:
            raise SystemExit(f"error: {source} has no function {name}")
        size = lib.bpf_function_size(program.module, name.encode())
        instructions = np.frombuffer(ctypes.string_at(start, size), INSTRUCTION).copy()
        for at in map_references(instructions):
            instructions["immediate"][at] = place[int(instructions["immediate"][at])]
        programs[name] = instructions.tobytes().hex()
    output.write_text(json.dumps({"maps": maps, "programs": programs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
