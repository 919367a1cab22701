"""Requests as the structs of `schemas.http`."""

import re
from typing import Any, TypeVar, get_origin, get_type_hints

import msgspec
from starlette.requests import ClientDisconnect, Request

from policy.document import MAX_BYTES
from sink.errors import QueryError

BODY_MAX = 1 << 20
POLICY_MAX = 4 * MAX_BYTES
"""Two policies, whose line breaks and quotes JSON doubles."""
Q = TypeVar("Q")
_AT = re.compile(r" - at `\$\.?([^`]*)`$")


def parameters(request: Request, kind: type[Q]) -> Q:
    """The query of a request. Raises QueryError."""
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name not in hints:
            listed = ", ".join(hints) or "none"
            raise QueryError(f"parameter {name[:100]!r} is not known", f"known are: {listed}")
        if get_origin(hints[name]) is list:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise QueryError(f"parameter {name} is given twice", "give it once")
        else:
            given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise QueryError(_said(error), "GET /api/v1/openapi.json says what it takes") from error


def _said(error: msgspec.ValidationError) -> str:
    text = str(error)
    place = _AT.search(text)
    return f"{place[1]}: {text[: place.start()]}" if place and place[1] else text


async def raw(request: Request, longest: int) -> bytes:
    """The body of a request. Raises QueryError."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > longest:
                raise QueryError(f"the question is longer than {longest} bytes", "shorten it")
    except ClientDisconnect as error:
        raise QueryError("the question broke off", "send all of it") from error
    return bytes(body)


def decoded(body: bytes, kind: type[Q], what: str, hint: str) -> Q:
    """A question. Raises QueryError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QueryError(f"{what}: {error}", hint) from error
