/* The kernel/user contract. Made by `python -m schemas.render` from schemas/: change it there. */
#ifndef ZTLENS_TYPES_H
#define ZTLENS_TYPES_H

enum decision_code {
	DECISION_ALLOW = 1,
	DECISION_DENY = 2,
};

enum outcome_code {
	OUTCOME_PASSED = 1,
	OUTCOME_DROPPED = 2,
};

enum mode_code {
	MODE_MONITOR = 0,
	MODE_ENFORCE = 1,
};

enum event_code {
	EVENT_NEW = 1,
	EVENT_SAMPLE = 2,
	EVENT_CHANGE = 3,
	EVENT_END = 4,
};

enum direction_code {
	DIRECTION_ORIGINAL = 1,
	DIRECTION_REPLY = 2,
};

enum reason_code {
	REASON_RULE = 1,
	REASON_DEFAULT = 2,
	REASON_NO_POLICY = 3,
	REASON_BUILTIN = 4,
	REASON_MALFORMED = 5,
	REASON_HEADLESS_FRAGMENT = 6,
	REASON_ICMP_UNRELATED = 7,
};

enum flag_code {
	FLAG_EGRESS = 1,
	FLAG_MIDSTREAM = 2,
	FLAG_REPORT_ONLY = 4,
	FLAG_UNTRACKED = 8,
	FLAG_AGGREGATED = 16,
	FLAG_REVERSED = 32,
};

enum rule_code {
	RULE_DEFAULT = 0,
	RULE_NO_POLICY = 1,
	RULE_MALFORMED = 2,
	RULE_HEADLESS_FRAGMENT = 3,
	RULE_ICMP_UNRELATED = 4,
	RULE_BUILTIN_NDP = 16,
	RULE_BUILTIN_MLD = 17,
	RULE_BUILTIN_DHCP = 18,
	RULE_BUILTIN_DHCPV6 = 19,
	RULE_FIRST = 64,
};

enum identity_code {
	IDENTITY_WORLD = 0,
	IDENTITY_HOST = 1,
	IDENTITY_FIRST = 16,
};

enum counter_code {
	COUNTER_NON_IP = 0,
	COUNTER_EGRESS_SKIPPED = 1,
	COUNTER_PARSED = 2,
	COUNTER_UNTRACKED_UNATTRIBUTABLE = 3,
	COUNTER_UNTRACKED_TABLE_FULL = 4,
	COUNTER_UNTRACKED_CLOSING = 5,
	COUNTER_FLOWS_CREATED = 6,
	COUNTER_FLOWS_ENDED = 7,
	COUNTER_ENDED_PACKETS = 8,
	COUNTER_ENDED_BYTES = 9,
	COUNTER_EVENTS_DUE = 10,
	COUNTER_SAMPLES_LOST = 11,
	COUNTER_SAMPLES_HELD_BACK = 12,
	COUNTER_RESERVE_FAILED = 13,
	COUNTER_BUDGET_EMPTY = 14,
	COUNTER_SAMPLES_LOST_DENIED = 15,
	COUNTER_SAMPLES_HELD_BACK_DENIED = 16,
	COUNTERS = 17,
};

enum timeout_code {
	TIMEOUT_TCP_ESTABLISHED = 0,
	TIMEOUT_TCP_HALF_OPEN = 1,
	TIMEOUT_TCP_CLOSED = 2,
	TIMEOUT_UDP = 3,
	TIMEOUT_ICMP = 4,
	TIMEOUT_OTHER = 5,
};

#define PORTS_TCP 0 /* 65536 entries */
#define PORTS_UDP 65536 /* 65536 entries */
#define PORTS_SCTP 131072 /* 65536 entries */
#define PORTS_ICMP 196608 /* 256 entries */
#define PORTS_ICMPV6 196864 /* 256 entries */
#define PORTS_OTHER 197120 /* 256 entries */
#define PORTS_PER_SLOT 197376
#define SUMMARY_RULES 4096 /* rules a word of a vector's summary */
#define VERDICT_DENY 1ULL
#define VERDICT_REPORT_ONLY 2ULL
#define VERDICT_MIDSTREAM 4ULL
#define VERDICT_REVERSED 8ULL
#define VERDICT_ENFORCE 16ULL
#define FLOW_ACTIVE 0ULL
#define FLOW_BUSY 1ULL
#define FLOW_DEAD 2ULL
#define DUE_NEW 1ULL
#define DUE_CHANGE 2ULL
#define DUE_END 4ULL
#define REVISION_SHIFT 32
#define RULE_SHIFT 16
#define REASON_SHIFT 8

