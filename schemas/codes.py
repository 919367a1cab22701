"""Numbers that stand for words, in the kernel, on the wire and in the store.

Append only: a number, once released, keeps its meaning for ever; a retired one is never given away again,
for history holds it. The words are those of the word table in docs/architecture.md.
"""

from enum import IntEnum, IntFlag


class Decision(IntEnum):
    """What the policy says."""

    ALLOW = 1
    DENY = 2


class Outcome(IntEnum):
    """What happened to the packet."""

    PASSED = 1
    DROPPED = 2


class Mode(IntEnum):
    """Of a node: judge only, or judge and drop."""

    MONITOR = 0
    ENFORCE = 1


class EventKind(IntEnum):
    """Why a record was emitted."""

    NEW = 1
    SAMPLE = 2
    CHANGE = 3
    END = 4


class Direction(IntEnum):
    """Of a packet within its flow: as the opener sends, or back to it."""

    ORIGINAL = 1
    REPLY = 2


class Reason(IntEnum):
    """Why the decision is what it is."""

    RULE = 1
    DEFAULT = 2
    NO_POLICY = 3
    BUILTIN = 4
    MALFORMED = 5
    HEADLESS_FRAGMENT = 6
    ICMP_UNRELATED = 7


class Flag(IntFlag):
    """Circumstances of a verdict; bits of the event's `flags`."""

    EGRESS = 1  # seen by the TC program on the way out; else by XDP on the way in
    MIDSTREAM = 2  # TCP first seen without a SYN
    REPORT_ONLY = 4  # the deciding rule is report-only: denied, never dropped
    UNTRACKED = 8  # no flow entry: packets and bytes are this one packet's
    AGGREGATED = 16  # generic XDP: counts are of merged (GRO) packets
    REVERSED = 32  # the first packet seen was a reply: orientation was taken the other way round


class RuleId(IntEnum):
    """Rule numbers below FIRST are not in policy.yaml; rule i of a revision has the number FIRST + i."""

    DEFAULT = 0
    NO_POLICY = 1
    MALFORMED = 2
    HEADLESS_FRAGMENT = 3
    ICMP_UNRELATED = 4
    BUILTIN_NDP = 16
    BUILTIN_MLD = 17
    BUILTIN_DHCP = 18
    BUILTIN_DHCPV6 = 19
    FIRST = 64


class IdentityId(IntEnum):
    """Identity numbers below FIRST are reserved; identity i of a revision has the number FIRST + i."""

    WORLD = 0  # no named identity holds this address
    HOST = 1
    FIRST = 16


class PortGroup(IntEnum):
    """Sections of the `ports` table; see structs.PORT_GROUPS for where each starts."""

    TCP = 0
    UDP = 1
    SCTP = 2
    ICMP = 3
    ICMPV6 = 4
    OTHER = 5


class Counter(IntEnum):
    """Index into the per-CPU `counters` map: unsigned 64-bit, since the map was made."""

    NON_IP = 0  # frames that are not IPv4 or IPv6: passed
    EGRESS_SKIPPED = 1  # on egress, came in through a watched interface: judged there
    PARSED = 2  # IP packets, malformed ones included
    UNTRACKED_UNATTRIBUTABLE = 3  # malformed, headless fragment, unrelated ICMP error: belongs to no flow
    UNTRACKED_TABLE_FULL = 4  # no room in the flow table, or the share of denied and half-open flows is used up
    UNTRACKED_CLOSING = 5  # its flow is being ended
    FLOWS_CREATED = 6
    FLOWS_ENDED = 7
    ENDED_PACKETS = 8  # packets of flows whose `end` was emitted
    ENDED_BYTES = 9
    EVENTS_DUE = 10  # events that had to be emitted
    SAMPLES_LOST = 11  # samples not emitted: ring full or above half fill
    SAMPLES_HELD_BACK = 12  # samples not emitted: over budget
    RESERVE_FAILED = 13  # attempts that found the ring full; the event stays due
    BUDGET_EMPTY = 14  # attempts that found no token; the event stays due
    SAMPLES_LOST_DENIED = 15  # of SAMPLES_LOST those whose decision was deny
    SAMPLES_HELD_BACK_DENIED = 16  # of SAMPLES_HELD_BACK those whose decision was deny


class FlowClass(IntEnum):
    """Which time-out (structs.TIMEOUTS) applies to a flow that sees no packet."""

    TCP_ESTABLISHED = 0
    TCP_HALF_OPEN = 1
    TCP_CLOSED = 2
    UDP = 3
    ICMP = 4
    OTHER = 5


def word(code: IntEnum) -> str:
    """The lower-case word of a code, as people and JSON see it (`Reason.NO_POLICY` → `no_policy`)."""
    return code.name.lower()


def words(kind: type[IntEnum]) -> dict[int, str]:
    """Code → word, for decoding columns."""
    return {int(code): word(code) for code in kind}


PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
"""IANA protocol numbers with a word of their own in policy and output; others print as numbers."""
