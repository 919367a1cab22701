"""A batch of verdicts on the wire: columnar msgpack, subject `ztlens.verdicts.v1.<node>`.

    {"v": 1, "node": str, "ring": str, "start": int, "end": int, "stride": int, "n": int, "clock": int, "rev": int,
     "t": {column: "<u4"}, "c": {column: bin}}

`[start, end)` are byte positions in the ring, so they are the batch's place in the sequence of all events;
`n` = (end - start) / stride rows. `clock` is added to `time` to get ns since 1970 UTC. Columns are raw
little-endian arrays, addresses 16 bytes a row in network order (`V16`). Within v1 columns are only added: a
reader skips those it does not know and takes zeros for those it misses.

A replayed batch says so: `replay` is the session, `due` when it was to be sent, in ns since the replay began. Its
verdicts need not be neighbours in the ring, so `[start, end)` is their place among those of this ring in the replay
(a hole is a lost message), and the column `position` tells where each was recorded; `clock` is 0.
"""

import msgspec
import numpy as np

from schemas.errors import EnvelopeError
from schemas.verdict import DTYPE, STRIDE

VERSION = 1
_POSITION = np.dtype("<u8")
TYPES: dict[str, str] = {
    name: (DTYPE[name].str if DTYPE[name].kind != "V" else f"V{DTYPE[name].itemsize}") for name in DTYPE.names or ()
}
_REPLAYED_TYPES = TYPES | {"position": _POSITION.str}


class Envelope(msgspec.Struct, frozen=True):
    """A decoded batch; `columns()` gives its rows."""

    v: int
    node: str
    ring: str
    start: int
    end: int
    stride: int
    n: int
    clock: int
    rev: int
    t: dict[str, str]
    c: dict[str, bytes]
    replay: str = ""  # session; "": live
    due: int = 0

    def columns(self) -> dict[str, np.ndarray]:
        """Column → array of n values, exactly the columns of `schemas.verdict`; missing ones are zeros."""
        out = {}
        for name in DTYPE.names or ():
            wanted = DTYPE[name]
            raw = self.c.get(name)
            out[name] = np.zeros(self.n, wanted) if raw is None else np.frombuffer(raw, np.dtype(self.t[name]))
        return out

    def positions(self) -> np.ndarray:
        """Where each row stands in the ring: u8 of shape (n,), in bytes."""
        if self.replay and "position" in self.c:
            return np.frombuffer(self.c["position"], _POSITION)
        return np.uint64(self.start) + np.arange(self.n, dtype=_POSITION) * np.uint64(self.stride)

    def rows(self) -> np.ndarray:
        """The batch as one structured array of `schemas.verdict.DTYPE`, shape (n,)."""
        out = np.zeros(self.n, DTYPE)
        for name, column in self.columns().items():
            out[name] = column
        return out


_decoder = msgspec.msgpack.Decoder(Envelope)
_encoder = msgspec.msgpack.Encoder()


def encode(rows: np.ndarray, *, node: str, ring: str, start: int, clock: int, rev: int, stride: int = STRIDE) -> bytes:
    """Pack `rows` (dtype `schemas.verdict.DTYPE`, shape (n,)), which begin at ring position `start`.

    `stride` differs from today's only for the ring of an older layout.
    """
    n = len(rows)
    return _encoder.encode(
        {
            "v": VERSION, "node": node, "ring": ring, "start": start, "end": start + n * stride, "stride": stride,
            "n": n, "clock": clock, "rev": rev, "t": TYPES,
            "c": {name: np.ascontiguousarray(rows[name]).tobytes() for name in TYPES},
        }
    )  # fmt: skip


def encode_replayed(
    columns: dict[str, np.ndarray], *, node: str, ring: str, start: int, replay: str, due: int
) -> bytes:
    """Pack recorded verdicts, `time` in ns since 1970 UTC, for a replay; a column `position` u8, all of shape (n,)."""
    n = len(columns["position"])
    return _encoder.encode(
        {
            "v": VERSION, "node": node, "ring": ring, "start": start, "end": start + n * STRIDE, "stride": STRIDE,
            "n": n, "clock": 0, "rev": int(columns["revision"].max(initial=0)), "t": _REPLAYED_TYPES,
            "c": {name: columns[name].tobytes() for name in _REPLAYED_TYPES},
            "replay": replay, "due": due,
        }
    )  # fmt: skip


def decode(data: bytes) -> Envelope:
    """Unpack and check a batch. Raises EnvelopeError for anything `columns()` could not make sense of."""
    try:
        batch = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        raise EnvelopeError(f"not a batch of verdicts: {error}") from error
    if batch.v != VERSION:
        raise EnvelopeError(f"batch version {batch.v}, this reader knows {VERSION}")
    if batch.stride <= 0 or batch.n <= 0 or batch.start < 0 or batch.end - batch.start != batch.n * batch.stride:
        raise EnvelopeError(f"range [{batch.start}, {batch.end}) does not hold {batch.n} records of {batch.stride}")
    for name in DTYPE.names or ():
        raw = batch.c.get(name)
        if raw is None:
            continue
        try:
            given = np.dtype(batch.t[name])
        except (KeyError, TypeError) as error:
            raise EnvelopeError(f"column {name}: no usable type") from error
        if given.kind != DTYPE[name].kind or given.itemsize > DTYPE[name].itemsize:
            raise EnvelopeError(f"column {name}: {given.str} does not fit {DTYPE[name].str}")
        if len(raw) != batch.n * given.itemsize:
            raise EnvelopeError(f"column {name}: {len(raw)} bytes, expected {batch.n} × {given.itemsize}")
    if batch.replay and len(batch.c.get("position", b"")) not in (0, batch.n * _POSITION.itemsize):
        raise EnvelopeError(f"column position: {len(batch.c['position'])} bytes, expected {batch.n} × 8")
    return batch
