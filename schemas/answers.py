"""Answers to SQL as they come from a sink (Arrow), and their values as JSON has them."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa

from schemas import times

CHUNK = 10_000
_SCALE = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}


class BrokenOffError(Exception):
    """An answer ended early, for the reason that its last batch gave: `status` as of HTTP."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def stream(file: Any) -> Iterator[Any]:
    """The schema, then the batches of an IPC stream, which may end with the error of `sink.api.streams`.

    Raises BrokenOffError, pa.ArrowException, OSError.
    """
    reader = pa.ipc.open_stream(file)
    yield reader.schema
    try:
        while True:
            batch, said = reader.read_next_batch_with_custom_metadata()
            if said and "error" in said:
                told = {key.decode(): value.decode() for key, value in said.items()}
                raise BrokenOffError(told["error"], told["hint"], int(told["status"]))
            yield batch
    except StopIteration:
        return


def plain(answer: pa.Table) -> pa.Table:
    """`answer` with only types that JSON and CSV know: times as RFC 3339 in UTC, whole decimals as numbers."""
    columns = []
    for i, name in enumerate(answer.column_names):
        column = answer.column(i)
        kind = column.type
        if pa.types.is_timestamp(kind):
            scale = _SCALE[kind.unit]
            values = column.cast(pa.int64()).to_pylist()
            column = pa.array([None if v is None else times.rfc3339(v * scale) for v in values], pa.string())
        elif pa.types.is_duration(kind) or pa.types.is_time(kind) or pa.types.is_interval(kind):
            column = pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            column = pa.array([None if v is None else v.hex() for v in column.to_pylist()], pa.string())
        elif pa.types.is_nested(kind):
            column = column.cast(_microseconds(kind), safe=False)
        columns.append((name, column))
    return pa.Table.from_arrays([column for _, column in columns], names=[name for name, _ in columns])


def _microseconds(kind: pa.DataType) -> pa.DataType:
    """`kind` with times inside it in µs: pyarrow makes no Python value of finer ones."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _microseconds(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_microseconds(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _microseconds(field.type)) for field in kind])
    return kind


def rows(answer: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows as tuples of JSON values, a chunk at a time."""
    for start in range(0, answer.num_rows, CHUNK):
        part = plain(answer.slice(start, CHUNK))
        for values in zip(*(c.to_pylist(maps_as_pydicts="lossy") for c in part.columns), strict=True):
            yield tuple(
                (int(v) if v == v.to_integral_value() else float(v)) if isinstance(v, Decimal) else v for v in values
            )