/* A conversation, the same for both directions. An IPv4 address stands in the last 4 bytes, the rest 0. */
struct flow_key {
	u8 lo[16]; /* the endpoint that compares lower (address, then port) */
	u8 hi[16]; /* the other endpoint */
	u16 lo_port; /* host byte order; ICMP: the query's id, else the hop limit (built-in rules ask for it) */
	u16 hi_port; /* host byte order; ICMP: the type, of a query its request's; + 256 if `hi` asks */
	u8 family; /* 4 or 6: keeps ::10.0.0.1 apart from 10.0.0.1 */
	u8 proto; /* IANA number */
	u16 pad; /* 0 */
};
_Static_assert(__builtin_offsetof(struct flow_key, lo) == 0, "flow_key.lo");
_Static_assert(__builtin_offsetof(struct flow_key, hi) == 16, "flow_key.hi");
_Static_assert(__builtin_offsetof(struct flow_key, lo_port) == 32, "flow_key.lo_port");
_Static_assert(__builtin_offsetof(struct flow_key, hi_port) == 34, "flow_key.hi_port");
_Static_assert(__builtin_offsetof(struct flow_key, family) == 36, "flow_key.family");
_Static_assert(__builtin_offsetof(struct flow_key, proto) == 37, "flow_key.proto");
_Static_assert(__builtin_offsetof(struct flow_key, pad) == 38, "flow_key.pad");
_Static_assert(sizeof(struct flow_key) == 40, "flow_key");

/* A flow table entry. */
struct flow {
	u64 verdict; /* packed: revision << 32 | rule << 16 | reason << 8 | VERDICT_* bits */
	u64 id; /* unique within the ring: cpu << 48 | serial */
	u64 first_seen; /* ns since boot */
	u64 last_seen; /* ns since boot, coarse clock */
	u64 packets[2]; /* [0] original, [1] reply */
	u64 bytes[2]; /* [0] original, [1] reply; layer 2 without FCS */
	u64 state; /* FLOW_ACTIVE, FLOW_BUSY (one CPU is ending it), FLOW_DEAD (swept) */
	u64 due; /* DUE_* bits: events this flow still owes (64 bits: BCC compiles no narrower atomics) */
	u64 tentative; /* 1: denied or half open, counted in totals.tentative */
	u32 sample; /* 1 in N packets; 0: none */
	u32 src_identity; /* of the opener */
	u32 dst_identity; /* of the responder */
	u32 ifindex; /* where the first packet was seen */
	u8 flipped; /* 1: the opener is the key's `hi` endpoint */
	u8 icmp_type; /* the opener's type */
	u8 tcp_flags[2]; /* [0] original, [1] reply: all flags seen */
	u8 flags; /* Flag bits of the hook that saw the first packet */
	u8 pad[3]; /* 0 */
};
_Static_assert(__builtin_offsetof(struct flow, verdict) == 0, "flow.verdict");
_Static_assert(__builtin_offsetof(struct flow, id) == 8, "flow.id");
_Static_assert(__builtin_offsetof(struct flow, first_seen) == 16, "flow.first_seen");
_Static_assert(__builtin_offsetof(struct flow, last_seen) == 24, "flow.last_seen");
_Static_assert(__builtin_offsetof(struct flow, packets) == 32, "flow.packets");
_Static_assert(__builtin_offsetof(struct flow, bytes) == 48, "flow.bytes");
_Static_assert(__builtin_offsetof(struct flow, state) == 64, "flow.state");
_Static_assert(__builtin_offsetof(struct flow, due) == 72, "flow.due");
_Static_assert(__builtin_offsetof(struct flow, tentative) == 80, "flow.tentative");
_Static_assert(__builtin_offsetof(struct flow, sample) == 88, "flow.sample");
_Static_assert(__builtin_offsetof(struct flow, src_identity) == 92, "flow.src_identity");
_Static_assert(__builtin_offsetof(struct flow, dst_identity) == 96, "flow.dst_identity");
_Static_assert(__builtin_offsetof(struct flow, ifindex) == 100, "flow.ifindex");
_Static_assert(__builtin_offsetof(struct flow, flipped) == 104, "flow.flipped");
_Static_assert(__builtin_offsetof(struct flow, icmp_type) == 105, "flow.icmp_type");
_Static_assert(__builtin_offsetof(struct flow, tcp_flags) == 106, "flow.tcp_flags");
_Static_assert(__builtin_offsetof(struct flow, flags) == 108, "flow.flags");
_Static_assert(__builtin_offsetof(struct flow, pad) == 109, "flow.pad");
_Static_assert(sizeof(struct flow) == 112, "flow");

