"""What all questions have in common: parameters of time, the words of `observe`, pages; and the shape of an error."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(max_length=4096)]
Words = Annotated[list[Text], Meta(max_length=100)]
Count = Annotated[int, Meta(ge=0)]
Document = dict[str, Any]
"""A document that the command of the same name prints with `-o json`: docs/cli.md describes it."""


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Parameters or a body. Nothing that is not named here is taken."""


class Span(Asked):
    """A time range, [since, until). Nothing given: from the beginning, and up to now."""

    since: Text = ""
    until: Text = ""


class Filters(Asked):
    """The words of `ztlens observe`, with the same meaning."""

    decision: Words = []
    outcome: Words = []
    reason: Words = []
    rule: Words = []
    node: Words = []
    from_ip: Words = []
    to_ip: Words = []
    ip: Words = []
    from_identity: Words = []
    to_identity: Words = []
    identity: Words = []
    from_label: Words = []
    to_label: Words = []
    port: Words = []
    protocol: Words = []
    where: Words = []


class Filtered(Filters):
    """Words and a time range, as `Span`."""

    since: Text = ""
    until: Text = ""


class Paged(Filtered):
    """What comes in pages: `cursor` is the `next` of the page before, of the same question."""

    event: Words = []
    direction: Words = []
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text = ""


class Error(msgspec.Struct):
    """Every error. `exit` is the exit status that the command would have (docs/cli.md)."""

    error: str
    hint: str
    exit: int
