"""What a loaded datapath is made of, pinned beside it so that a later version can still read it.

The description is JSON in a small map: hash of the C sources, knobs, the dtype of every shared struct, the ring's id.
A datapath whose description has the same hash and knobs is adopted; another one is drained by what it says of itself.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from collector.errors import KernelError
from collector.kernel import probes
from schemas import maps, structs, verdict
from schemas.codes import Counter, word

BPF_DIR = Path(__file__).resolve().parent.parent.parent / "bpf"
MAPS = tuple(one.name for one in maps.MAPS if one.name != "scratch")
"""Those that are pinned; the programs hold on to the other."""
PROGRAMS = {"xdp_ingress": "xdp", "tc_egress": "tc", "mark": "xdp", "reap": "xdp"}
"""Function → type."""
LAYOUT_MAP = "layout"
"""Entry 0: the description, written once. Entry 1: what was attached where (collector.kernel.attach)."""
LAYOUT_BYTES = 262_144
"""Of either entry: notes on the 1,024 interfaces that `watched` has room for take 150 bytes each."""


@dataclass(frozen=True)
class Layout:
    """A datapath's description. `dtypes` is by struct name, `verdict_event` included."""

    ring_id: str
    loader: str  # core or bcc; "" in descriptions older than this
    source: str
    knobs: dict[str, int]
    counters: tuple[str, ...]
    dtypes: dict[str, np.dtype]
    created: int  # ns since 1970 UTC

    def encode(self) -> bytes:
        return msgspec.json.encode(
            {
                "v": 1, "ring_id": self.ring_id, "loader": self.loader, "source": self.source,
                "knobs": self.knobs, "created": self.created,
                "counters": self.counters, "dtypes": {name: _describe(d) for name, d in self.dtypes.items()},
            }
        )  # fmt: skip

    @staticmethod
    def decode(data: bytes) -> "Layout":
        """Raises KernelError for what is not a description."""
        try:
            raw = msgspec.json.decode(data)
            return Layout(
                ring_id=raw["ring_id"], loader=raw.get("loader", ""), source=raw["source"], knobs=raw["knobs"],
                counters=tuple(raw["counters"]),
                dtypes={name: _dtype(fields) for name, fields in raw["dtypes"].items()}, created=raw["created"],
            )  # fmt: skip
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise KernelError(
                f"the pinned description is not one: {error}", "unpin by hand: rm -r its directory"
            ) from error

    def same_program(self, other: "Layout") -> bool:
        """Whether both come from the same sources, sizes and structs; either loader makes the same of these."""
        return (self.source, self.knobs, self.dtypes, self.counters) == (
            other.source, other.knobs, other.dtypes, other.counters,
        )  # fmt: skip

    @property
    def events(self) -> np.dtype:
        """Dtype of the ring's records."""
        return self.dtypes[verdict.VERDICT_EVENT.name]


def new_layout(overrides: dict[str, int], loader: str) -> Layout:
    """The layout of today's sources with these knobs. Raises KernelError for a knob that does not exist or fit."""
    return Layout(
        ring_id=secrets.token_hex(8), loader=loader, source=source_hash(), knobs=knobs(overrides),
        created=time.time_ns(),
        counters=tuple(word(c) for c in Counter),
        dtypes={s.name: structs.dtype(s) for s in (*structs.STRUCTS, verdict.VERDICT_EVENT)},
    )  # fmt: skip


def knobs(overrides: dict[str, int]) -> dict[str, int]:
    """Every knob with its value. Raises KernelError naming the one that is wrong."""
    known = {knob.name: knob.default for knob in structs.KNOBS}
    for name, value in overrides.items():
        if name not in known:
            raise KernelError(f"there is no knob {name}", "knobs are: " + ", ".join(known))
        if not 0 < value < 1 << 31:
            raise KernelError(f"knob {name} is {value}", "knobs are positive numbers below 2,147,483,648")
    out = known | overrides
    if out["RING_BYTES"] & (out["RING_BYTES"] - 1) or out["RING_BYTES"] < 4096:
        raise KernelError(f"knob RING_BYTES is {out['RING_BYTES']}", "the ring's size is a power of two, 4096 or more")
    if out["RULES_MAX"] % 64:
        raise KernelError(f"knob RULES_MAX is {out['RULES_MAX']}", "it is a multiple of 64")
    for knob in structs.KNOBS:  # the verifier bears no more words of rules, LEVELS_FOR no more levels
        if knob.most is not None and out[knob.name] > knob.most:
            raise KernelError(f"knob {knob.name} is {out[knob.name]}", f"it is {knob.most} at most")
    return out


def constants(layout: Layout, judge: bool) -> dict[str, int]:
    """What the fronts take for constant, by name: every size, and which clocks there are. Raises KernelError."""
    clocks = {"JUDGE_CLOCK": int(judge), "NO_COARSE_CLOCK": int(not probes.has("coarse_clock"))}
    return maps.sizes(layout.knobs) | clocks


@cache
def source_hash() -> str:
    """SHA-256 of all C sources, both fronts: one text after the other by name, as bpf/Makefile reckons it."""
    try:
        texts = [path.read_bytes() for path in sorted(BPF_DIR.glob("*.[ch]"))]
    except OSError as error:
        raise KernelError(f"{error.filename}: {error.strerror}", "the sources belong to the package") from error
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _describe(dtype: np.dtype) -> list[list[Any]]:
    """[[name, format, count], …]; packed, as schemas.structs makes them."""
    out: list[list[Any]] = []
    for name in dtype.names or ():
        field = dtype[name]
        base, shape = field.subdtype if field.subdtype else (field, (1,))
        out.append([name, f"V{base.itemsize}" if base.kind == "V" else base.str, shape[0]])
    return out


def _dtype(fields: list[list[Any]]) -> np.dtype:
    return np.dtype([(name, form, (count,)) if count > 1 else (name, form) for name, form, count in fields])
