/* The front for BCC: maps, one accessor an operation, entry points. BCC rewrites `map.lookup()` only in this file and
 * never inside a macro, which is why the logic in the headers sees accessors alone. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "parse.h"

/* canonical 5-tuple → the flow: preallocated, so that a packet never waits for memory */
BPF_F_TABLE("hash", struct flow_key, struct flow, flows, FLOWS_MAX, 0);
/* slot, node → where ranges begin: a longest match over random keys takes an LPM trie twenty steps, this one nine */
BPF_F_TABLE("array", u32, struct range_node, range_nodes, 2 * NODES_MAX, BPF_F_MMAPABLE);
/* slot, range of addresses → identity and classes of the longest prefix around it */
BPF_F_TABLE("array", u32, struct address_range, ranges, 2 * RANGES_MAX, BPF_F_MMAPABLE);
/* slot, port group, port → port class: direct index, no search */
BPF_F_TABLE("array", u32, u32, ports, 2 * PORTS_PER_SLOT, BPF_F_MMAPABLE);
/* slot, class → bit vector over rules, in order of credit, and its summary */
BPF_F_TABLE("array", u32, struct vector, source_rules, 2 * CLASSES_MAX, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct vector, destination_rules, 2 * CLASSES_MAX, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct vector, port_rules, 2 * CLASSES_MAX, BPF_F_MMAPABLE);
/* slot, rule → what it does */
BPF_F_TABLE("array", u32, struct rule, rules, 2 * RULES_MAX, BPF_F_MMAPABLE);
/* slot, rule number → every packet it decided: per CPU, so counting is exact without atomics */
BPF_F_TABLE("percpu_array", u32, struct rule_counter, rule_counters, 2 * (RULES_MAX + RULE_FIRST), 0);
/* the same index → rule_counters when the revision in the slot began; user space's own note, pinned with the rest */
BPF_F_TABLE("array", u32, struct rule_counter, rule_baseline, 2 * (RULES_MAX + RULE_FIRST), BPF_F_MMAPABLE);
/* COUNTER_* → count since the map was made */
BPF_F_TABLE("percpu_array", u32, u64, counters, COUNTERS, 0);
/* datagram → its flow and verdict, for the pieces without ports; least recently used goes first */
BPF_F_TABLE("lru_hash", struct fragment_key, struct fragment, fragments, FRAGMENTS_MAX, 0);
/* the node's state, written by the collector */
BPF_F_TABLE("array", u32, struct config, config, 1, BPF_F_MMAPABLE);
/* what all CPUs share */
BPF_F_TABLE("array", u32, struct totals, totals, 1, BPF_F_MMAPABLE);
/* event budget, wake-ups, flow ids */
BPF_F_TABLE("percpu_array", u32, struct cpu_state, cpu_state, 1, 0);
/* the packet at hand */
BPF_F_TABLE("percpu_array", u32, struct scratch, scratch, 1, 0);
/* ifindex → 1: watched on ingress; egress leaves what came in there alone */
BPF_F_TABLE("hash", u32, u32, watched, 1024, 0);
/* struct verdict_event, all of one size; in pages */
BPF_RINGBUF_OUTPUT(events, RING_BYTES / 4096);

static __always_inline struct flow *flow_lookup(struct flow_key *key)
{
	return flows.lookup(key);
}

static __always_inline long flow_insert(struct flow_key *key, struct flow *flow)
{
	return flows.insert(key, flow); /* BPF_NOEXIST */
}

static __always_inline void flow_delete(struct flow_key *key)
{
	flows.delete(key);
}

static __always_inline struct range_node *range_nodes_lookup(u32 at)
{
	return range_nodes.lookup(&at);
}

static __always_inline struct address_range *ranges_lookup(u32 at)
{
	return ranges.lookup(&at);
}

static __always_inline u32 *ports_lookup(u32 at)
{
	return ports.lookup(&at);
}

static __always_inline struct vector *source_rules_lookup(u32 at)
{
	return source_rules.lookup(&at);
}

static __always_inline struct vector *destination_rules_lookup(u32 at)
{
	return destination_rules.lookup(&at);
}

static __always_inline struct vector *port_rules_lookup(u32 at)
{
	return port_rules.lookup(&at);
}

static __always_inline struct rule *rules_lookup(u32 at)
{
	return rules.lookup(&at);
}

static __always_inline struct rule_counter *rule_counters_lookup(u32 at)
{
	return rule_counters.lookup(&at);
}

static __always_inline void counter_add(u32 at, u64 n)
{
	u64 *counter = counters.lookup(&at);
	if (counter)
		*counter += n;
}

