"""Answers to SQL: asked for as Arrow, which has their types and tells why one broke off."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas import answers
from web.errors import RefusedError
from web.source import Source

ROWS = 500
"""Rows that are shown; files have all."""


@dataclass(frozen=True)
class Answer:
    """`rows` of JSON values; `numbers`: indices of columns that can be drawn; `more`: there are rows beyond."""

    columns: tuple[str, ...]
    numbers: tuple[int, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


async def ask(source: Source, sql: str, parameters: dict[str, Any]) -> Answer:
    """The first ROWS. Raises AwayError, RefusedError."""
    body = {"sql": sql, "parameters": parameters or None, "format": "arrow", "limit": ROWS + 1}
    content = await source.raw("sql", body)
    try:
        schema, *batches = answers.stream(content)
    except answers.BrokenOffError as error:
        raise RefusedError(str(error), error.hint, error.status) from error
    except (pa.ArrowException, OSError) as error:
        raise RefusedError("The answer broke off", "Ask for less: a LIMIT, a shorter time.", 503) from error
    table = pa.Table.from_batches(batches, schema)
    numbers = tuple(i for i, field in enumerate(schema) if _is_number(field.type))
    return Answer(tuple(schema.names), numbers, tuple(answers.rows(table.slice(0, ROWS))), table.num_rows > ROWS)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
