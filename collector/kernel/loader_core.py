"""The loader `core`: an object built once, loaded through libbpf. Neither clang nor headers nor BCC is needed here.

The object carries the hash of the sources it was built from as text: one of other sources is not used.
"""

from collector.errors import KernelError
from collector.kernel.bpf_object import BpfObject
from collector.kernel.layout import BPF_DIR, MAPS, PROGRAMS, Layout, constants, source_hash
from collector.kernel.loaded import Loaded, of_maps
from schemas.maps import MAPS as DESCRIBED
from schemas.structs import CONSTANTS, dtype

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


def load(layout: Layout, judge: bool = False) -> Loaded:
    """Make maps of the layout's sizes, load the programs. Raises KernelError."""
    room = constants(layout, judge)
    with BpfObject(read_object()) as opened:
        for one in DESCRIBED:
            opened.size_map(one.name, one.entries(room), one.width(room))
        frozen = opened.constants(CONSTANTS_SECTION, dtype(CONSTANTS))
        for field in frozen.dtype.names or ():
            if field.upper() in room:
                frozen[field] = room[field.upper()]
        try:
            # 0, as BCC's have: a link's program can only be replaced by one of the same expected attach type.
            opened.load(dict.fromkeys(PROGRAMS, 0))
        except KernelError as error:
            raise error if getattr(error, "__notes__", ()) else of_maps(error) from error
        del frozen
        return Loaded(
            {name: opened.map_fd(name) for name in MAPS}, {name: opened.program_fd(name) for name in PROGRAMS}
        )
