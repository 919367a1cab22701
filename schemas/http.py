"""What goes over the HTTP API of the sink (`/api/v1`): parameters, bodies and answers. OpenAPI is made from these.

Times are RFC 3339 in UTC with nanoseconds. A parameter of time is that, a date, a duration back from now (`10m`), or
a whole number: ns since 1970. A list parameter may come several times: these are OR, different parameters are AND.
"""

from typing import Annotated, Any, Literal

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


# ---- verdicts and flows


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


class RuleText(msgspec.Struct):
    """The rule that decided, as the revision had it; `action` and `text` are empty for what is no rule of a policy."""

    name: str
    action: str
    report_only: bool
    text: str


class Revision(msgspec.Struct):
    """A policy that came into force on a node. `text` is null in lists, and where it was too large to record."""

    node: str
    ring: str
    revision: Count
    time: str
    default: str
    hash: str
    who: str
    state: str
    mode: str
    text: str | None = None


class FlowDetail(msgspec.Struct):
    """A flow, its events oldest first (the newest SAMPLES of them), and why it was decided so."""

    flow: Flow
    samples: list[Sample]
    rule: RuleText
    revision: Revision | None
    left_out: Count


# ---- sums


class Sums(msgspec.Struct):
    """`flows` opened in the span, packets and bytes in it (both directions)."""

    flows: Count
    packets: Count
    bytes: Count


class Split(msgspec.Struct, kw_only=True):
    """By what was decided and what came of it: `would_deny` was denied and passed (monitor, report-only)."""

    allowed: Sums
    denied: Sums
    would_deny: Sums


class HistogramAsked(Filtered):
    """Parameters of `histogram`. As many buckets at most; their width is a round one."""

    buckets: Annotated[int, Meta(ge=1, le=1000)] = 120


class Series(msgspec.Struct):
    """A number a bucket."""

    flows: list[Count]
    packets: list[Count]
    bytes: list[Count]


class Histogram(msgspec.Struct):
    """Buckets of `width` seconds, the first of which begins at `since`; the last ends at `until`.

    `exact` false: finer rows than the span needs are deleted, and what is told of its ends reaches beyond it.
    """

    since: str
    until: str
    width: Count
    times: list[str]
    allowed: Series
    denied: Series
    would_deny: Series
    exact: bool


Group = Literal["identity", "address", "network", "label"]
Volume = Literal["flows", "packets", "bytes"]


class Grouped(Filtered):
    """How ends are grouped: `label` names the key of `group=label`; prefix lengths are those of `group=network`."""

    group: Group = "identity"
    label: Text = ""
    prefix_4: Annotated[int, Meta(ge=0, le=32)] = 24
    prefix_6: Annotated[int, Meta(ge=0, le=128)] = 64
    by: Volume = "flows"


class MapAsked(Grouped):
    """Parameters of `map`: the `nodes` with most of `by`, and the largest `edges` between them."""

    nodes: Annotated[int, Meta(ge=1, le=500)] = 200
    edges: Annotated[int, Meta(ge=1, le=5000)] = 2000


class MapNode(Split, kw_only=True):
    """An end: a name, an address, a network or `key=value` (empty: it has no such label). `labels`: of an identity."""

    id: str
    labels: dict[str, str]


class MapEdge(Split, kw_only=True):
    """From who opened the flows to whom they were opened, by id."""

    source: str
    destination: str


class LeftOut(Split, kw_only=True):
    """What is not in the answer because of its bounds."""

    nodes: Count
    edges: Count


class Map(msgspec.Struct):
    """Nodes and edges, largest first. `exact`: see Histogram."""

    nodes: list[MapNode]
    edges: list[MapEdge]
    left_out: LeftOut
    exact: bool


class MatrixAsked(Grouped):
    """Parameters of `matrix`. `ports`: a destination is `id port/proto`."""

    ports: bool = False
    rows: Annotated[int, Meta(ge=1, le=500)] = 100
    columns: Annotated[int, Meta(ge=1, le=500)] = 100


class Cell(Split, kw_only=True):
    """Index in `sources`, index in `destinations`."""

    source: Count
    destination: Count


