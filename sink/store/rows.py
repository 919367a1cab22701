"""A batch as it is stored: every conversion is one numpy operation over the whole batch."""

import numpy as np
import pyarrow as pa

from schemas.envelope import Envelope
from schemas.errors import EnvelopeError
from schemas.tables import PAIR_SUMS, VERDICT_COLUMNS
from schemas.verdict import DTYPE

ROWS_MAX = 1 << 20
"""More rows than any collector puts into a message; a larger claim is corrupt, and would cost its size in memory."""
_TOTAL_MAX = 1 << 60
"""Packets or bytes of one flow: more is corrupt, and sums of such would not fit. 400 Gbit/s take 267 days for it."""
_TIME_MAX = (1 << 63) - 1
_POSITION_MAX = (1 << 64) - 1
_OWN = {0: (0, 0), 4: (0, (1 << 32) - 1), 6: ((1 << 64) - 1, (1 << 64) - 1)}
"""Family → the bits of an address's halves that it has. 0: malformed, there is no address."""
_HIGH, _LOW = (np.array([_OWN.get(family, (0, 0))[i] for family in range(max(_OWN) + 1)], "<u8") for i in (0, 1))
_ADDRESSES = tuple(name for name in DTYPE.names or () if DTYPE[name].kind == "V")


def stored_columns(batch: Envelope) -> dict[str, np.ndarray]:
    """Column of store.verdicts → array of batch.n values; all but `ring`.

    `position` is in bytes of the ring, `time` datetime64[ns] in UTC, addresses are two halves in machine byte order.
    Raises EnvelopeError for a batch whose numbers cannot be stored.
    """
    if batch.n > ROWS_MAX:
        raise EnvelopeError(f"{batch.n} rows in one batch, at most {ROWS_MAX}")
    if batch.end > _POSITION_MAX:
        raise EnvelopeError(f"position {batch.end} is beyond 64 bits")
    given = batch.columns()
    first, last = int(given["time"].min()) + batch.clock, int(given["time"].max()) + batch.clock
    if first < 0 or last > _TIME_MAX:
        raise EnvelopeError(f"time {first} to {last} ns is out of range")
    for name, _ in PAIR_SUMS[1:]:
        if (most := int(given[name].max())) > _TOTAL_MAX:
            raise EnvelopeError(f"{name} of {most} is out of range")
    family = given["family"]
    if not np.isin(family, [*_OWN]).all():
        raise EnvelopeError(f"a family is none of {', '.join(map(str, _OWN))}")
    out = {
        "position": batch.positions(),
        "time": (given["time"].astype("<u8") + np.uint64(batch.clock & _POSITION_MAX)).view("M8[ns]"),
    }
    for name, column in given.items():
        if name in _ADDRESSES:
            halves = column.view(">u8").reshape(-1, 2).astype("<u8")  # whatever a sender put where there is no address
            out[f"{name}_hi"], out[f"{name}_lo"] = halves[:, 0] & _HIGH[family], halves[:, 1] & _LOW[family]
        elif name != "time":
            out[name] = column.astype(DTYPE[name], copy=False)
    return out


def wire_columns(found: pa.Table) -> dict[str, np.ndarray]:
    """Column of schemas.verdict → array (n,) of rows of store.verdicts: `stored_columns` undone, with wall clock."""
    out = {}
    for name in DTYPE.names or ():
        if name in _ADDRESSES:
            halves = np.empty((found.num_rows, 2), ">u8")
            halves[:, 0], halves[:, 1] = found[f"{name}_hi"].to_numpy(), found[f"{name}_lo"].to_numpy()
            out[name] = halves.view(DTYPE[name]).ravel()
        else:
            out[name] = found[name].to_numpy().view(DTYPE[name])
    return out


def table(parts: list[tuple[int, dict[str, np.ndarray], int, int]]) -> pa.Table:
    """Rows [i, j) of each part (ring number, columns, i, j) as one Arrow table with the columns of store.verdicts."""
    columns = {"ring": np.concatenate([np.full(j - i, ring, "<u4") for ring, _, i, j in parts])}
    for name, _ in VERDICT_COLUMNS[1:]:
        columns[name] = np.concatenate([given[name][i:j] for _, given, i, j in parts])
    return pa.table({name: pa.array(columns[name]) for name, _ in VERDICT_COLUMNS})
