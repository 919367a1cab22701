"""Increments: what each event adds to its flow since the flow's event before.

An event carries its flow's totals so far, so sums over time need differences. A flow's first event adds all it has and
opens the flow; an event without a flow (untracked) adds its one packet and opens none. The packets before a `change`
were judged as the event before says, so its increment belongs to that verdict (the packet that met the change among
them). Sums of increments are exact for any span that begins and ends at events.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.codes import EventKind
from sink.history.pairs import TOTALS

EVENT = ("position", "time", "flow_id", "event", *TOTALS)
"""Columns of an event that its increment is made from."""
BASE = ("position", "flow_id", *TOTALS)
"""Columns of a flow's last event before."""


@dataclass(frozen=True)
class Increments:
    """`rows`, an event each: time, flow_id, event, judged (position of the event whose verdict it has), flows, TOTALS.

    `flows`, a flow each: flow_id, position (of its last event), ended, first_seen (of its first event in these).
    """

    rows: pa.Table
    flows: pa.Table


def increments(events: pa.Table, base: pa.Table) -> Increments:
    """Of `events` of one ring (columns EVENT, each position once, any order).

    `base` (columns BASE, a row a flow) holds the last event before them of flows that were open already. Raises
    RuntimeError where it is not before them: sums would be wrong, and nobody would know.
    """
    given = {name: _numbers(events, name) for name in EVENT}
    before = {name: _numbers(base, name) for name in BASE}
    fresh, n = len(before["flow_id"]), len(given["flow_id"])
    flow = np.concatenate([before["flow_id"], given["flow_id"]])
    position = np.concatenate([before["position"], given["position"]])
    # Events come in order of position but for late ones, and a base's position is before all of them: a stable sort
    # by flow then has each flow's rows together, in order.
    in_order = bool(np.all(position[1:] >= position[:-1]))
    order = np.argsort(flow, kind="stable") if in_order else np.lexsort((position, flow))
    sorted_flow = flow[order]
    continued = np.zeros(len(order), bool)  # the row before it is of the same flow
    continued[1:] = (sorted_flow[1:] == sorted_flow[:-1]) & (sorted_flow[1:] != 0)
    own = order >= fresh
    at = order[own] - fresh  # where each row of the result stands in `events`

    columns = {name: given[name] for name in ("time", "flow_id", "event")}
    changed = continued[own] & (given["event"][at] == EventKind.CHANGE)
    judged = given["position"].copy()
    judged[at[changed]] = position[order[np.flatnonzero(own)[changed] - 1]]
    columns["judged"] = judged
    columns["flows"] = np.empty(n, "<u8")
    columns["flows"][at] = (~continued & (sorted_flow != 0))[own]
    for name in TOTALS:
        totals = np.concatenate([before[name], given[name]])[order]
        columns[name] = np.empty(n, "<u8")
        columns[name][at] = _differences(totals, continued)[own]

    ends = np.flatnonzero(np.append(~continued[1:], True) & (sorted_flow != 0)) if len(order) else np.zeros(0, np.intp)
    if (order[ends] < fresh).any():
        raise RuntimeError("open flows are known beyond the events that are added up")
    # The first of its flow that is an event and not the base. Every base has an event: it was asked for by these.
    heads = np.maximum.accumulate(np.where(continued, 0, np.arange(len(order))))[ends]
    heads += ~own[heads]
    flows = {
        "flow_id": sorted_flow[ends],
        "position": position[order[ends]],
        "ended": given["event"][order[ends] - fresh] == EventKind.END,
        "first_seen": given["time"][order[heads] - fresh],
    }
    return Increments(pa.table(columns), pa.table(flows))


def _differences(totals: np.ndarray, continued: np.ndarray) -> np.ndarray:
    """Each total less the one before it in its flow; totals never fall, and a corrupt one that does adds nothing."""
    before = np.zeros_like(totals)
    before[1:] = totals[:-1]
    before *= continued
    return np.where(totals >= before, totals - before, 0)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()