/* Of a tree over where ranges of addresses begin: four of them, or of the four nodes below. Padded with the last. */
struct range_node {
	u64 high[4]; /* upper half of the address, as a number */
	u64 low[4]; /* lower half; IPv4 stands at ::ffff:0:0/96, which no IPv6 packet may name */
};
_Static_assert(__builtin_offsetof(struct range_node, high) == 0, "range_node.high");
_Static_assert(__builtin_offsetof(struct range_node, low) == 32, "range_node.low");
_Static_assert(sizeof(struct range_node) == 64, "range_node");

/* What policy knows of a range of addresses. */
struct address_range {
	u32 identity; /* IdentityId or FIRST + index */
	u32 source_class; /* row of source_rules */
	u32 destination_class; /* row of destination_rules */
};
_Static_assert(__builtin_offsetof(struct address_range, identity) == 0, "address_range.identity");
_Static_assert(__builtin_offsetof(struct address_range, source_class) == 4, "address_range.source_class");
_Static_assert(__builtin_offsetof(struct address_range, destination_class) == 8, "address_range.destination_class");
_Static_assert(sizeof(struct address_range) == 12, "address_range");

/* What a rule does. */
struct rule {
	u8 decision; /* Decision */
	u8 report_only; /* 1: its denials are recorded, never dropped */
	u16 pad; /* 0 */
	u32 sample; /* 1 in N packets of a flow; 0: the node's */
};
_Static_assert(__builtin_offsetof(struct rule, decision) == 0, "rule.decision");
_Static_assert(__builtin_offsetof(struct rule, report_only) == 1, "rule.report_only");
_Static_assert(__builtin_offsetof(struct rule, pad) == 2, "rule.pad");
_Static_assert(__builtin_offsetof(struct rule, sample) == 4, "rule.sample");
_Static_assert(sizeof(struct rule) == 8, "rule");

/* Every packet a rule decided, by outcome. Never emptied: `rule_baseline` marks where a revision began. */
struct rule_counter {
	u64 packets_passed;
	u64 bytes_passed;
	u64 packets_dropped;
	u64 bytes_dropped;
};
_Static_assert(__builtin_offsetof(struct rule_counter, packets_passed) == 0, "rule_counter.packets_passed");
_Static_assert(__builtin_offsetof(struct rule_counter, bytes_passed) == 8, "rule_counter.bytes_passed");
_Static_assert(__builtin_offsetof(struct rule_counter, packets_dropped) == 16, "rule_counter.packets_dropped");
_Static_assert(__builtin_offsetof(struct rule_counter, bytes_dropped) == 24, "rule_counter.bytes_dropped");
_Static_assert(sizeof(struct rule_counter) == 32, "rule_counter");

/* A datagram that came in pieces. */
struct fragment_key {
	u8 src[16];
	u8 dst[16];
	u32 id; /* as on the wire */
	u8 family;
	u8 proto;
	u16 pad; /* 0 */
};
_Static_assert(__builtin_offsetof(struct fragment_key, src) == 0, "fragment_key.src");
_Static_assert(__builtin_offsetof(struct fragment_key, dst) == 16, "fragment_key.dst");
_Static_assert(__builtin_offsetof(struct fragment_key, id) == 32, "fragment_key.id");
_Static_assert(__builtin_offsetof(struct fragment_key, family) == 36, "fragment_key.family");
_Static_assert(__builtin_offsetof(struct fragment_key, proto) == 37, "fragment_key.proto");
_Static_assert(__builtin_offsetof(struct fragment_key, pad) == 38, "fragment_key.pad");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");

