"""What is loaded: the C sources, the maps and programs in them, and the sizes they are given.

No numpy here, nor in what loads: a start loads the kernel side while Python imports what comes after (`loader`).
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from collector.errors import KernelError
from collector.kernel import probes
from schemas import maps, structs

BPF_DIR = Path(__file__).resolve().parent.parent.parent / "bpf"
MAPS = tuple(one.name for one in maps.MAPS if one.name != "scratch")
"""Those that are pinned; the programs hold on to the other."""
LAYOUT_MAP = "layout"
"""The map that describes the others (layout.py)."""
PROGRAMS = {"xdp_ingress": "xdp", "tc_egress": "tc", "mark": "xdp", "reap": "xdp"}
"""Function → type."""


def knobs(overrides: Mapping[str, int]) -> dict[str, int]:
    """Every knob with its value. Raises KernelError naming the one that is wrong."""
    known = {knob.name: knob.default for knob in structs.KNOBS}
    for name, value in overrides.items():
        if name not in known:
            raise KernelError(f"there is no knob {name}", "knobs are: " + ", ".join(known))
        if not 0 < value < 1 << 31:
            raise KernelError(f"knob {name} is {value}", "knobs are positive numbers below 2,147,483,648")
    out = known | dict(overrides)
    if out["RING_BYTES"] & (out["RING_BYTES"] - 1) or out["RING_BYTES"] < 4096:
        raise KernelError(f"knob RING_BYTES is {out['RING_BYTES']}", "the ring's size is a power of two, 4096 or more")
    if out["RULES_MAX"] % 64:
        raise KernelError(f"knob RULES_MAX is {out['RULES_MAX']}", "it is a multiple of 64")
    for knob in structs.KNOBS:  # the verifier bears no more words of rules, LEVELS_FOR no more levels
        if knob.most is not None and out[knob.name] > knob.most:
            raise KernelError(f"knob {knob.name} is {out[knob.name]}", f"it is {knob.most} at most")
    return out


def constants(overrides: Mapping[str, int], judge: bool) -> dict[str, int]:
    """What the fronts take for constant, by name: every size with these knobs, and which clocks there are.

    Raises KernelError.
    """
    clocks = {"JUDGE_CLOCK": int(judge), "NO_COARSE_CLOCK": int(not probes.has("coarse_clock"))}
    return maps.sizes(knobs(overrides)) | clocks


@cache
def source_hash() -> str:
    """SHA-256 of all C sources, both fronts: one text after the other by name, as bpf/Makefile reckons it."""
    try:
        texts = [path.read_bytes() for path in sorted(BPF_DIR.glob("*.[ch]"))]
    except OSError as error:
        raise KernelError(f"{error.filename}: {error.strerror}", "the sources belong to the package") from error
    return hashlib.sha256(b"".join(texts)).hexdigest()
