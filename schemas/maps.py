"""The maps of the kernel side, described once, and the sizes that knobs give them.

`render` writes them to `bpf/maps.h`, which both fronts expand; the loaders make each as large as `entries` and `width`
say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from schemas.codes import Counter, RuleId
from schemas.structs import KNOBS, PORTS_PER_SLOT, SUMMARY_RULES

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Map:
    """`kind` is the kernel's word for it; `key` and `value` are C types ("": none, a ring)."""

    name: str
    kind: str
    key: str
    value: str
    entries: Callable[[Sizes], int]
    meaning: str
    mmapable: bool = False
    width: Callable[[Sizes], int] = lambda _: 1
    """Values of that type in one entry."""


def _one(_: Sizes) -> int:
    return 1


def _vectors(name: str) -> Map:
    return Map(
        name, "array", "u32", "u64", lambda s: 2 * s["CLASSES_MAX"],
        "slot, class → bit vector over rules, in order of credit, behind its summary", True,
        lambda s: s["SUMMARY_WORDS"] + s["RULES_MAX"] // 64,
    )  # fmt: skip


def _counted(s: Sizes) -> int:
    return 2 * (s["RULES_MAX"] + RuleId.FIRST)


MAPS = (
    Map("flows", "hash", "struct flow_key", "struct flow", lambda s: s["FLOWS_MAX"],
        "canonical 5-tuple → the flow: preallocated, so that a packet never waits for memory"),
    Map("range_nodes", "array", "u32", "struct range_node", lambda s: 2 * s["NODES_MAX"],
        "slot, node → where ranges begin: over random keys an LPM trie takes twenty steps, this one nine", True),
    Map("ranges", "array", "u32", "struct address_range", lambda s: 2 * s["RANGES_MAX"],
        "slot, range of addresses → identity and classes of the longest prefix around it", True),
    Map("ports", "array", "u32", "u32", lambda _: 2 * PORTS_PER_SLOT,
        "slot, port group, port → port class: direct index, no search", True),
    *map(_vectors, ("source_rules", "destination_rules", "port_rules")),
    Map("rules", "array", "u32", "struct rule", lambda s: 2 * s["RULES_MAX"], "slot, rule → what it does", True),
    Map("rule_counters", "percpu_array", "u32", "struct rule_counter", _counted,
        "slot, rule number → every packet it decided: per CPU, so counting is exact without atomics"),
    Map("rule_baseline", "array", "u32", "struct rule_counter", _counted,
        "the same index → rule_counters when the revision in the slot began; user space's own note", True),
    Map("counters", "percpu_array", "u32", "u64", lambda _: len(Counter), "COUNTER_* → count since the map was made"),
    Map("fragments", "lru_hash", "struct fragment_key", "struct fragment", lambda s: s["FRAGMENTS_MAX"],
        "datagram → its flow and verdict, for the pieces without ports; least recently used goes first"),
    Map("config", "array", "u32", "struct config", _one, "the node's state, written by the collector", True),
    Map("totals", "array", "u32", "struct totals", _one, "what all CPUs share", True),
    Map("cpu_state", "percpu_array", "u32", "struct cpu_state", _one, "event budget, wake-ups, flow ids"),
    Map("scratch", "percpu_array", "u32", "struct scratch", _one, "the packet at hand"),
    Map("watched", "hash", "u32", "u32", lambda _: 1024,
        "ifindex → 1: watched on ingress; egress leaves what came in there alone"),
    Map("events", "ringbuf", "", "", lambda s: s["RING_BYTES"], "struct verdict_event, all of one size; bytes"),
)  # fmt: skip


def sizes(knobs: Mapping[str, int]) -> dict[str, int]:
    """Every size the kernel side asks for: the knobs (all of schemas.structs.KNOBS) and what follows from them.

    A prefix makes two ranges of addresses at most; two families, three more. Their tree has four ways at each node:
    node k is above 4k + 1 … 4k + 4. Some heights give way to the next: the verifier walks each once.
    """
    needed = 2 * knobs["PREFIXES_MAX"] + 3
    levels = next((n for n in (2, 4, 6, 8, 9) if needed <= 4**n), 10)
    return {knob.name: knobs[knob.name] for knob in KNOBS} | {
        "LEVELS_MAX": levels,
        "RANGES_MAX": 4**levels,
        "NODES_MAX": (4**levels - 1) // 3,
        "SUMMARY_WORDS": -(-knobs["RULES_MAX"] // SUMMARY_RULES),
    }
