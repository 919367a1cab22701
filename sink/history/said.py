"""What was said in a span, as the views of the HTTP API sum it up: rows of the roll-ups that the filters keep.

Three kinds: allowed, denied (and dropped), and what would have been: denied, but passed.
"""

from typing import Any

from schemas import http
from schemas.codes import Decision, Outcome
from sink.history import asked as asking
from sink.history import spans
from sink.history.asked import Bounds
from sink.history.pairs import HOUR, total
from sink.history.reading import Reading
from sink.history.views import pairs_of

KINDS = ("allowed", "denied", "would_deny")
VOLUMES = ("flows", "packets", "bytes")
_KIND = f"""CASE WHEN v.decision <> {int(Decision.DENY)} THEN 0 WHEN v.outcome = {int(Outcome.DROPPED)} THEN 1
    ELSE 2 END::UTINYINT AS kind"""
_NUMBERS = f""", {_KIND}, v.detail, v.ring AS ring_number, v.src_identity AS src_number, v.dst_identity AS dst_number,
    v.rule AS rule_number, v.proto AS proto_number, v.src_hi, v.src_lo, v.dst_hi, v.dst_lo"""
SUMS = ", ".join(f"{total(f'{name}::BIGINT')} AS {name}" for name in VOLUMES)
"""Of rows with VOLUMES. DuckDB adds BIGINTs up that cannot overflow by their statistics in half the time."""
SPLIT = ", ".join(
    f"{total(f'{name}::BIGINT', f'kind = {i}')} AS {kind}_{name}" for i, kind in enumerate(KINDS) for name in VOLUMES
)
"""Columns of `split`, of rows with a `kind`."""


def said(reading: Reading, asked: http.Filtered, bounds: Bounds, grain: int = HOUR, names: str = "") -> str:
    """SQL, in parentheses: the columns of `pairs_1m`, kind (index in KINDS), detail, and numbers where these are text.

    `names`: those that are wanted of node, ring, rule, src_identity, dst_identity; the others may be NULL.

    What several nodes saw is there once, unless a node is asked for. Raises InputError, SinkError.
    """
    words = asking.words(asked)
    relation = spans.relation(reading.cursor, *bounds, grain=grain, crossing=False)
    once = "true" if asked.node else "NOT duplicate"
    return f"(SELECT * FROM ({pairs_of(relation, _NUMBERS, f'{words} {names}')}) WHERE {once} AND {words})"


def split(row: dict[str, Any]) -> dict[str, Any]:
    """http.Split of a row with the columns of SPLIT."""
    return {kind: {name: row[f"{kind}_{name}"] for name in VOLUMES} for kind in KINDS}