static __always_inline void counter_add_atomic(u32 at, u64 n)
{
	u64 *counter = counters.lookup(&at);
	if (counter)
		__sync_fetch_and_add(counter, n);
}

static __always_inline struct fragment *fragment_lookup(struct fragment_key *key)
{
	return fragments.lookup(key);
}

static __always_inline void fragment_insert(struct fragment_key *key, struct fragment *fragment)
{
	fragments.update(key, fragment);
}

static __always_inline struct config *config_lookup(u32 at)
{
	return config.lookup(&at);
}

static __always_inline struct totals *totals_lookup(u32 at)
{
	return totals.lookup(&at);
}

static __always_inline struct cpu_state *cpu_state_lookup(u32 at)
{
	return cpu_state.lookup(&at);
}

static __always_inline struct scratch *scratch_lookup(u32 at)
{
	return scratch.lookup(&at);
}

static __always_inline struct verdict_event *ring_reserve(void)
{
	return events.ringbuf_reserve(sizeof(struct verdict_event));
}

static __always_inline void ring_submit(struct verdict_event *event, u64 flags)
{
	events.ringbuf_submit(event, flags);
}

/* The coarse clock, asked once a tick: the call costs 18 ns, reading jiffies (which the kernel inlines) 1. Another CPU
 * may be a tick ahead. The order of the stores keeps a softirq between them from an old time for a new tick. */
static __always_inline u64 clock_coarse(struct scratch *s)
{
	u64 tick = bpf_jiffies64();

	if (s->tick != tick) {
		*(volatile u64 *)&s->tick_ns = bpf_ktime_get_coarse_ns();
		*(volatile u64 *)&s->tick = tick;
	}
	return s->tick_ns;
}

/* The clock of events; `coarse` is that of the packet, 4 ms steps on most kernels. */
static __always_inline u64 clock_precise(u64 coarse)
{
#ifdef JUDGE_CLOCK
	return coarse; /* a capture's clock */
#else
	return bpf_ktime_get_ns();
#endif
}

#include "datapath.h"
#include "sweep.h"

int xdp_ingress(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct config *config = config_lookup(0);
	struct scratch *s = scratch_lookup(0);
	struct packet *p;

	if (!config || !s)
		return XDP_PASS;
	p = packet_begin(s);
	p->wire_length = end - data;
	p->bytes = p->wire_length;
	p->packets = 1;
	p->ifindex = ctx->ingress_ifindex;
	p->flags = config->flags;
#ifdef JUDGE_CLOCK
	u64 *stamp = (void *)(long)ctx->data_meta;
	if ((void *)(stamp + 1) > data)
		return XDP_ABORTED;
	p->now = *stamp;
#else
	p->now = clock_coarse(s);
#endif
	return datapath(s, config, data, end) ? XDP_DROP : XDP_PASS;
}

/* Passing is TC_ACT_UNSPEC: TC_ACT_OK would keep other people's filters from running. */
int tc_egress(struct __sk_buff *skb)
{
	void *data, *end;
	struct config *config = config_lookup(0);
	struct scratch *s = scratch_lookup(0);
	struct packet *p;
	u32 from = skb->ingress_ifindex;

	if (!config || !s)
		return TC_ACT_UNSPEC;
	if (from && watched.lookup(&from)) {
		counter_add(COUNTER_EGRESS_SKIPPED, 1);
		return TC_ACT_UNSPEC;
	}
	/* Headers may lie outside the linear part. */
	if (skb->data_end - skb->data < 128 && skb->data_end - skb->data < skb->len)
		bpf_skb_pull_data(skb, skb->len < 256 ? skb->len : 256);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	p = packet_begin(s);
	p->wire_length = skb->len;
	p->packets = skb->gso_segs ? skb->gso_segs : 1;
	/* wire_len counts the headers of every segment; a VLAN tag is in the skb, not yet in the frame. */
	p->bytes = skb->wire_len + (skb->vlan_present ? 4 * p->packets : 0);
	p->ifindex = skb->ifindex;
	p->flags = FLAG_EGRESS;
	p->now = clock_coarse(s);
	return datapath(s, config, data, end) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

int mark(struct xdp_md *ctx)
{
	struct scratch *s = scratch_lookup(0);

	return s ? sweep((void *)(long)ctx->data, (void *)(long)ctx->data_end, clock_coarse(s), 0) : 0;
}

int reap(struct xdp_md *ctx)
{
	struct scratch *s = scratch_lookup(0);

	return s ? sweep((void *)(long)ctx->data, (void *)(long)ctx->data_end, clock_coarse(s), 1) : 0;
}
