/* The two clocks: a coarse one for every packet, a precise one for events.
 *
 *	clock_coarse(scratch)	→ ns since boot, in steps of a tick; precise on a kernel without such a clock
 *	clock_precise(coarse)	→ ns since boot; in `judge` the capture's, which is `coarse`
 */
#ifndef ZTLENS_CLOCK_H
#define ZTLENS_CLOCK_H

#include "packet.h"

/* Asked once a tick: the call costs 18 ns, reading jiffies (which the kernel inlines) 1. Another CPU may be a tick
 * ahead. The order of the stores keeps a softirq between them from an old time for a new tick. */
static __always_inline u64 clock_coarse(struct scratch *s)
{
	u64 tick;

	if (NO_COARSE_CLOCK)
		return bpf_ktime_get_ns();
	tick = bpf_jiffies64();
	if (s->tick != tick) {
		*(volatile u64 *)&s->tick_ns = bpf_ktime_get_coarse_ns();
		*(volatile u64 *)&s->tick = tick;
	}
	return s->tick_ns;
}

static __always_inline u64 clock_precise(u64 coarse)
{
	return JUDGE_CLOCK ? coarse : bpf_ktime_get_ns();
}

#endif
