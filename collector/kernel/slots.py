"""Writing a compiled policy into the idle slot, checking it, switching to it with one store.

Packets read `config.epoch` once; slot = revision & 1. So while the idle slot is written no packet looks there, and
after the switch and a grace period no packet looks into the other one.
"""

from typing import TYPE_CHECKING

import numpy as np

from collector.errors import KernelError
from collector.kernel.maps import MappedArray
from policy.compile import hint_to_enlarge
from policy.lookup import line
from policy.vectors import summary
from schemas.structs import PORTS_PER_SLOT

if TYPE_CHECKING:
    from collector.kernel.handle import Handle
    from policy.compile import Compiled


def apply(handle: "Handle", compiled: "Compiled", revision: int, confirm_within: float = 0) -> None:
    """Make `compiled` the node's policy as `revision`, the next one. Raises KernelError: nothing switched."""
    if revision != handle.next_revision:
        raise KernelError(f"revision {revision} does not follow {handle.revision}", "ask for the next revision first")
    if handle.unconfirmed is not None:  # the idle slot is what the datapath may go back to
        raise KernelError("a change is unconfirmed", "confirm it, or wait until it falls back")
    slot = revision & 1
    knobs = handle.layout.knobs
    check_room(compiled, knobs)
    # First the baseline: from here on what the slot's counters gain belongs to the new revision.
    per_slot = handle.rules_per_slot
    handle.rule_baseline.values[slot * per_slot : (slot + 1) * per_slot] = handle.rule_counts(slot)
    tables = _tables(handle, compiled, slot)
    for live, wanted in tables:
        live[...] = wanted
    if not all(np.array_equal(live, wanted) for live, wanted in tables):
        raise KernelError(
            "the policy read back from the kernel is not what was written; the running one stays",
            "this is a bug: report it",
        )
    handle.config.values["last_revision"][0] = revision
    handle.store_epoch(revision, handle.mode, confirm_within)


def check_room(compiled: "Compiled", knobs: dict[str, int]) -> None:
    """Raises KernelError naming the knob that is too small."""
    needs = (
        ("RULES_MAX", len(compiled.rules), "rules"),
        ("CLASSES_MAX", len(compiled.source_rules), "source classes"),
        ("CLASSES_MAX", len(compiled.destination_rules), "destination classes"),
        ("CLASSES_MAX", len(compiled.port_rules), "port classes"),
        ("PREFIXES_MAX", len(compiled.prefixes), "prefixes"),
    )
    for knob, n, what in needs:
        if n > knobs[knob]:
            raise KernelError(
                f"the policy needs {n:,} {what}, the kernel side has room for {knobs[knob]:,}",
                hint_to_enlarge(((name, needed) for name, needed, _ in needs), knobs),
            )


def _tables(handle: "Handle", compiled: "Compiled", slot: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(live part of an mmapped array, what it has to hold), whole slots, so that nothing of the last tenant stays."""
    high, low, rows = line(compiled.prefixes)
    levels = 1
    while 4**levels < len(rows):
        levels += 1
    # Padded to a full tree with the last range: where the search ends does not matter behind it.
    order = np.minimum(np.arange(4**levels), len(rows) - 1)
    head = np.array(compiled.slot).reshape(1)
    head["levels"] = levels
    out: list[tuple[np.ndarray, np.ndarray]] = [
        (handle.config.values["slots"][0, slot : slot + 1], head.view(np.uint64))
    ]
    live = _slot_of(handle.range_nodes, slot)
    wanted: np.ndarray = np.zeros(live.shape, np.uint64)
    at = 0
    for level in range(levels):
        begin = order[:: 4 ** (levels - 1 - level)].reshape(-1, 4)
        wanted[at : at + len(begin)] = np.concatenate([high[begin], low[begin]], axis=1)
        at += len(begin)
    out.append((live, wanted))
    live = _slot_of(handle.ranges, slot)
    wanted = np.zeros(live.shape, live.dtype)
    for name in ("identity", "source_class", "destination_class"):
        known = np.concatenate([np.zeros(1, np.uint32), compiled.prefixes[name]])
        wanted[name][: len(order)] = known[rows[order]]
    out.append((live, wanted))
    ports = np.asarray(compiled.ports, np.uint32)
    out.append((handle.ports.values[slot * PORTS_PER_SLOT : (slot + 1) * PORTS_PER_SLOT], ports))
    for array, vectors in (
        (handle.source_rules, compiled.source_rules),
        (handle.destination_rules, compiled.destination_rules),
        (handle.port_rules, compiled.port_rules),
    ):
        live = _slot_of(array, slot)
        classes, words = vectors.shape
        first = live.shape[1] - handle.layout.knobs["RULES_MAX"] // 64
        brief = summary(vectors)
        wanted = np.zeros(live.shape, np.uint64)
        wanted[:classes, : brief.shape[1]] = brief
        wanted[:classes, first : first + words] = vectors
        out.append((live, wanted))
    live = _slot_of(handle.rules, slot)
    wanted = np.zeros(live.shape, live.dtype)
    wanted[: len(compiled.rules)] = compiled.rules
    out.append((live, wanted))
    return out


def _slot_of(array: MappedArray, slot: int) -> np.ndarray:
    half = len(array.values) // 2
    return array.values[slot * half : (slot + 1) * half]
