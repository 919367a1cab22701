"""Answers on stdout: tables for people, JSON, CSV, Arrow and Parquet for programs.

Colour only on a terminal and without NO_COLOR. Tables on a terminal are drawn by rich; elsewhere they are plain
columns, so that `grep` and `awk` see what people see.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from schemas import times
from ztlens.errors import BadInput

if TYPE_CHECKING:
    import pyarrow

CHUNK = 10_000
RED, GREEN, YELLOW, DIM, BOLD = "31", "32", "33", "2", "1"


def on_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person is looking."""
    return (stream or sys.stdout).isatty()


def coloured(stream: TextIO | None = None) -> bool:
    """Whether escape sequences are welcome (https://no-color.org)."""
    return on_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, *styles: str, on: bool) -> str:
    """`text` in the given styles if `on`."""
    return f"\x1b[{';'.join(styles)}m{text}\x1b[0m" if on and styles else text


def say(text: str) -> None:
    """A line for the person, on stderr: stdout carries only the answer."""
    print(text, file=sys.stderr, flush=True)


def progress(text: str) -> None:
    """A line about long work, for a person who looks on."""
    if on_terminal(sys.stderr):
        say(text)


def document(value: object) -> None:
    """One JSON document; indented on a terminal."""
    print(json.dumps(value, indent=2 if on_terminal() else None, default=_json, ensure_ascii=False))


def line(value: object) -> None:
    """One object of a stream, one line."""
    print(json.dumps(value, default=_json, ensure_ascii=False))


def _json(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Rows under their column names; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(cells) and all(_number_like(row[i]) for row in cells if row[i] != "") for i in range(len(columns))
    ]  # a column of nothing but numbers
    if coloured():
        _rich_table(columns, cells, numeric, title)
        return
    if title:
        print(title)
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        print("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], cells: list[list[str]], numeric: list[bool], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", header_style="bold")
    for name, right in zip(columns, numeric, strict=True):
        drawn.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(text) for text in row))
    Console().print(drawn)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value, default=_json, ensure_ascii=False)
    return str(value).replace("\n", "\\n")


def _number_like(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()


def plain(answer: "pyarrow.Table") -> "pyarrow.Table":
    """`answer` with only types that JSON and CSV know: times as RFC 3339 in UTC, whole decimals as numbers."""
    import pyarrow as pa

    columns = []
    for i, name in enumerate(answer.column_names):
        column = answer.column(i)
        kind = column.type
        if pa.types.is_timestamp(kind):
            scale = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}[kind.unit]
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


def _microseconds(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """`kind` with times inside it in µs: pyarrow makes no Python value of finer ones."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _microseconds(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_microseconds(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _microseconds(field.type)) for field in kind])
    return kind


def rows(answer: "pyarrow.Table") -> Iterator[tuple[Any, ...]]:
    """Rows as tuples of JSON values, a chunk at a time."""
    from decimal import Decimal

    for start in range(0, answer.num_rows, CHUNK):
        part = plain(answer.slice(start, CHUNK))
        for values in zip(*(c.to_pylist(maps_as_pydicts="lossy") for c in part.columns), strict=True):
            yield tuple(
                (int(v) if v == v.to_integral_value() else float(v)) if isinstance(v, Decimal) else v for v in values
            )


def records(answer: "pyarrow.Table") -> Iterator[dict[str, Any]]:
    """Rows as dicts of JSON values; of columns with the same name the last stays."""
    for values in rows(answer):
        yield dict(zip(answer.column_names, values, strict=True))


def answer(result: "pyarrow.Table", output: str) -> None:
    """A whole result in the format asked for: table, json (one array), csv, arrow (IPC stream), parquet."""
    if output == "table":
        table(result.column_names, rows(result))
    elif output == "json":
        _json_array(result)
    elif output == "csv":
        _csv(result)
    else:
        _binary(result, output)


def _json_array(result: "pyarrow.Table") -> None:
    """One document, written as it is made: a row a line."""
    out = sys.stdout
    out.write("[")
    for i, row in enumerate(records(result)):
        out.write((",\n" if i else "\n") + json.dumps(row, default=_json, ensure_ascii=False))
    out.write("\n]\n")


def _csv(result: "pyarrow.Table") -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(result.column_names)
    for row in rows(result):
        writer.writerow("" if v is None else _cell(v) if isinstance(v, list | dict) else v for v in row)


def _binary(result: "pyarrow.Table", output: str) -> None:
    import pyarrow as pa

    if on_terminal():
        raise BadInput(f"{output} is not for a terminal", f"write it to a file: … -o {output} > answer.{output}")
    sink = pa.BufferOutputStream()
    if output == "arrow":
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(result, sink)
    sys.stdout.flush()
    sys.stdout.buffer.write(sink.getvalue())
    sys.stdout.buffer.flush()
