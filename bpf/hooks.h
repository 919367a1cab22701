/* What the entry points do; a front only names them. Each fills what its hook knows of the packet, and turns the answer
 * of the datapath into the hook's return code.
 *
 *	on_ingress(xdp_md)	XDP
 *	on_egress(__sk_buff)	TC egress: TCX, or a filter on clsact
 *	on_mark(xdp_md), on_reap(xdp_md)	test-run by user space with flow keys as the packet
 */
#ifndef ZTLENS_HOOKS_H
#define ZTLENS_HOOKS_H

#include "datapath.h"
#include "sweep.h"

static __always_inline int on_ingress(struct xdp_md *ctx)
{
	const struct frame frame = {.xdp = ctx};
	struct config *config = config_lookup(0);
	struct scratch *s = scratch_lookup(0);
	struct packet *p;

	if (!config || !s)
		return XDP_PASS;
	p = packet_begin(s);
	p->wire_length = ctx->data_end - ctx->data;
	p->bytes = p->wire_length;
	p->packets = 1;
	p->ifindex = ctx->ingress_ifindex;
	p->flags = config->flags;
	if (JUDGE_CLOCK) {
		u64 *stamp = (void *)(long)ctx->data_meta;

		if ((void *)(stamp + 1) > frame_data(&frame))
			return XDP_ABORTED;
		p->now = *stamp;
	} else {
		p->now = clock_coarse(s);
	}
	return datapath(s, &frame) ? XDP_DROP : XDP_PASS;
}

/* Passing is TC_ACT_UNSPEC: TC_ACT_OK would keep other people's filters from running. */
static __always_inline int on_egress(struct __sk_buff *skb)
{
	const struct frame frame = {.skb = skb};
	struct config *config = config_lookup(0);
	struct scratch *s = scratch_lookup(0);
	struct packet *p;
	u32 from = skb->ingress_ifindex;

	if (!config || !s)
		return TC_ACT_UNSPEC;
	if (from && watched_lookup(&from)) {
		counter_add(COUNTER_EGRESS_SKIPPED, 1);
		return TC_ACT_UNSPEC;
	}
	/* Headers may lie outside the linear part. */
	if (skb->data_end - skb->data < 128 && skb->data_end - skb->data < skb->len)
		bpf_skb_pull_data(skb, skb->len < 256 ? skb->len : 256);
	p = packet_begin(s);
	p->wire_length = skb->len;
	p->packets = skb->gso_segs ? skb->gso_segs : 1;
	/* wire_len counts the headers of every segment; a VLAN tag is in the skb, not yet in the frame. */
	p->bytes = skb->wire_len + (skb->vlan_present ? 4 * p->packets : 0);
	p->ifindex = skb->ifindex;
	p->flags = FLAG_EGRESS;
	p->now = clock_coarse(s);
	return datapath(s, &frame) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

static __always_inline int on_mark(struct xdp_md *ctx)
{
	struct scratch *s = scratch_lookup(0);

	return s ? sweep((void *)(long)ctx->data, (void *)(long)ctx->data_end, clock_coarse(s), 0) : 0;
}

static __always_inline int on_reap(struct xdp_md *ctx)
{
	struct scratch *s = scratch_lookup(0);

	return s ? sweep((void *)(long)ctx->data, (void *)(long)ctx->data_end, clock_coarse(s), 1) : 0;
}

#endif
