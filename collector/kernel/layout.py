"""What a loaded datapath is made of, pinned beside it so that a later version can still read it.

The description is JSON in a small map: hash of the C sources, knobs, the dtype of every shared struct, the ring's id.
A datapath whose description has the same hash and knobs is adopted; another one is drained by what it says of itself.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from collector.errors import KernelError
from collector.kernel.sources import knobs, source_hash
from schemas import structs, verdict
from schemas.codes import Counter, word

LAYOUT_BYTES = 262_144
"""Of either entry of its map. 0: the description, written once; 1: what was attached where (collector.kernel.attach),
150 bytes for each of the 1,024 interfaces that `watched` has room for."""


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


def new_layout(overrides: dict[str, int], loader: str = "") -> Layout:
    """The layout of today's sources with these knobs. Raises KernelError for a knob that does not exist or fit."""
    return Layout(
        ring_id=secrets.token_hex(8), loader=loader, source=source_hash(), knobs=knobs(overrides),
        created=time.time_ns(),
        counters=tuple(word(c) for c in Counter),
        dtypes={s.name: structs.dtype(s) for s in (*structs.STRUCTS, verdict.VERDICT_EVENT)},
    )  # fmt: skip


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