/* What its first piece said. */
struct fragment {
	u8 key[40]; /* struct flow_key of its flow */
	u64 verdict; /* as in struct flow: holds when the flow has no entry */
	u8 from_hi; /* 1: sent by the key's `hi` endpoint */
	u8 pad[7]; /* 0 */
};
_Static_assert(__builtin_offsetof(struct fragment, key) == 0, "fragment.key");
_Static_assert(__builtin_offsetof(struct fragment, verdict) == 40, "fragment.verdict");
_Static_assert(__builtin_offsetof(struct fragment, from_hi) == 48, "fragment.from_hi");
_Static_assert(__builtin_offsetof(struct fragment, pad) == 49, "fragment.pad");
_Static_assert(sizeof(struct fragment) == 56, "fragment");

/* One of two places for a compiled policy; a revision lives in slot revision & 1. */
struct slot {
	u16 words; /* 64-bit words of a rule vector in use */
	u16 levels; /* of the tree of ranges in use */
	u8 has_policy; /* 0: everything is allowed, reason no_policy */
	u8 default_decision; /* Decision */
	u16 builtins; /* bit i: built-in rule RuleId 16 + i is on */
};
_Static_assert(__builtin_offsetof(struct slot, words) == 0, "slot.words");
_Static_assert(__builtin_offsetof(struct slot, levels) == 2, "slot.levels");
_Static_assert(__builtin_offsetof(struct slot, has_policy) == 4, "slot.has_policy");
_Static_assert(__builtin_offsetof(struct slot, default_decision) == 5, "slot.default_decision");
_Static_assert(__builtin_offsetof(struct slot, builtins) == 6, "slot.builtins");
_Static_assert(sizeof(struct slot) == 8, "slot");

/* The node's state, one entry, written by the collector through mmap. */
struct config {
	u64 epoch; /* revision << 32 | mode, read once a packet as one word */
	u64 previous; /* the epoch to fall back to */
	u64 confirm_until; /* ns since boot; 0: the epoch is confirmed */
	u64 midstream_until; /* ns since boot: until then TCP without a SYN may be judged both ways */
	u64 slots[2]; /* two struct slot */
	u64 timeouts[6]; /* ns without a packet until a flow is over, by FlowClass */
	u32 sample; /* 1 in N packets of a flow; 0: none */
	u32 budget; /* events a second and CPU */
	u32 capacity; /* flow table entries */
	u32 flags; /* Flag bits set in every event of XDP (AGGREGATED) */
	u64 last_revision; /* the highest ever in force: no number is given twice, after a fall-back either */
};
_Static_assert(__builtin_offsetof(struct config, epoch) == 0, "config.epoch");
_Static_assert(__builtin_offsetof(struct config, previous) == 8, "config.previous");
_Static_assert(__builtin_offsetof(struct config, confirm_until) == 16, "config.confirm_until");
_Static_assert(__builtin_offsetof(struct config, midstream_until) == 24, "config.midstream_until");
_Static_assert(__builtin_offsetof(struct config, slots) == 32, "config.slots");
_Static_assert(__builtin_offsetof(struct config, timeouts) == 48, "config.timeouts");
_Static_assert(__builtin_offsetof(struct config, sample) == 96, "config.sample");
_Static_assert(__builtin_offsetof(struct config, budget) == 100, "config.budget");
_Static_assert(__builtin_offsetof(struct config, capacity) == 104, "config.capacity");
_Static_assert(__builtin_offsetof(struct config, flags) == 108, "config.flags");
_Static_assert(__builtin_offsetof(struct config, last_revision) == 112, "config.last_revision");
_Static_assert(sizeof(struct config) == 120, "config");

