"""The loader `core`: an object built once, loaded through libbpf. Neither clang nor headers nor BCC is needed here.

The object carries the hash of the sources it was built from as text: one of other sources is not used.
"""

import sys
from collections.abc import Mapping

from collector.errors import KernelError, VerifierError
from collector.kernel.bpf_object import BpfObject
from collector.kernel.loaded import Loaded, of_maps
from collector.kernel.sources import BPF_DIR, MAPS, PROGRAMS, source_hash
from schemas.maps import MAPS as DESCRIBED
from schemas.structs import CONSTANTS, places

OBJECT = "core.bpf.o"
CONSTANTS_SECTION = ".rodata.constants"
_BUILD = "build it: make -C bpf (scripts/setup.sh does)"


def read_object() -> bytes:
    """The object of today's sources. Raises KernelError if it is not there or of others."""
    path = BPF_DIR / OBJECT
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}", _BUILD) from error
    if source_hash().encode() not in data:
        raise KernelError(f"{path} was built from other sources", _BUILD)
    return data


def load(room: Mapping[str, int]) -> Loaded:
    """Make maps of these sizes (sources.constants), load the programs. Raises VerifierError, KernelError."""
    with BpfObject(read_object()) as opened:
        for one in DESCRIBED:
            opened.size_map(one.name, one.entries(room), one.width(room))
        frozen = opened.constants(CONSTANTS_SECTION)
        for field, (at, size) in places(CONSTANTS).items():
            if field.upper() in room:
                frozen[at : at + size] = room[field.upper()].to_bytes(size, sys.byteorder)
        try:
            # 0, as BCC's have: a link's program can only be replaced by one of the same expected attach type.
            opened.load(dict.fromkeys(PROGRAMS, 0))
        except VerifierError:
            raise
        except KernelError as error:
            raise of_maps(error) from error
        del frozen
        return Loaded(
            {name: opened.map_fd(name) for name in MAPS}, {name: opened.program_fd(name) for name in PROGRAMS}
        )
