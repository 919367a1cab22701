/* Ending flows exactly. User space finds candidates by batch lookup and test-runs these with their keys as the packet.
 *
 *	sweep_mark(data, data_end)	what is over becomes DEAD, what is due is emitted → flows that are DEAD
 *	sweep_reap(data, data_end)	DEAD flows emit `end` and are deleted → flows deleted
 *
 * Between the two, user space waits for a membarrier: then no CPU still counts into a DEAD entry. (Lookup-and-delete
 * from user space lost packets that were just being counted.)
 */
#ifndef ZTLENS_SWEEP_H
#define ZTLENS_SWEEP_H

#include "flow.h"

static __always_inline int sweep_mark(void *data, void *end, u64 now)
{
	const struct config *config = config_lookup(0);
	int dead = 0;

	if (!config)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < SWEEP_MAX; i++) {
		struct flow_key key;
		struct flow *flow;

		if (data + sizeof(key) > end)
			break;
		__builtin_memcpy(&key, data, sizeof(key));
		data += sizeof(key);
		flow = flow_lookup(&key);
		if (!flow)
			continue;
		/* A restart that found no room in the ring. If it is still at it, it ends before `reap` and makes it ACTIVE. */
		if (flow->due & DUE_END)
			__sync_val_compare_and_swap(&flow->state, FLOW_BUSY, FLOW_DEAD);
		if (flow_is_idle(flow, &key, config, now) &&
		    __sync_val_compare_and_swap(&flow->state, FLOW_ACTIVE, FLOW_DEAD) == FLOW_ACTIVE)
			flow_owes(flow, DUE_END);
		if (*(volatile u64 *)&flow->state == FLOW_DEAD)
			dead++;
		else if (flow->due & (DUE_NEW | DUE_CHANGE))
			flow_emit(flow, &key, NULL, config, now, flow->due & (DUE_NEW | DUE_CHANGE));
	}
	return dead;
}

static __always_inline int sweep_reap(void *data, void *end, u64 now)
{
	const struct config *config = config_lookup(0);
	struct totals *totals = totals_lookup(0);
	int reaped = 0;

	if (!config || !totals)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < SWEEP_MAX; i++) {
		struct flow_key key;
		struct flow *flow;

		if (data + sizeof(key) > end)
			break;
		__builtin_memcpy(&key, data, sizeof(key));
		data += sizeof(key);
		flow = flow_lookup(&key);
		if (!flow || flow->state != FLOW_DEAD)
			continue;
		if (flow_emit(flow, &key, NULL, config, now, flow->due))
			continue; /* the ring is full: next time */
		flow_settled(flow);
		__sync_fetch_and_add(&totals->flows, -1ULL);
		flow_delete(&key);
		reaped++;
	}
	return reaped;
}

#endif
