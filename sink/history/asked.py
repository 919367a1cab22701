"""Questions of the HTTP API (`schemas.http`) as SQL: their time range, their filters, their place among pages."""

import base64
import binascii
import hashlib
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import msgspec

from schemas import times
from schemas.filters import Filters, predicate
from schemas.http import Paged, RevisionsAsked
from sink.errors import QueryError
from sink.history import moments

_WORDS = [field.name for field in fields(Filters) if field.name not in ("since", "until")]
K = TypeVar("K")
Bounds = tuple[int | None, int | None]
"""[since, until) in ns since 1970; None: no bound."""


class Spanned(Protocol):
    """What has a time range."""

    since: str
    until: str


def moment(text: str, now: datetime | None = None) -> int | None:
    """ns since 1970: digits say them, all else is as people write it; None for an empty text.

    Raises InputError, and QueryError for what history cannot hold.
    """
    if not text.strip():
        return None
    if text.isascii() and text.isdigit():
        found = int(text) if len(text) < 30 else 1 << 64
    else:
        found = times.nanoseconds(times.moment(text, now))
    moments.check(found)
    return found


def span(asked: Spanned) -> Bounds:
    """Its time range. Raises InputError, QueryError, also for one that runs backwards."""
    now = datetime.now(UTC)
    since, until = moment(asked.since, now), moment(asked.until, now)
    if since is not None and until is not None and since >= until:
        raise QueryError("until is not later than since", "name a span that has a length")
    return since, until


def words(asked: msgspec.Struct) -> str:
    """The predicate of its filters over the columns of a view. Raises InputError."""
    return predicate(filters(asked))


def filters(asked: msgspec.Struct) -> Filters:
    """Its filters, without a time range."""
    given: dict[str, Any] = {name: tuple(getattr(asked, name, ())) for name in _WORDS}
    return Filters(**given)


# ---- pages


class _Place(msgspec.Struct, array_like=True):
    digest: str
    bounds: tuple[int | None, int | None]
    key: Any


def _digest(asked: msgspec.Struct) -> str:
    """Of the question, whatever page of it, however long."""
    given = msgspec.to_builtins(asked)
    rest = {name: value for name, value in given.items() if name not in ("cursor", "limit")}
    return hashlib.sha256(msgspec.json.encode([type(asked).__name__, rest])).hexdigest()[:16]


def cursor(asked: Paged | RevisionsAsked, bounds: Bounds, key: Any) -> str:
    """Where the next page begins: after `key`, in the span that was meant when the first was asked for."""
    packed = msgspec.msgpack.encode(_Place(_digest(asked), bounds, key))
    return base64.urlsafe_b64encode(_checksum(packed) + packed).decode().rstrip("=")


def _checksum(packed: bytes) -> bytes:
    """Tells a cursor that was written by hand; what it says is not secret."""
    return hashlib.sha256(packed).digest()[:8]


def place(asked: Paged | RevisionsAsked, kind: type[K]) -> tuple[Bounds, K] | None:
    """What `cursor` said; None: the first page is asked for. Raises QueryError for what is no cursor of it."""
    if not asked.cursor:
        return None
    try:
        raw = base64.b64decode(asked.cursor + "=" * (-len(asked.cursor) % 4), b"-_", validate=True)
        checksum, packed = raw[:8], raw[8:]
        if checksum != _checksum(packed):
            raise ValueError("altered")
        found = msgspec.msgpack.decode(packed, type=_Place)
        if found.digest != _digest(asked):
            raise QueryError("cursor: it is of another question", "give the parameters of the page before with it")
        key = msgspec.convert(found.key, kind)
    except (binascii.Error, msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise QueryError("cursor: not one of this API", "take the `next` of the page before, or none") from error
    moments.check(*found.bounds)
    return found.bounds, key
