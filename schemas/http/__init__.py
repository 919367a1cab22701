"""What goes over the HTTP API of the sink (`/api/v1`): parameters, bodies and answers. OpenAPI is made from these.

Times are RFC 3339 in UTC with nanoseconds. A parameter of time is that, a date, a duration back from now (`10m`), or
a whole number: ns since 1970. A list parameter may come several times: these are OR, different parameters are AND.

A module for each concept; all of it is had from here: `http.Flow`.
"""
# ruff: noqa: F401, I001 (they are here to be had from here, a line for many)

from schemas.http.asked import (
    Asked, Count, Document, Error, Filtered, Filters, Paged, Span, Text, Words,
)  # fmt: skip
from schemas.http.health import (
    Column, DeniedPair, LedgerAsked, NodeHealth, Overview, OverviewAsked, Rates, RuleSums, Schema, View,
)  # fmt: skip
from schemas.http.policies import (
    CheckAsked, Checked, Diagnostic, Diff, DiffAsked, NodePolicy, Pending, Policies, PolicyAsked, Revision,
    RevisionAsked, Revisions, RevisionsAsked, RuleHits, RuleText, Side,
)  # fmt: skip
from schemas.http.sums import (
    Cell, Group, Grouped, Histogram, HistogramAsked, LeftOut, Map, MapAsked, MapEdge, MapNode, Matrix, MatrixAsked,
    MatrixColumn, Series, Split, Sums, Volume,
)  # fmt: skip
from schemas.http.traffic import (
    Flow, FlowDetail, Flows, FlowsAsked, LiveAsked, Record, Sample, Verdict, Verdicts, VerdictsAsked,
)  # fmt: skip
