"""Answers on stdout: tables for people, JSON, CSV, Arrow and Parquet for programs.

Colour only on a terminal and without NO_COLOR. Tables on a terminal are drawn by rich; elsewhere they are plain
columns, so that `grep` and `awk` see what people see.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from schemas.cells import cell, json_value
from schemas.cells import numeric as numbers
from ztlens.errors import BadInput

if TYPE_CHECKING:
    import pyarrow

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
    print(json.dumps(value, indent=2 if on_terminal() else None, default=json_value, ensure_ascii=False))


def line(value: object) -> None:
    """One object of a stream, one line."""
    print(json.dumps(value, default=json_value, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Rows under their column names; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    numeric = numbers(cells, len(columns))
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


def rows(answer: "pyarrow.Table") -> Iterator[tuple[Any, ...]]:
    """Rows as tuples of JSON values, a chunk at a time."""
    from schemas import answers

    return answers.rows(answer)


def records(answer: "pyarrow.Table") -> Iterator[dict[str, Any]]:
    """Rows as dicts of JSON values."""
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
        out.write((",\n" if i else "\n") + json.dumps(row, default=json_value, ensure_ascii=False))
    out.write("\n]\n")


def _csv(result: "pyarrow.Table") -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(result.column_names)
    for row in rows(result):
        writer.writerow("" if v is None else cell(v) if isinstance(v, list | dict) else v for v in row)


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
