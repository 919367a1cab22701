"""What is summed up: the histogram, the map, the matrix."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.http.asked import Count, Filtered, Text


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