class MatrixColumn(msgspec.Struct):
    """A destination; `port` and `proto` are null unless asked for."""

    id: str
    port: Count | None
    proto: str | None


class Matrix(msgspec.Struct):
    """Sources and destinations, largest first, and the cells that are not empty. `exact`: see Histogram."""

    sources: list[str]
    destinations: list[MatrixColumn]
    cells: list[Cell]
    left_out: LeftOut
    exact: bool


# ---- policy


class PolicyAsked(Span):
    """Parameters of `policy`: the span in which hits are counted."""

    node: Text = ""


class RuleHits(msgspec.Struct):
    """A rule of the running revision, and what it decided in the span, under its name, in any revision.

    `last_hit` null: never in the span. `shadowed`: why it can never decide, empty if it can.
    """

    name: str
    action: str
    report_only: bool
    text: str
    flows: Count
    packets: Count
    bytes: Count
    last_hit: str | None
    shadowed: str


class Pending(msgspec.Struct):
    """A change that is taken back unless it is confirmed."""

    kind: str
    from_revision: Count
    from_mode: str
    who: str
    time: str


class NodePolicy(msgspec.Struct):
    """What runs on a node. `other` are decisions of no rule of the policy (`default`, `builtin:ndp` …)."""

    running: Revision
    pending: Pending | None
    rules: list[RuleHits]
    other: list[RuleHits]


class Policies(msgspec.Struct):
    """A node each, by name."""

    nodes: list[NodePolicy]


class RevisionsAsked(Asked):
    """Parameters of `policy/revisions`."""

    node: Text = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Text = ""


class Revisions(msgspec.Struct):
    """A page, newest first."""

    revisions: list[Revision]
    next: str | None


class RevisionAsked(Asked):
    """Parameters of `policy/revisions/{revision}`. `node` may be left out where there is one."""

    node: Text = ""


class CheckAsked(Asked):
    """A draft."""

    text: str


class Diagnostic(msgspec.Struct):
    """Something about a draft; `line` and `column` count from 1, 0: the policy as a whole.

    `kind` of a warning is as in `policy check`, that of an error is `error`.
    """

    severity: Literal["error", "warning"]
    kind: str
    subject: str
    message: str
    hint: str
    line: Count
    column: Count


class Checked(msgspec.Struct):
    """`ok`: it could be applied. The rest is empty or 0 if it could not."""

    ok: bool
    diagnostics: list[Diagnostic]
    hash: str
    default: str
    rules: Count
    identities: Count


class Side(Asked):
    """A policy: a `text`, or what a `node` had or has: a `revision`, or the one that runs."""

    text: str | None = None
    node: Text = ""
    revision: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None


class DiffAsked(Asked):
    """`rules`: also where only the rule that decides is another."""

    before: Side
    after: Side
    rules: bool = False


class Diff(msgspec.Struct):
    """As `policy diff -o json`: rows of source × destination × ports that gain or lose access."""

    same: bool
    rows: list[Document]
    builtins_on: list[str]
    builtins_off: list[str]


# ---- the store, the sink


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
    """Verdicts in each of the last seconds, oldest first; `times` is where each begins."""

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
    """`state`: live, silent or closed. Losses are of all time; `flows_live` null: not counted yet."""

    node: str
    ring: str
    state: str
    mode: str | None
    revision: Count | None
    pending: bool
    flows_live: Count | None
    samples_lost: Count
    held_back: Count
    gaps: Count
    in_flight: int | None
    balanced: bool
    last: str | None


class OverviewAsked(Asked):
    """Parameters of `overview`: how far back the tops are of, and how many."""

    since: Text = "1h"
    top: Annotated[int, Meta(ge=1, le=100)] = 10


class Overview(msgspec.Struct):
    """What a first look wants, in one answer. `lag`: messages that wait in the streams; null: NATS is away."""

    time: str
    rates: Rates
    totals: Split
    top_denied: list[DeniedPair]
    top_rules: list[RuleSums]
    nodes: list[NodeHealth]
    balanced: bool
    lag: Count | None
    notices: list[str]
