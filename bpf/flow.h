/* The life of a flow table entry.
 *
 *	flow_timeout(flow, key, config)		→ ns without a packet until it is over
 *	flow_is_over(flow, key, packet, config)	→ this packet begins a new conversation
 *	flow_begin(flow, packet, answer)	the entry as its first packet makes it
 *	flow_create(scratch)			→ 0, also when another CPU was faster
 *	flow_finish(flow, …), flow_renew(flow, …)	ends one conversation in place, begins the next
 *	flow_tentative(flow), flow_settled(flow)	denied or half open, or no longer
 *
 * An entry is ACTIVE; BUSY while one CPU restarts it, or when that failed because the ring was full; DEAD once the
 * sweep has marked it. Packets meeting an entry that is not ACTIVE are judged alone and counted as untracked.
 */
#ifndef ZTLENS_FLOW_H
#define ZTLENS_FLOW_H

#include "event.h"

static __always_inline int tcp_is_closed(const struct flow *flow)
{
	u8 original = flow->tcp_flags[0], reply = flow->tcp_flags[1];

	return ((original | reply) & TCP_RST) || (original & reply & TCP_FIN);
}

static __always_inline u64 flow_timeout(const struct flow *flow, const struct flow_key *key, const struct config *config)
{
	if (key->proto == IPPROTO_TCP) {
		if (tcp_is_closed(flow))
			return config->timeouts[TIMEOUT_TCP_CLOSED];
		/* Answered by a segment: an ICMP error counts as a reply, but establishes nothing. */
		return config->timeouts[flow->tcp_flags[1] ? TIMEOUT_TCP_ESTABLISHED : TIMEOUT_TCP_HALF_OPEN];
	}
	if (key->proto == IPPROTO_UDP)
		return config->timeouts[TIMEOUT_UDP];
	if (key->proto == IPPROTO_ICMP || key->proto == IPPROTO_ICMPV6)
		return config->timeouts[TIMEOUT_ICMP];
	return config->timeouts[TIMEOUT_OTHER];
}

static __always_inline int flow_is_idle(const struct flow *flow, const struct flow_key *key, const struct config *config,
					u64 now)
{
	u64 last = *(volatile u64 *)&flow->last_seen;

	return now > last && now - last > flow_timeout(flow, key, config);
}

static __always_inline int flow_is_over(const struct flow *flow, const struct flow_key *key, const struct packet *p,
					const struct config *config)
{
	if (p->kind != PACKET_WHOLE && p->kind != PACKET_FIRST_FRAGMENT)
		return 0; /* cannot begin anything */
	if (flow_is_idle(flow, key, config, p->now))
		return 1;
	if (key->proto != IPPROTO_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return 0;
	return tcp_is_closed(flow) || flow->flipped != p->from_hi;
}

static __always_inline void flow_begin(struct flow *flow, const struct packet *p, const struct answer *answer, u64 id)
{
	flow->verdict = answer->verdict;
	flow->id = id;
	flow->first_seen = clock_precise(p->now);
	flow->last_seen = p->now;
	flow->src_identity = answer->src_identity;
	flow->dst_identity = answer->dst_identity;
	flow->sample = answer->sample;
	flow->ifindex = p->ifindex;
	flow->flags = p->flags;
	flow->flipped = answer->reversed ? !p->from_hi : p->from_hi;
	flow->icmp_type = answer->reversed ? (u8)p->dport : p->icmp_type;
	flow->tcp_flags[0] = flow->tcp_flags[1] = 0;
}

static __always_inline u64 flow_id_next(void)
{
	struct cpu_state *cpu = cpu_state_lookup(0);

	return cpu ? (u64)bpf_get_smp_processor_id() << 48 | ++cpu->serial : 0;
}

/* A flow begins tentative: it is denied, or nobody has answered yet. */
static __always_inline void flow_tentative(struct flow *flow)
{
	struct totals *totals = totals_lookup(0);

	if (totals && !__sync_lock_test_and_set(&flow->tentative, 1))
		__sync_fetch_and_add(&totals->tentative, 1);
}

static __always_inline void flow_settled(struct flow *flow)
{
	struct totals *totals = totals_lookup(0);

	if (totals && __sync_lock_test_and_set(&flow->tentative, 0))
		__sync_fetch_and_add(&totals->tentative, -1ULL);
}

static __always_inline int flow_table_is_full(const struct config *config)
{
	struct totals *totals = totals_lookup(0);

	return !totals || totals->flows >= config->capacity || totals->tentative >= config->capacity / 2;
}

/* From now on the flow owes `kind`. */
static __always_inline void flow_owes(struct flow *flow, u64 kind)
{
	if (!(__sync_fetch_and_or(&flow->due, kind) & kind))
		counter_add_atomic(COUNTER_EVENTS_DUE, 1);
}

static __always_inline int flow_create(struct scratch *s)
{
	struct totals *totals = totals_lookup(0);
	long error;

	if (!totals)
		return -1;
	__builtin_memset(&s->flow, 0, sizeof(s->flow));
	s->flow.due = DUE_NEW;
	s->flow.tentative = 1;
	flow_begin(&s->flow, &s->packet, &s->answer, flow_id_next());
	error = flow_insert(&s->key, &s->flow);
	if (error == -17) /* EEXIST: another CPU was faster, and its entry is as good */
		return 0;
	if (error)
		return -1;
	__sync_fetch_and_add(&totals->flows, 1);
	__sync_fetch_and_add(&totals->tentative, 1);
	counter_add_atomic(COUNTER_FLOWS_CREATED, 1);
	counter_add_atomic(COUNTER_EVENTS_DUE, 1);
	return 0;
}

/* Ends the conversation of an entry this CPU has made BUSY. → 0: flow_renew may begin the next; else the ring had no
 * room and the sweep ends it later. The entry stays BUSY then: only `mark` may make it DEAD, because a packet that saw
 * it ACTIVE may still be counting, and a grace period lies between `mark` and `reap` alone. */
static __always_inline int flow_finish(struct flow *flow, const struct flow_key *key, const struct packet *p,
				       const struct config *config)
{
	flow_owes(flow, DUE_END);
	/* What is late tells of the packets before this one: NULL. */
	return flow_emit(flow, key, NULL, p->now, flow->due) ? -1 : 0;
}

static __always_inline void flow_renew(struct flow *flow, const struct packet *p, const struct answer *answer)
{
	flow_begin(flow, p, answer, flow_id_next());
	counter_add_atomic(COUNTER_FLOWS_CREATED, 1);
	flow_owes(flow, DUE_NEW);
	flow_tentative(flow);
	__sync_lock_test_and_set(&flow->state, FLOW_ACTIVE);
}

#endif
