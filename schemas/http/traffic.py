"""Verdicts and flows, one by one."""

from typing import Literal

import msgspec

from schemas.http.asked import Count, Filters, Paged, Words
from schemas.http.policies import Revision, RuleText


class VerdictsAsked(Paged):
    """Parameters of `verdicts`."""


class LiveAsked(Filters):
    """Parameters of `verdicts/live`."""

    event: Words = []
    direction: Words = []


class Record(msgspec.Struct, kw_only=True):
    """What a verdict and a flow both say. `flow` is the id of `flows/{id}`; null: no flow (untracked).

    `src` is who opened the flow; addresses are null where the packet was malformed.
    """

    flow: str | None
    node: str
    ring: str
    decision: str
    outcome: str
    reason: str
    rule: str
    revision: Count
    src: str | None
    sport: Count
    dst: str | None
    dport: Count
    proto: str
    family: Count
    src_identity: str
    dst_identity: str
    packets: Count
    bytes: Count
    packets_original: Count
    bytes_original: Count
    packets_reply: Count
    bytes_reply: Count
    tcp_flags_original: Count
    tcp_flags_reply: Count
    egress: bool
    midstream: bool
    report_only: bool
    untracked: bool
    aggregated: bool
    reversed: bool
    ifindex: Count


class Verdict(Record, kw_only=True):
    """A row of the view `verdicts`; `packets` and `bytes` are its flow's so far."""

    time: str
    position: Count
    event: str
    direction: str


class Verdicts(msgspec.Struct):
    """A page, newest first. `next` null: it is the last."""

    verdicts: list[Verdict]
    next: str | None


class FlowsAsked(Paged):
    """Parameters of `flows`: those that were seen in the span, whole; by what the last event of each says."""

    sort: Literal[
        "last_seen", "bytes", "packets", "src", "dst", "sport", "dport", "proto", "rule", "src_identity",
        "dst_identity", "decision", "node",
    ] = "last_seen"  # fmt: skip
    order: Literal["desc", "asc"] = "desc"


class Flow(Record, kw_only=True):
    """A row of the view `flows`: totals and verdict of its last event. `events` are those that are stored."""

    first_seen: str
    last_seen: str
    ended: bool
    events: Count


class Flows(msgspec.Struct):
    """A page in the order asked for. `next` null: it is the last."""

    flows: list[Flow]
    next: str | None


class Sample(msgspec.Struct):
    """One event of a flow: totals so far."""

    time: str
    event: str
    decision: str
    outcome: str
    reason: str
    rule: str
    revision: Count
    packets_original: Count
    bytes_original: Count
    packets_reply: Count
    bytes_reply: Count


class FlowDetail(msgspec.Struct):
    """A flow, its events oldest first (the newest SAMPLES of them), and why it was decided so."""

    flow: Flow
    samples: list[Sample]
    rule: RuleText
    revision: Revision | None
    left_out: Count
