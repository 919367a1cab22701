"""What runs, what ran, and drafts."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.http.asked import Asked, Count, Document, Span, Text


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


class PolicyAsked(Span):
    """Parameters of `policy`: the span in which hits are counted."""

    node: Text = ""


class RuleHits(msgspec.Struct):
    """A rule of the running revision, and what it decided in the span, under its name, in any revision.

    `last_hit`: the time of its last event in the span, null: none. `last_ever`: of all history that is kept, null: it
    was never hit. `shadowed`: why it can never decide, empty if it can.
    """

    name: str
    action: str
    report_only: bool
    text: str
    flows: Count
    packets: Count
    bytes: Count
    last_hit: str | None
    last_ever: str | None
    shadowed: str


class Pending(msgspec.Struct):
    """A change that is taken back unless it is confirmed."""

    kind: str
    from_revision: Count
    from_mode: str
    who: str
    time: str


class NodePolicy(msgspec.Struct):
    """What runs on a node. `other` decided in the span and is no rule of it: `default`, `builtin:ndp` …, which have no
    `action`, and rules of earlier revisions."""

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
