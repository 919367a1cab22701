/* The front for BCC: maps, one accessor an operation, entry points. BCC rewrites `map.lookup()` only in this file and
 * never inside a macro, which is why the logic in the headers sees accessors alone. Sizes come with -D. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/pkt_cls.h>

/* BCC cannot call one function of ours from another. */
#define APART static __always_inline

#include "packet.h"

/* As small as can be: these are the compiler's own, the loader makes those that are used. */
#define MAP(kind, KIND, key, value, name, flags) BPF_F_TABLE(#kind, key, value, name, 1, flags);
#define RING(name) BPF_RINGBUF_OUTPUT(name, 1);
#include "maps.h"

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

static __always_inline u64 *source_rules_lookup(u32 at)
{
	return source_rules.lookup(&at);
}

static __always_inline u64 *destination_rules_lookup(u32 at)
{
	return destination_rules.lookup(&at);
}

static __always_inline u64 *port_rules_lookup(u32 at)
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

static __always_inline u32 *watched_lookup(u32 *ifindex)
{
	return watched.lookup(ifindex);
}

static __always_inline struct verdict_event *ring_reserve(void)
{
	return events.ringbuf_reserve(sizeof(struct verdict_event));
}

static __always_inline void ring_submit(struct verdict_event *event, u64 flags)
{
	events.ringbuf_submit(event, flags);
}

#include "hooks.h"

int xdp_ingress(struct xdp_md *ctx)
{
	return on_ingress(ctx);
}

int tc_egress(struct __sk_buff *skb)
{
	return on_egress(skb);
}

int mark(struct xdp_md *ctx)
{
	return on_mark(ctx);
}

int reap(struct xdp_md *ctx)
{
	return on_reap(ctx);
}
