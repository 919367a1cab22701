/* From a verdict to a record in the ring.
 *
 *	event_allowed(cpu, config, now, denied, sample)	takes a token of the budget
 *	event_emit(flow, key, packet, now, kind)	→ 1: the ring did not take it
 *	flow_emit(flow, key, packet, now, kinds)	→ the kinds that the ring did not take
 *	untracked_emit(scratch)				a sample of a packet without a flow
 *
 * `new`, `change` and `end` are owed: their bit in flow->due is set first and cleared when the ring has taken the
 * record, so a full ring makes them late, never lost. Only samples can be lost, and are counted.
 *
 * Counters are added to atomically here: the sweep runs in task context, where a softirq may interrupt it on the same
 * CPU. The datapath's own counters need that not.
 */
#ifndef ZTLENS_EVENT_H
#define ZTLENS_EVENT_H

#include "clock.h"
#include "judge.h"

#define WAKE_EVENTS 64		   /* wake the reader once so many events */
#define WAKE_QUIET_NS 10000000ULL  /* and on the first event after so long without */
#define DUE_SAMPLE 8ULL		   /* in `kinds` only: a sample is never owed */
#define NS_PER_S 1000000000ULL

/* Tokens are counted in events × 10⁹, so that refilling is one multiplication. The full bucket is one second's.
 * Denials may empty it; what is allowed leaves them a quarter; samples leave half. */
static __always_inline int event_allowed(struct cpu_state *cpu, const struct config *config, u64 now, int denied, int sample)
{
	u64 full = (u64)config->budget * NS_PER_S;
	u64 floor = sample ? full / 2 : denied ? 0 : full / 4;
	u64 passed = now > cpu->refilled ? now - cpu->refilled : 0;

	if (passed) {
		u64 tokens = cpu->tokens + (passed > NS_PER_S ? NS_PER_S : passed) * config->budget;
		cpu->tokens = tokens > full ? full : tokens;
		cpu->refilled = now;
	}
	if (cpu->tokens < floor + NS_PER_S)
		return 0;
	cpu->tokens -= NS_PER_S;
	return 1;
}

static __always_inline void event_submit(struct verdict_event *event, struct cpu_state *cpu, struct totals *totals,
					 u64 now)
{
	u64 quiet = now - cpu->last_event;

	cpu->last_event = now;
	__sync_fetch_and_add(&totals->produced, 1);
	if (++cpu->unwoken >= WAKE_EVENTS || quiet > WAKE_QUIET_NS) {
		cpu->unwoken = 0;
		ring_submit(event, BPF_RB_FORCE_WAKEUP);
	} else {
		ring_submit(event, BPF_RB_NO_WAKEUP);
	}
}

static __always_inline void event_verdict(struct verdict_event *event, u64 verdict)
{
	event->revision = verdict >> REVISION_SHIFT;
	event->rule = verdict_rule(verdict);
	event->reason = verdict >> REASON_SHIFT;
	event->decision = is_denied(verdict) ? DECISION_DENY : DECISION_ALLOW;
	event->outcome = is_dropped(verdict) ? OUTCOME_DROPPED : OUTCOME_PASSED;
	if (verdict & VERDICT_REPORT_ONLY)
		event->flags |= FLAG_REPORT_ONLY;
	if (verdict & VERDICT_MIDSTREAM)
		event->flags |= FLAG_MIDSTREAM;
	if (verdict & VERDICT_REVERSED)
		event->flags |= FLAG_REVERSED;
}

static __always_inline int ring_is_half_full(const struct totals *totals)
{
	return (totals->produced - totals->consumed) * EVENT_STRIDE > RING_BYTES / 2;
}

static __always_inline void sample_lost(u64 verdict)
{
	counter_add_atomic(COUNTER_SAMPLES_LOST, 1);
	if (is_denied(verdict))
		counter_add_atomic(COUNTER_SAMPLES_LOST_DENIED, 1);
}

static __always_inline void sample_held_back(u64 verdict)
{
	counter_add_atomic(COUNTER_SAMPLES_HELD_BACK, 1);
	if (is_denied(verdict))
		counter_add_atomic(COUNTER_SAMPLES_HELD_BACK_DENIED, 1);
}

