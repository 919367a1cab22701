"""Every path of the API: what it takes and what it answers. The routes and the OpenAPI document are made of this."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas import http
from sink.history import audit, flows, graph, histogram, policies, schema, suggest

PREFIX = "/api/v1"


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `sql`. `streamed`: read as it comes, with any number of rows. `limit`: the first so many, 0: all."""

    sql: str
    parameters: list[Any] | dict[str, Any] | None = None
    format: str = "json"
    streamed: bool = False
    limit: http.Count = 0


class Nothing(http.Asked):
    """No parameters."""


@dataclass(frozen=True)
class Endpoint:
    """`name` is the last part of its operation's id. `work`: reads the store and gives the answer's document, from the
    parameters or the body, and a path's parameter; None: the API's method of that name does it."""

    method: str
    path: str
    name: str
    summary: str
    answer: Any
    asked: type[msgspec.Struct] = Nothing
    body: Any = None
    work: Callable[..., Any] | None = None
    media: tuple[str, ...] = ("application/json",)


ENDPOINTS = (
    Endpoint("GET", "verdicts", "verdicts", "Verdicts, newest first; or live, as server-sent events",
             http.Verdicts, http.VerdictsAsked, media=("application/json", "text/event-stream")),
    Endpoint("GET", "verdicts/live", "live", "Verdicts as they are stored, as server-sent events",
             str, http.LiveAsked, media=("text/event-stream",)),
    Endpoint("GET", "flows", "flows", "Flows, filtered and sorted over all history",
             http.Flows, http.FlowsAsked),
    Endpoint("GET", "flows/{id}", "flow", "One flow: its samples, the rule that decided, the revision's text",
             http.FlowDetail, work=flows.flow),
    Endpoint("GET", "histogram", "histogram", "What was allowed and denied, by time",
             http.Histogram, http.HistogramAsked, work=histogram.histogram),
    Endpoint("GET", "map", "map", "Who speaks to whom, as a graph",
             http.Map, http.MapAsked, work=graph.graph),
    Endpoint("GET", "matrix", "matrix", "Who speaks to whom, as a matrix",
             http.Matrix, http.MatrixAsked, work=graph.matrix),
    Endpoint("GET", "policy", "policy", "What runs on each node, and what its rules decided",
             http.Policies, http.PolicyAsked),
    Endpoint("GET", "policy/revisions", "revisions", "Revisions, newest first",
             http.Revisions, http.RevisionsAsked, work=policies.revisions),
    Endpoint("GET", "policy/revisions/{revision}", "revision", "One revision with its text",
             http.Revision, http.RevisionAsked, work=policies.of_node),
    Endpoint("POST", "policy/check", "check", "A draft: its errors and warnings, each with its place",
             http.Checked, body=http.CheckAsked),
    Endpoint("POST", "policy/diff", "diff", "What one policy changes against another, by meaning",
             http.Diff, body=http.DiffAsked),
    Endpoint("POST", "audit", "audit", "History under another policy: the document of `ztlens audit -o json`",
             http.Document, body=audit.Question),
    Endpoint("POST", "suggest", "suggest", "A policy from history: the document of `ztlens policy suggest -o json`",
             http.Document, body=suggest.Question),
    Endpoint("POST", "sql", "sql", "One SELECT over the views",
             list[http.Document], body=Question,
             media=("application/json", "text/csv; charset=utf-8", "application/vnd.apache.arrow.stream")),
    Endpoint("GET", "schema", "schema", "Views, their columns and what they mean", http.Schema, work=schema.schema),
    Endpoint("GET", "status", "status", "The sink's counters, lag and database", http.Document),
    Endpoint("GET", "ledger", "ledger", "Packets and events, hop by hop", http.Document, http.LedgerAsked),
    Endpoint("GET", "overview", "overview", "What a first look wants, in one answer",
             http.Overview, http.OverviewAsked),
)  # fmt: skip
