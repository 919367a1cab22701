"""What can be asked by SQL, how the sink and the nodes do, and a first look at it all."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.http.asked import Asked, Count, Text
from schemas.http.policies import Pending
from schemas.http.sums import Split, Sums


class Column(msgspec.Struct):
    """Of a view."""

    name: str
    type: str
    doc: str


class View(msgspec.Struct):
    """What can be asked by SQL."""

    name: str
    doc: str
    columns: list[Column]


class Schema(msgspec.Struct):
    """All views."""

    views: list[View]


class LedgerAsked(Asked):
    """Parameters of `ledger`: rings heard of since then."""

    since: Text = ""


class Rates(msgspec.Struct):
    """Verdicts in each of the last seconds of the span, oldest first; `times` is where each begins.

    Without ends: an end has the time of its flow's last packet, and comes up to minutes later.
    """

    times: list[str]
    allowed: list[Count]
    denied: list[Count]
    would_deny: list[Count]


class DeniedPair(Sums):
    """A pair that was denied, by name."""

    src_identity: str
    dst_identity: str
    dport: Count
    proto: str
    rule: str
    outcome: str
    last_seen: str


class RuleSums(Sums):
    """What a rule decided."""

    rule: str
    decision: str
    last_seen: str


class NodeHealth(msgspec.Struct):
    """`state`: live, silent or closed. Losses are of all time; `flows_live` null: not counted yet. `pending`: as
    in http.NodePolicy."""

    node: str
    ring: str
    state: str
    mode: str | None
    revision: Count | None
    pending: Pending | None
    flows_live: Count | None
    samples_lost: Count
    held_back: Count
    gaps: Count
    in_flight: int | None
    balanced: bool
    last: str | None


class OverviewAsked(Asked):
    """Parameters of `overview`: the span of totals and tops, and how many. Rates are of the last minute of it."""

    since: Text = "1h"
    until: Text = ""
    top: Annotated[int, Meta(ge=1, le=100)] = 10


class Overview(msgspec.Struct):
    """What a first look wants, in one answer. Nodes, `balanced`, `lag` and notices are of now, whatever the span.

    `lag`: messages that wait in the streams; null: NATS is away.
    """

    time: str
    rates: Rates
    totals: Split
    top_denied: list[DeniedPair]
    top_rules: list[RuleSums]
    nodes: list[NodeHealth]
    balanced: bool
    lag: Count | None
    notices: list[str]