/* What was claimed could not be emitted: it is owed again; a sample never is. → 1: it is owed. */
static __always_inline int event_put_off(struct flow *flow, u64 kind)
{
	if (kind == DUE_SAMPLE)
		return 0;
	/* Owed once more meanwhile: one event will tell of both. */
	if (__sync_fetch_and_or(&flow->due, kind) & kind)
		counter_add_atomic(COUNTER_EVENTS_DUE, -1ULL);
	return 1;
}

/* Emits one kind of event (a DUE_* bit) of a flow. A due one is claimed by clearing its bit, so that two CPUs never emit
 * the same. `p` is the packet at hand, NULL in a sweep. → 1: it is still owed. */
APART int event_emit(struct flow *flow, const struct flow_key *key, const struct packet *p, u64 now, u64 kind)
{
	struct cpu_state *cpu = cpu_state_lookup(0);
	struct totals *totals = totals_lookup(0);
	const struct config *config = config_lookup(0);
	struct verdict_event *event;
	u64 verdict;
	u8 hi;

	if (!flow || !key || !cpu || !totals || !config)
		return 1;
	verdict = *(volatile u64 *)&flow->verdict;
	if (kind == DUE_SAMPLE) {
		counter_add_atomic(COUNTER_EVENTS_DUE, 1);
		if (ring_is_half_full(totals)) {
			sample_lost(verdict);
			return 0;
		}
	} else {
		if (!(__sync_fetch_and_and(&flow->due, ~kind) & kind))
			return 0; /* another CPU is emitting it */
		verdict = *(volatile u64 *)&flow->verdict; /* not older than the claim */
	}
	if (kind == DUE_END)
		p = NULL; /* it tells of the packets before this one */
	if (!event_allowed(cpu, config, now, is_denied(verdict), kind == DUE_SAMPLE)) {
		if (kind == DUE_SAMPLE)
			sample_held_back(verdict);
		else
			counter_add_atomic(COUNTER_BUDGET_EMPTY, 1);
		return event_put_off(flow, kind);
	}
	event = ring_reserve();
	if (!event) { /* asked once: to Linux 6.1 it could be either again */
		if (kind == DUE_SAMPLE)
			sample_lost(verdict);
		else
			counter_add_atomic(COUNTER_RESERVE_FAILED, 1);
		return event_put_off(flow, kind);
	}
	hi = flow->flipped;
	/* The coarse clock may be a tick behind the precise one: an `end` must not come before its `new`. */
	if (kind == DUE_NEW)
		event->time = flow->first_seen;
	else if (p)
		event->time = clock_precise(p->now);
	else
		event->time = flow->last_seen > flow->first_seen ? flow->last_seen : flow->first_seen;
	event->flow_id = flow->id;
	copy_words(event->src, hi ? key->hi : key->lo, 16);
	copy_words(event->dst, hi ? key->lo : key->hi, 16);
	if (kind == DUE_END) {
		/* Exchanged, not read: what another CPU is just counting goes into the next conversation. */
		event->packets_original = __sync_lock_test_and_set(&flow->packets[0], 0);
		event->bytes_original = __sync_lock_test_and_set(&flow->bytes[0], 0);
		event->packets_reply = __sync_lock_test_and_set(&flow->packets[1], 0);
		event->bytes_reply = __sync_lock_test_and_set(&flow->bytes[1], 0);
		counter_add_atomic(COUNTER_ENDED_PACKETS, event->packets_original + event->packets_reply);
		counter_add_atomic(COUNTER_ENDED_BYTES, event->bytes_original + event->bytes_reply);
		counter_add_atomic(COUNTER_FLOWS_ENDED, 1);
	} else {
		event->packets_original = flow->packets[0];
		event->bytes_original = flow->bytes[0];
		event->packets_reply = flow->packets[1];
		event->bytes_reply = flow->bytes[1];
	}
	event->src_identity = flow->src_identity;
	event->dst_identity = flow->dst_identity;
	event->family = key->family;
	event->proto = key->proto;
	if ((key->proto == IPPROTO_ICMP && key->family == 4) || (key->proto == IPPROTO_ICMPV6 && key->family == 6)) {
		event->sport = icmp_query(key->family, flow->icmp_type) ? key->lo_port : 0;
		event->dport = flow->icmp_type;
	} else {
		event->sport = hi ? key->hi_port : key->lo_port;
		event->dport = hi ? key->lo_port : key->hi_port;
	}
	event->event = kind == DUE_NEW	    ? EVENT_NEW
		       : kind == DUE_CHANGE ? EVENT_CHANGE
		       : kind == DUE_SAMPLE ? EVENT_SAMPLE
					    : EVENT_END;
	event->direction = p && p->from_hi != hi ? DIRECTION_REPLY : DIRECTION_ORIGINAL;
	event->tcp_flags_original = flow->tcp_flags[0];
	event->tcp_flags_reply = flow->tcp_flags[1];
	event->ifindex = p ? p->ifindex : flow->ifindex;
	event->flags = p ? p->flags : flow->flags;
	event_verdict(event, verdict);
	event_submit(event, cpu, totals, now);
	return 0;
}

