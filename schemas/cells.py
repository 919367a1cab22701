"""Values in a table for people: one line of text each."""

import json
from collections.abc import Sequence


def cell(value: object) -> str:
    """Its text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        return json.dumps(value, default=json_value, ensure_ascii=False)
    return str(value).replace("\n", "\\n")


def json_value(value: object) -> object:
    """What JSON has no word for."""
    return value.hex() if isinstance(value, bytes) else str(value)


def numeric(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Of each column: whether there is nothing in it but numbers."""
    return [bool(rows) and all(_number_like(row[i]) for row in rows if row[i] != "") for i in range(columns)]


def _number_like(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()
