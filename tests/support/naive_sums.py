"""What each event adds to its flow, one after the other, as a person would work it out."""

from typing import Any

import numpy as np

from tests.support import batches, served


def adds(rows: np.ndarray) -> list[dict[str, Any]]:
    """Records of `verdicts` in ring order, with what the event adds as `packets` and `bytes`, `flows` 1 for a flow's
    first, and `ns` since 1970. Without changes of verdict."""
    before: dict[str, tuple[int, int]] = {}
    out = []
    for record, at in zip(served.records(rows), rows["time"].tolist(), strict=True):
        flow = record["flow"]
        packets, size = before.get(flow, (0, 0))
        first = flow is not None and flow not in before
        before[flow] = record["packets"], record["bytes"]
        more = {"packets": record["packets"] - packets, "bytes": record["bytes"] - size}
        out.append(record | more | {"flows": int(first), "ns": at + batches.CLOCK})
    return out
