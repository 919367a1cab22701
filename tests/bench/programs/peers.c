/* What the datapath is compared with, and `stir` and `deal`, which give each run of a test-run another tuple.
 *
 * All are XDP programs for frames of UDP over IPv4 without options. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/udp.h>

#define DEALT 131072

struct key40 {
	u64 words[5];
};
struct tuple {
	u32 saddr, daddr;
	u16 sport, dport;
	u32 proto;
};
struct count {
	u64 packets, bytes;
};

/* as large as the flow table's default */
BPF_F_TABLE("hash", struct key40, struct count, floor_map, 262144, 0);
BPF_F_TABLE("hash", struct tuple, struct count, tuples, 262144, 0);
/* frames that `drop` and `count` saw */
BPF_F_TABLE("percpu_array", u32, u64, seen, 1, 0);
/* [0] the next flow's number, [1] flows, 0: never the same again */
BPF_F_TABLE("array", u32, u64, stirred, 2, BPF_F_MMAPABLE);
/* tuples that `deal` gives out */
BPF_F_TABLE("array", u32, struct tuple, dealt, DEALT, BPF_F_MMAPABLE);
BPF_PROG_ARRAY(target, 1);

int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/* The floor of anything that keeps flows: bounds check and one lookup of a 40-byte key. */
int lookup(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct key40 key = {};

	if (data + 42 > end)
		return XDP_DROP;
	key.words[0] = *(u64 *)(data + 26); /* both addresses */
	key.words[1] = *(u32 *)(data + 34); /* both ports */
	return floor_map.lookup(&key) ? XDP_PASS : XDP_DROP;
}

/* The least that counts packets and bytes by five-tuple. */
int count(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp = (void *)(ip + 1);
	struct tuple key = {};
	struct count *value, first = {};

	if ((void *)(udp + 1) > end || eth->h_proto != htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != 17)
		return XDP_PASS;
	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.sport = udp->source;
	key.dport = udp->dest;
	key.proto = ip->protocol;
	value = tuples.lookup(&key);
	if (!value) {
		first.packets = 1;
		first.bytes = end - data;
		tuples.insert(&key, &first);
		return XDP_DROP;
	}
	__sync_fetch_and_add(&value->packets, 1);
	__sync_fetch_and_add(&value->bytes, end - data);
	return XDP_DROP;
}

/* Source address 10.1.x.y and source port from a number times an odd constant: all 2^32 are different, in no order. */
int stir(struct xdp_md *ctx)
{
	u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 zero = 0, one = 1, number;
	u64 *next = stirred.lookup(&zero), *flows = stirred.lookup(&one);

	if (!next || !flows || data + 42 > end)
		return XDP_ABORTED;
	number = *next;
	*next = number + 1 == *flows ? 0 : number + 1;
	number *= 2654435761u;
	*(u16 *)(data + 28) = number >> 16;
	*(u16 *)(data + 34) = number;
	target.call(ctx, 0);
	return XDP_ABORTED;
}

/* The next of the dealt tuples, in order, round and round. */
int deal(struct xdp_md *ctx)
{
	u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 zero = 0, at;
	u64 *next = stirred.lookup(&zero);
	struct tuple *tuple;

	if (!next || data + 42 > end)
		return XDP_ABORTED;
	at = *next % DEALT;
	*next += 1;
	tuple = dealt.lookup(&at);
	if (!tuple)
		return XDP_ABORTED;
	*(u32 *)(data + 26) = tuple->saddr;
	*(u32 *)(data + 30) = tuple->daddr;
	*(u16 *)(data + 34) = tuple->sport;
	*(u16 *)(data + 36) = tuple->dport;
	target.call(ctx, 0);
	return XDP_ABORTED;
}