/* Shared by all CPUs, written seldom: at events and at the birth and end of flows. */
struct totals {
	u64 produced; /* records put into the ring */
	u64 consumed; /* records released by the collector: written by it through mmap */
	u64 flows; /* entries in the flow table */
	u64 tentative; /* of these, denied or half open */
};
_Static_assert(__builtin_offsetof(struct totals, produced) == 0, "totals.produced");
_Static_assert(__builtin_offsetof(struct totals, consumed) == 8, "totals.consumed");
_Static_assert(__builtin_offsetof(struct totals, flows) == 16, "totals.flows");
_Static_assert(__builtin_offsetof(struct totals, tentative) == 24, "totals.tentative");
_Static_assert(sizeof(struct totals) == 32, "totals");

/* Scratch state of one CPU. */
struct cpu_state {
	u64 tokens; /* event budget, in events × 10⁹ */
	u64 refilled; /* ns since boot */
	u64 last_event; /* ns since boot: quiet before it means wake the reader */
	u64 unwoken; /* events since the last wake-up */
	u64 serial; /* last flow id given out */
	u64 untracked; /* untracked packets: every N-th is sampled */
};
_Static_assert(__builtin_offsetof(struct cpu_state, tokens) == 0, "cpu_state.tokens");
_Static_assert(__builtin_offsetof(struct cpu_state, refilled) == 8, "cpu_state.refilled");
_Static_assert(__builtin_offsetof(struct cpu_state, last_event) == 16, "cpu_state.last_event");
_Static_assert(__builtin_offsetof(struct cpu_state, unwoken) == 24, "cpu_state.unwoken");
_Static_assert(__builtin_offsetof(struct cpu_state, serial) == 32, "cpu_state.serial");
_Static_assert(__builtin_offsetof(struct cpu_state, untracked) == 40, "cpu_state.untracked");
_Static_assert(sizeof(struct cpu_state) == 48, "cpu_state");

/* What BCC's compiler is given with -D; the CO-RE object has it in .rodata, set before it is loaded, so that the verifier takes it for constant. schemas/maps.py says how much each is. */
struct constants {
	u32 rules_max;
	u32 classes_max;
	u32 ranges_max;
	u32 nodes_max; /* of the tree over ranges */
	u32 levels_max; /* of that tree */
	u32 summary_words; /* before the words of a vector */
	u32 ring_bytes;
	u32 sweep_max;
	u32 judge_clock; /* 1: the clock is that of a capture, before the packet */
	u32 no_coarse_clock; /* 1: before Linux 5.11; the verifier never sees the helper */
	u8 source[64]; /* SHA-256 of the sources as hex digits, set by bpf/Makefile */
};
_Static_assert(__builtin_offsetof(struct constants, rules_max) == 0, "constants.rules_max");
_Static_assert(__builtin_offsetof(struct constants, classes_max) == 4, "constants.classes_max");
_Static_assert(__builtin_offsetof(struct constants, ranges_max) == 8, "constants.ranges_max");
_Static_assert(__builtin_offsetof(struct constants, nodes_max) == 12, "constants.nodes_max");
_Static_assert(__builtin_offsetof(struct constants, levels_max) == 16, "constants.levels_max");
_Static_assert(__builtin_offsetof(struct constants, summary_words) == 20, "constants.summary_words");
_Static_assert(__builtin_offsetof(struct constants, ring_bytes) == 24, "constants.ring_bytes");
_Static_assert(__builtin_offsetof(struct constants, sweep_max) == 28, "constants.sweep_max");
_Static_assert(__builtin_offsetof(struct constants, judge_clock) == 32, "constants.judge_clock");
_Static_assert(__builtin_offsetof(struct constants, no_coarse_clock) == 36, "constants.no_coarse_clock");
_Static_assert(__builtin_offsetof(struct constants, source) == 40, "constants.source");
_Static_assert(sizeof(struct constants) == 104, "constants");

