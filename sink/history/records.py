"""Verdicts and flows as the HTTP API gives them: columns of the views, a dict a row."""

from typing import Any

import msgspec
import pyarrow as pa

from schemas import http
from schemas.filters import predicate
from sink.history import asked as asking
from sink.history import ends, output
from sink.history.reading import Reading
from sink.history.recent import Place, place, recent

VERDICT = tuple(field for field in http.Verdict.__struct_fields__ if field != "flow")
"""Columns of the view `verdicts`."""
FLOW = tuple(field for field in http.Flow.__struct_fields__ if field not in ("flow", "events", "first_seen"))


def flow_id(ring: int, flow: int) -> str:
    """Names a flow: `flows/{id}`."""
    return f"{ring}-{flow}"


def rings(reading: Reading) -> dict[tuple[str, str], int]:
    """Number of a ring by its node and name."""
    return {(node, ring): number for number, node, ring in reading.rows("SELECT id, node, ring FROM store.rings")}


def dicts(found: pa.Table) -> list[dict[str, Any]]:
    """A dict a row, times as text."""
    return [row for batch in found.to_batches() for row in output.records(batch)]


def verdicts(reading: Reading, asked: http.VerdictsAsked) -> dict[str, Any]:
    """A page, newest first. Raises InputError, SinkError."""
    after = asking.place(asked, Place)
    bounds = after[0] if after else asking.span(asked)
    relation, rest = ends.found(asking.filters(asked))
    found = recent(
        reading.table, predicate(rest), since=bounds[0], until=bounds[1], before=after[1] if after else None,
        limit=asked.limit + 1, rows=relation,
    )  # fmt: skip
    more = found.num_rows > asked.limit
    shown = found.slice(1) if more else found
    numbers = rings(reading)
    rows = []
    for row, flow in zip(dicts(shown.select(VERDICT)), shown["flow_id"].to_pylist(), strict=True):
        rows.append({"flow": flow_id(numbers[row["node"], row["ring"]], flow) if flow else None} | row)
    following = asking.cursor(asked, bounds, msgspec.to_builtins(place(shown, 0))) if more else None
    return {"verdicts": rows[::-1], "next": following}
