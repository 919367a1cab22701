/* Ending flows exactly. User space finds candidates by batch lookup and test-runs these with their keys as the packet.
 *
 *	sweep(data, data_end, now, 0)	`mark`: what is over becomes DEAD, what is due is emitted → flows that are DEAD
 *	sweep(data, data_end, now, 1)	`reap`: DEAD flows emit `end` and are deleted → flows deleted
 *
 * Between the two, user space waits for a membarrier: then no CPU still counts into a DEAD entry. (Lookup-and-delete
 * from user space lost packets that were just being counted.)
 */
#ifndef ZTLENS_SWEEP_H
#define ZTLENS_SWEEP_H

#include "flow.h"

/* The flow of a key; `key` gets a copy of it, for what was passed to a function is none to Linux 6.1. */
static __always_inline struct flow *flow_of(struct flow_key *key, const struct flow_key *asked)
{
	if (!asked)
		return NULL;
	copy_words(key, asked, sizeof(*key));
	return flow_lookup(key);
}

/* → 1: the flow is DEAD. */
APART int mark_flow(const struct flow_key *asked, u64 now)
{
	const struct config *config = config_lookup(0);
	struct flow_key key;
	struct flow *flow = flow_of(&key, asked);

	if (!flow || !config)
		return 0;
	/* A restart that found no room in the ring. If it is still at it, it ends before `reap` and makes it ACTIVE. */
	if (flow->due & DUE_END)
		__sync_val_compare_and_swap(&flow->state, FLOW_BUSY, FLOW_DEAD);
	if (flow_is_idle(flow, &key, config, now) &&
	    __sync_val_compare_and_swap(&flow->state, FLOW_ACTIVE, FLOW_DEAD) == FLOW_ACTIVE)
		flow_owes(flow, DUE_END);
	if (*(volatile u64 *)&flow->state == FLOW_DEAD)
		return 1;
	flow_emit(flow, &key, NULL, now, flow->due & (DUE_NEW | DUE_CHANGE));
	return 0;
}

/* → 1: the flow is gone. */
APART int reap_flow(const struct flow_key *asked, u64 now)
{
	struct totals *totals = totals_lookup(0);
	struct flow_key key;
	struct flow *flow = flow_of(&key, asked);

	if (!flow || !totals || flow->state != FLOW_DEAD)
		return 0;
	if (flow_emit(flow, &key, NULL, now, flow->due))
		return 0; /* the ring is full: next time */
	flow_settled(flow);
	__sync_fetch_and_add(&totals->flows, -1ULL);
	flow_delete(&key);
	return 1;
}

/* `reap` is a constant: each program has one of the two. */
static __always_inline int sweep(void *data, void *end, u64 now, int reap)
{
	int done = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < SWEEP_MAX; i++) {
		struct flow_key key;

		if (data + sizeof(key) > end)
			break;
		copy_words(&key, data, sizeof(key));
		data += sizeof(key);
		done += reap ? reap_flow(&key, now) : mark_flow(&key, now);
	}
	return done;
}

#endif