/* One record of the ring; all have this size. */
struct verdict_event {
	u64 time; /* new: first packet; sample, change: this packet; end: last packet */
	u64 flow_id; /* unique within the ring; 0: untracked */
	u8 src[16]; /* the opener's address; IPv4 in the last 4 bytes */
	u8 dst[16]; /* the responder's address */
	u64 packets_original; /* so far, from the opener */
	u64 bytes_original; /* so far, from the opener */
	u64 packets_reply; /* so far, back to the opener */
	u64 bytes_reply; /* so far, back to the opener */
	u32 revision; /* of the policy that decided */
	u32 src_identity; /* number within the revision */
	u32 dst_identity; /* number within the revision */
	u32 ifindex; /* interface of this packet */
	u16 sport; /* the opener's port; ICMP: the id */
	u16 dport; /* the responder's port; ICMP: the opener's type */
	u16 rule; /* number within the revision; below 64: RuleId */
	u8 family; /* 4 or 6; 0: not known (malformed) */
	u8 proto; /* IANA protocol number */
	u8 event; /* EventKind */
	u8 decision; /* Decision */
	u8 outcome; /* Outcome */
	u8 reason; /* Reason */
	u8 direction; /* Direction of this packet */
	u8 tcp_flags_original; /* all flags seen so far */
	u8 tcp_flags_reply; /* all flags seen so far */
	u8 flags; /* Flag bits */
};
_Static_assert(__builtin_offsetof(struct verdict_event, time) == 0, "verdict_event.time");
_Static_assert(__builtin_offsetof(struct verdict_event, flow_id) == 8, "verdict_event.flow_id");
_Static_assert(__builtin_offsetof(struct verdict_event, src) == 16, "verdict_event.src");
_Static_assert(__builtin_offsetof(struct verdict_event, dst) == 32, "verdict_event.dst");
_Static_assert(__builtin_offsetof(struct verdict_event, packets_original) == 48, "verdict_event.packets_original");
_Static_assert(__builtin_offsetof(struct verdict_event, bytes_original) == 56, "verdict_event.bytes_original");
_Static_assert(__builtin_offsetof(struct verdict_event, packets_reply) == 64, "verdict_event.packets_reply");
_Static_assert(__builtin_offsetof(struct verdict_event, bytes_reply) == 72, "verdict_event.bytes_reply");
_Static_assert(__builtin_offsetof(struct verdict_event, revision) == 80, "verdict_event.revision");
_Static_assert(__builtin_offsetof(struct verdict_event, src_identity) == 84, "verdict_event.src_identity");
_Static_assert(__builtin_offsetof(struct verdict_event, dst_identity) == 88, "verdict_event.dst_identity");
_Static_assert(__builtin_offsetof(struct verdict_event, ifindex) == 92, "verdict_event.ifindex");
_Static_assert(__builtin_offsetof(struct verdict_event, sport) == 96, "verdict_event.sport");
_Static_assert(__builtin_offsetof(struct verdict_event, dport) == 98, "verdict_event.dport");
_Static_assert(__builtin_offsetof(struct verdict_event, rule) == 100, "verdict_event.rule");
_Static_assert(__builtin_offsetof(struct verdict_event, family) == 102, "verdict_event.family");
_Static_assert(__builtin_offsetof(struct verdict_event, proto) == 103, "verdict_event.proto");
_Static_assert(__builtin_offsetof(struct verdict_event, event) == 104, "verdict_event.event");
_Static_assert(__builtin_offsetof(struct verdict_event, decision) == 105, "verdict_event.decision");
_Static_assert(__builtin_offsetof(struct verdict_event, outcome) == 106, "verdict_event.outcome");
_Static_assert(__builtin_offsetof(struct verdict_event, reason) == 107, "verdict_event.reason");
_Static_assert(__builtin_offsetof(struct verdict_event, direction) == 108, "verdict_event.direction");
_Static_assert(__builtin_offsetof(struct verdict_event, tcp_flags_original) == 109, "verdict_event.tcp_flags_original");
_Static_assert(__builtin_offsetof(struct verdict_event, tcp_flags_reply) == 110, "verdict_event.tcp_flags_reply");
_Static_assert(__builtin_offsetof(struct verdict_event, flags) == 111, "verdict_event.flags");
_Static_assert(sizeof(struct verdict_event) == 112, "verdict_event");

#define EVENT_STRIDE 120 /* bytes from one record of the ring to the next */

#endif
