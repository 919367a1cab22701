"""Batches as JSON and CSV. Times are RFC 3339 in UTC with all their nanoseconds, whole decimals are plain numbers."""

import io
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

_encoder = msgspec.json.Encoder(decimal_format="number")


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with times as text, so that no nanosecond is lost on the way to Python."""
    columns, fields = [], []
    for column, field in zip(batch.columns, batch.schema, strict=True):
        columns.append(_plain(column))
        fields.append(pa.field(field.name, columns[-1].type))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
    return column.cast(_coarse(column.type), safe=False) if pa.types.is_nested(column.type) else column


def _coarse(kind: pa.DataType) -> pa.DataType:
    """Inside lists and structs Python has no nanoseconds: microseconds there."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_map(kind):
        return pa.map_(_coarse(kind.key_type), _coarse(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(_coarse(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _coarse(field.type)) for field in kind])
    return kind


def records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A dict a row."""
    given = plain(batch)
    columns = [column.to_pylist(maps_as_pydicts="strict") for column in given.columns]
    names = given.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def json_rows(batch: pa.RecordBatch) -> list[bytes]:
    """A JSON object a row."""
    return [_encoder.encode(record) for record in records(batch)]


def csv(batch: pa.RecordBatch, header: bool) -> bytes:
    """RFC 4180; nested values as JSON text."""
    given = plain(batch)
    columns = [
        pa.array(
            [None if v is None else _encoder.encode(v).decode() for v in column.to_pylist(maps_as_pydicts="strict")]
        )
        if pa.types.is_nested(column.type)
        else column
        for column in given.columns
    ]
    out = io.BytesIO()
    flat = pa.RecordBatch.from_arrays(columns, names=given.schema.names)
    pa.csv.write_csv(flat, out, pa.csv.WriteOptions(include_header=header, quoting_style="needed"))
    return out.getvalue()
