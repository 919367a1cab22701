/* The front for libbpf: maps, one accessor an operation, entry points, built once into an object that every kernel loads
 * (bpf/Makefile). It needs no relocation: XDP and TC contexts are the kernel's user API. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/pkt_cls.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

/* Verified once, for any arguments, not once for each way that leads there: a fifteenth of the instructions to walk. */
#define APART __attribute__((noinline))

#include "packet.h"

/* Set by the loader: the kernel freezes it, and the verifier follows only what these numbers allow. */
const volatile struct constants constants SEC(".rodata.constants") = {.source = SOURCE};

#define RULES_MAX constants.rules_max
#define CLASSES_MAX constants.classes_max
#define RANGES_MAX constants.ranges_max
#define NODES_MAX constants.nodes_max
#define LEVELS_MAX constants.levels_max
#define SUMMARY_WORDS constants.summary_words
#define RING_BYTES constants.ring_bytes
#define SWEEP_MAX constants.sweep_max
#define JUDGE_CLOCK constants.judge_clock
#define NO_COARSE_CLOCK constants.no_coarse_clock

#define MAP(kind, KIND, k, v, name, flags)      \
	struct {                                \
		__uint(type, BPF_MAP_TYPE_##KIND); \
		__uint(max_entries, 1);         \
		__uint(map_flags, flags);       \
		__type(key, k);                 \
		__type(value, v);               \
	} name SEC(".maps");
#define RING(name)                                  \
	struct {                                    \
		__uint(type, BPF_MAP_TYPE_RINGBUF); \
		__uint(max_entries, 4096);          \
	} name SEC(".maps");
#include "maps.h"

#define ARRAY_LOOKUP(map, value)                               \
	static __always_inline value *map##_lookup(u32 at)     \
	{                                                      \
		return bpf_map_lookup_elem(&map, &at);         \
	}
ARRAY_LOOKUP(range_nodes, struct range_node)
ARRAY_LOOKUP(ranges, struct address_range)
ARRAY_LOOKUP(ports, u32)
ARRAY_LOOKUP(source_rules, u64)
ARRAY_LOOKUP(destination_rules, u64)
ARRAY_LOOKUP(port_rules, u64)
ARRAY_LOOKUP(rules, struct rule)
ARRAY_LOOKUP(rule_counters, struct rule_counter)
ARRAY_LOOKUP(counters, u64)
ARRAY_LOOKUP(config, struct config)
ARRAY_LOOKUP(totals, struct totals)
ARRAY_LOOKUP(cpu_state, struct cpu_state)
ARRAY_LOOKUP(scratch, struct scratch)

static __always_inline struct flow *flow_lookup(struct flow_key *key)
{
	return bpf_map_lookup_elem(&flows, key);
}

static __always_inline long flow_insert(struct flow_key *key, struct flow *flow)
{
	return bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST);
}

static __always_inline void flow_delete(struct flow_key *key)
{
	bpf_map_delete_elem(&flows, key);
}

static __always_inline void counter_add(u32 at, u64 n)
{
	u64 *counter = counters_lookup(at);
	if (counter)
		*counter += n;
}

static __always_inline void counter_add_atomic(u32 at, u64 n)
{
	u64 *counter = counters_lookup(at);
	if (counter)
		__sync_fetch_and_add(counter, n);
}

static __always_inline struct fragment *fragment_lookup(struct fragment_key *key)
{
	return bpf_map_lookup_elem(&fragments, key);
}

static __always_inline void fragment_insert(struct fragment_key *key, struct fragment *fragment)
{
	bpf_map_update_elem(&fragments, key, fragment, BPF_ANY);
}

static __always_inline u32 *watched_lookup(u32 *ifindex)
{
	return bpf_map_lookup_elem(&watched, ifindex);
}

static __always_inline struct verdict_event *ring_reserve(void)
{
	return bpf_ringbuf_reserve(&events, sizeof(struct verdict_event), 0);
}

static __always_inline void ring_submit(struct verdict_event *event, u64 flags)
{
	bpf_ringbuf_submit(event, flags);
}

#include "hooks.h"

SEC("xdp")
int xdp_ingress(struct xdp_md *ctx)
{
	return on_ingress(ctx);
}

SEC("tc")
int tc_egress(struct __sk_buff *skb)
{
	return on_egress(skb);
}

SEC("xdp")
int mark(struct xdp_md *ctx)
{
	return on_mark(ctx);
}

SEC("xdp")
int reap(struct xdp_md *ctx)
{
	return on_reap(ctx);
}

/* Called by nobody: what no map and no function names is not in the BTF, which tests compare with schemas/. */
APART int shared_types(const struct slot *slot, const struct verdict_event *event)
{
	return slot && event;
}

char LICENSE[] SEC("license") = "GPL";