/* Emits `kinds` of a flow, oldest first: their order is kept. Returns the kinds that could not be emitted. */
APART u32 flow_emit(struct flow *flow, const struct flow_key *key, const struct packet *p, u64 now, u64 kinds)
{
	u32 left = 0;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < 4; i++) {
		/* new, change, sample, end */
		u64 kind = i == 0 ? DUE_NEW : i == 1 ? DUE_CHANGE : i == 2 ? DUE_SAMPLE : DUE_END;

		if (!(kinds & kind))
			continue;
		if ((left && kind != DUE_SAMPLE) || event_emit(flow, key, p, now, kind))
			left |= kind;
	}
	return left;
}

/* A packet that belongs to no flow: every N-th of a CPU becomes a sample with flow_id 0 and its own size. */
APART int untracked_emit(const struct scratch *s)
{
	struct cpu_state *cpu = cpu_state_lookup(0);
	struct totals *totals = totals_lookup(0);
	const struct config *config = config_lookup(0);
	const struct packet *p;
	const struct answer *answer;
	struct verdict_event *event;
	int reversed;

	if (!s || !cpu || !totals || !config || !config->sample || cpu->untracked++ % config->sample)
		return 0;
	p = &s->packet;
	answer = &s->answer;
	reversed = answer->reversed;
	counter_add_atomic(COUNTER_EVENTS_DUE, 1);
	if (ring_is_half_full(totals)) {
		sample_lost(answer->verdict);
		return 0;
	}
	if (!event_allowed(cpu, config, p->now, is_denied(answer->verdict), 1)) {
		sample_held_back(answer->verdict);
		return 0;
	}
	event = ring_reserve();
	if (!event) {
		sample_lost(answer->verdict);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = clock_precise(p->now);
	copy_words(event->src, reversed ? &p->dst : &p->src, 16);
	copy_words(event->dst, reversed ? &p->src : &p->dst, 16);
	event->packets_original = reversed ? 0 : p->packets;
	event->bytes_original = reversed ? 0 : p->bytes;
	event->packets_reply = reversed ? p->packets : 0;
	event->bytes_reply = reversed ? p->bytes : 0;
	event->src_identity = answer->src_identity;
	event->dst_identity = answer->dst_identity;
	event->ifindex = p->ifindex;
	event->sport = reversed && p->ports <= GROUP_SCTP ? p->dport : p->sport;
	if (p->ports >= GROUP_ICMP && p->ports <= GROUP_ICMPV6 && !icmp_query(p->family, p->icmp_type))
		event->sport = 0; /* the parser keeps the hop limit there */
	event->dport = reversed && p->ports <= GROUP_SCTP ? p->sport : p->dport;
	event->family = p->family;
	event->proto = p->proto;
	event->event = EVENT_SAMPLE;
	event->direction = reversed ? DIRECTION_REPLY : DIRECTION_ORIGINAL;
	event->tcp_flags_original = reversed ? 0 : p->tcp_flags;
	event->tcp_flags_reply = reversed ? p->tcp_flags : 0;
	event->flags = p->flags | FLAG_UNTRACKED;
	event_verdict(event, answer->verdict);
	event_submit(event, cpu, totals, p->now);
	return 1;
}

#endif
