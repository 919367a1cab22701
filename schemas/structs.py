"""Structs, maps and knobs that the kernel side and user space share, each described once.

`render` writes them as C into `bpf/types.h` with an assertion on every offset, and `dtype()` gives the same
layout to numpy, so neither side is a mirror kept by hand.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

C_TYPES = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8"}
BIG_ENDIAN = {"be16": ">u2", "be32": ">u4"}


@dataclass(frozen=True)
class Field:
    """One member: `ctype` is a key of C_TYPES, `count` > 1 makes it an array."""

    name: str
    ctype: str
    meaning: str
    count: int = 1


@dataclass(frozen=True)
class Struct:
    """A C struct without implicit padding; `render` refuses one that would need it."""

    name: str
    meaning: str
    fields: tuple[Field, ...]


def dtype(struct: Struct) -> "np.dtype":
    """The numpy view of `struct`, packed; 16-byte addresses become `V16`."""
    import numpy as np  # noqa: PLC0415 - the kernel side is being loaded before numpy is there

    parts: list[tuple] = []
    for f in struct.fields:
        if f.ctype == "u8" and f.count == 16:
            parts.append((f.name, "V16"))
        elif f.count > 1:
            parts.append((f.name, C_TYPES[f.ctype], (f.count,)))
        else:
            parts.append((f.name, C_TYPES[f.ctype]))
    return np.dtype(parts)


def places(struct: Struct) -> dict[str, tuple[int, int]]:
    """Field → (its offset, its bytes)."""
    out, at = {}, 0
    for f in struct.fields:
        size = int(C_TYPES[f.ctype][-1]) * f.count
        out[f.name] = at, size
        at += size
    return out


FLOW_KEY = Struct(
    "flow_key",
    "A conversation, the same for both directions. An IPv4 address stands in the last 4 bytes, the rest 0.",
    (
        Field("lo", "u8", "the endpoint that compares lower (address, then port)", 16),
        Field("hi", "u8", "the other endpoint", 16),
        Field(
            "lo_port", "u16", "host byte order; ICMP: the query's id, else the hop limit (built-in rules ask for it)"
        ),
        Field("hi_port", "u16", "host byte order; ICMP: the type, of a query its request's; + 256 if `hi` asks"),
        Field("family", "u8", "4 or 6: keeps ::10.0.0.1 apart from 10.0.0.1"),
        Field("proto", "u8", "IANA number"),
        Field("pad", "u16", "0"),
    ),
)

FLOW = Struct(
    "flow",
    "A flow table entry.",
    (
        Field("verdict", "u64", "packed: revision << 32 | rule << 16 | reason << 8 | VERDICT_* bits"),
        Field("id", "u64", "unique within the ring: cpu << 48 | serial"),
        Field("first_seen", "u64", "ns since boot"),
        Field("last_seen", "u64", "ns since boot, coarse clock"),
        Field("packets", "u64", "[0] original, [1] reply", 2),
        Field("bytes", "u64", "[0] original, [1] reply; layer 2 without FCS", 2),
        Field("state", "u64", "FLOW_ACTIVE, FLOW_BUSY (one CPU is ending it), FLOW_DEAD (swept)"),
        Field("due", "u64", "DUE_* bits: events this flow still owes (64 bits: BCC compiles no narrower atomics)"),
        Field("tentative", "u64", "1: denied or half open, counted in totals.tentative"),
        Field("sample", "u32", "1 in N packets; 0: none"),
        Field("src_identity", "u32", "of the opener"),
        Field("dst_identity", "u32", "of the responder"),
        Field("ifindex", "u32", "where the first packet was seen"),
        Field("flipped", "u8", "1: the opener is the key's `hi` endpoint"),
        Field("icmp_type", "u8", "the opener's type"),
        Field("tcp_flags", "u8", "[0] original, [1] reply: all flags seen", 2),
        Field("flags", "u8", "Flag bits of the hook that saw the first packet"),
        Field("pad", "u8", "0", 3),
    ),
)

RANGE_NODE = Struct(
    "range_node",
    "Of a tree over where ranges of addresses begin: four of them, or of the four nodes below. Padded with the last.",
    (
        Field("high", "u64", "upper half of the address, as a number", 4),
        Field("low", "u64", "lower half; IPv4 stands at ::ffff:0:0/96, which no IPv6 packet may name", 4),
    ),
)

ADDRESS_RANGE = Struct(
    "address_range",
    "What policy knows of a range of addresses.",
    (
        Field("identity", "u32", "IdentityId or FIRST + index"),
        Field("source_class", "u32", "row of source_rules"),
        Field("destination_class", "u32", "row of destination_rules"),
    ),
)

RULE = Struct(
    "rule",
    "What a rule does.",
    (
        Field("decision", "u8", "Decision"),
        Field("report_only", "u8", "1: its denials are recorded, never dropped"),
        Field("pad", "u16", "0"),
        Field("sample", "u32", "1 in N packets of a flow; 0: the node's"),
    ),
)

RULE_COUNTER = Struct(
    "rule_counter",
    "Every packet a rule decided, by outcome. Never emptied: `rule_baseline` marks where a revision began.",
    (
        Field("packets_passed", "u64", ""),
        Field("bytes_passed", "u64", ""),
        Field("packets_dropped", "u64", ""),
        Field("bytes_dropped", "u64", ""),
    ),
)

FRAGMENT_KEY = Struct(
    "fragment_key",
    "A datagram that came in pieces.",
    (
        Field("src", "u8", "", 16),
        Field("dst", "u8", "", 16),
        Field("id", "u32", "as on the wire"),
        Field("family", "u8", ""),
        Field("proto", "u8", ""),
        Field("pad", "u16", "0"),
    ),
)

FRAGMENT = Struct(
    "fragment",
    "What its first piece said.",
    (
        Field("key", "u8", "struct flow_key of its flow", 40),
        Field("verdict", "u64", "as in struct flow: holds when the flow has no entry"),
        Field("from_hi", "u8", "1: sent by the key's `hi` endpoint"),
        Field("pad", "u8", "0", 7),
    ),
)

SLOT = Struct(
    "slot",
    "One of two places for a compiled policy; a revision lives in slot revision & 1.",
    (
        Field("words", "u16", "64-bit words of a rule vector in use"),
        Field("levels", "u16", "of the tree of ranges in use"),
        Field("has_policy", "u8", "0: everything is allowed, reason no_policy"),
        Field("default_decision", "u8", "Decision"),
        Field("builtins", "u16", "bit i: built-in rule RuleId 16 + i is on"),
    ),
)

CONFIG = Struct(
    "config",
    "The node's state, one entry, written by the collector through mmap.",
    (
        Field("epoch", "u64", "revision << 32 | mode, read once a packet as one word"),
        Field("previous", "u64", "the epoch to fall back to"),
        Field("confirm_until", "u64", "ns since boot; 0: the epoch is confirmed"),
        Field("midstream_until", "u64", "ns since boot: until then TCP without a SYN may be judged both ways"),
        Field("slots", "u64", "two struct slot", 2),
        Field("timeouts", "u64", "ns without a packet until a flow is over, by FlowClass", 6),
        Field("sample", "u32", "1 in N packets of a flow; 0: none"),
        Field("budget", "u32", "events a second and CPU"),
        Field("capacity", "u32", "flow table entries"),
        Field("flags", "u32", "Flag bits set in every event of XDP (AGGREGATED)"),
        Field("last_revision", "u64", "the highest ever in force: no number is given twice, after a fall-back either"),
    ),
)

TOTALS = Struct(
    "totals",
    "Shared by all CPUs, written seldom: at events and at the birth and end of flows.",
    (
        Field("produced", "u64", "records put into the ring"),
        Field("consumed", "u64", "records released by the collector: written by it through mmap"),
        Field("flows", "u64", "entries in the flow table"),
        Field("tentative", "u64", "of these, denied or half open"),
    ),
)

CPU_STATE = Struct(
    "cpu_state",
    "Scratch state of one CPU.",
    (
        Field("tokens", "u64", "event budget, in events × 10⁹"),
        Field("refilled", "u64", "ns since boot"),
        Field("last_event", "u64", "ns since boot: quiet before it means wake the reader"),
        Field("unwoken", "u64", "events since the last wake-up"),
        Field("serial", "u64", "last flow id given out"),
        Field("untracked", "u64", "untracked packets: every N-th is sampled"),
    ),
)

STRUCTS = (
    FLOW_KEY, FLOW, RANGE_NODE, ADDRESS_RANGE, RULE, RULE_COUNTER, FRAGMENT_KEY, FRAGMENT, SLOT, CONFIG, TOTALS,
    CPU_STATE,
)  # fmt: skip


CONSTANTS = Struct(
    "constants",
    "What BCC's compiler is given with -D; the CO-RE object has it in .rodata, set before it is loaded, so that the "
    "verifier takes it for constant. schemas/maps.py says how much each is.",
    (
        Field("rules_max", "u32", ""),
        Field("classes_max", "u32", ""),
        Field("ranges_max", "u32", ""),
        Field("nodes_max", "u32", "of the tree over ranges"),
        Field("levels_max", "u32", "of that tree"),
        Field("summary_words", "u32", "before the words of a vector"),
        Field("ring_bytes", "u32", ""),
        Field("sweep_max", "u32", ""),
        Field("judge_clock", "u32", "1: the clock is that of a capture, before the packet"),
        Field("no_coarse_clock", "u32", "1: before Linux 5.11; the verifier never sees the helper"),
        Field("source", "u8", "SHA-256 of the sources as hex digits, set by bpf/Makefile", 64),
    ),
)


@dataclass(frozen=True)
class Knob:
    """A size of the kernel side, chosen when it is loaded."""

    name: str
    default: int
    unit: str
    meaning: str
    most: int | None = None  # None: what memory allows


KNOBS = (
    Knob("FLOWS_MAX", 262_144, "entries", "flow table; 208 bytes each, taken at start"),
    Knob(
        "PREFIXES_MAX",
        131_000,
        "prefixes",
        "of one policy; ranges and their tree take 19 MiB, 524,000 at most",
        524_000,
    ),
    Knob("RULES_MAX", 4_096, "rules", "of one policy; a multiple of 64, 16,384 at most", 16_384),
    Knob("CLASSES_MAX", 1_024, "classes", "of each kind (source, destination, port) in one policy"),
    Knob("FRAGMENTS_MAX", 8_192, "entries", "datagrams in pieces, least recently used goes first"),
    Knob("RING_BYTES", 64 << 20, "bytes", "ring buffer; a power of two"),
    Knob("SWEEP_MAX", 64, "keys", "flows marked or reaped by one test-run"),
)

SUMMARY_RULES = 64 * 64
"""Rules a word of summary: a vector of the kernel is ⌈RULES_MAX / SUMMARY_RULES⌉ such words, then RULES_MAX / 64 words
of rules. Bit i of word b of the summary says that word 64·b + i of the rules is not zero."""

PORT_GROUPS = {"TCP": (0, 65536), "UDP": (65536, 65536), "SCTP": (131072, 65536), "ICMP": (196608, 256),
               "ICMPV6": (196864, 256), "OTHER": (197120, 256)}  # fmt: skip
"""Section of `ports` by PortGroup: (first index, size). Indexed by port, ICMP type, or protocol number."""

PORTS_PER_SLOT = 197_376

TIMEOUTS = {"TCP_ESTABLISHED": 3600, "TCP_HALF_OPEN": 30, "TCP_CLOSED": 10, "UDP": 60, "ICMP": 30, "OTHER": 120}
"""Defaults in seconds, by FlowClass."""

REVISION_SHIFT, RULE_SHIFT, REASON_SHIFT = 32, 16, 8
VERDICT_BITS = {"DENY": 1, "REPORT_ONLY": 2, "MIDSTREAM": 4, "REVERSED": 8, "ENFORCE": 16}
FLOW_STATES = {"ACTIVE": 0, "BUSY": 1, "DEAD": 2}
DUE_BITS = {"NEW": 1, "CHANGE": 2, "END": 4}
