/* The one path of a packet: parse → flow → judge → count → event.
 *
 *	packet_begin(scratch)		→ the packet, to be filled by the hook
 *	datapath(scratch, frame)	→ 1: drop it, 0: let it pass
 *
 * A front (bcc.c, core.bpf.c) declares the maps and wraps each operation on them in an accessor; hooks.h fills what a hook
 * knows of the packet (wire_length, bytes, packets, ifindex, now, flags). A function that is APART stands for itself where
 * the front can have it so: it gets scratch instead of what is in it, and asks for the maps' entries anew. Nothing it
 * gets a pointer to is a map's key or value to Linux 6.1: where it needs one, it asks for scratch anew, too, or copies.
 */
#ifndef ZTLENS_DATAPATH_H
#define ZTLENS_DATAPATH_H

#include "flow.h"

/* What is in force: read once a packet, as one word. An unconfirmed change falls back here, by this clock alone. */
static __always_inline u64 effective_epoch(const struct config *config, u64 now)
{
	u64 epoch = *(volatile u64 *)&config->epoch;
	u64 until = *(volatile u64 *)&config->confirm_until;

	return until && now > until ? config->previous : epoch;
}

static __always_inline u32 ways_to_judge(const struct packet *p, const struct config *config, int alone)
{
	if (p->proto != IPPROTO_TCP)
		return alone ? WAY_BOTH : WAY_FORWARD;
	if (p->tcp_flags & TCP_SYN)
		return p->tcp_flags & TCP_ACK ? WAY_REVERSED : WAY_FORWARD;
	/* What cannot have a flow has no orientation: a full table must not cut the replies of new connections off. */
	return alone || p->now < config->midstream_until ? WAY_BOTH : WAY_FORWARD;
}

/* Under no policy, or one that allows either way, the first segment seen of a conversation older than us made its sender
 * the opener: by the next policy, too, either way may allow it. Else who watches a host he is logged in to is cut off. */
static __always_inline int opener_was_guessed(const struct flow *flow, u64 verdict, const struct config *config)
{
	return verdict & VERDICT_MIDSTREAM && flow->first_seen < config->midstream_until;
}

/* An ICMP error or a later fragment is judged, when its flow has to be judged again, by the tuple of its flow. */
static __always_inline void packet_as_flow(struct packet *p, const struct flow_key *key, const struct flow *flow)
{
	copy_words(&p->src, p->from_hi ? key->hi : key->lo, 16);
	copy_words(&p->dst, p->from_hi ? key->lo : key->hi, 16);
	p->sport = p->from_hi ? key->hi_port : key->lo_port;
	p->dport = p->from_hi ? key->lo_port : key->hi_port;
	p->proto = key->proto;
	p->icmp_type = flow->icmp_type;
	p->ports = ports_group(key->family, key->proto);
	if (p->ports == GROUP_ICMPV6)
		p->hop_limit = key->lo_port;
}

static __always_inline void count_rule(u64 verdict, const struct packet *p)
{
	struct rule_counter *counter =
		rule_counters_lookup(verdict_slot(verdict) * (RULES_MAX + RULE_FIRST) + verdict_rule(verdict));

	if (!counter)
		return;
	if (is_dropped(verdict)) {
		counter->packets_dropped += p->packets;
		counter->bytes_dropped += p->bytes;
	} else {
		counter->packets_passed += p->packets;
		counter->bytes_passed += p->bytes;
	}
}

static __always_inline void fragment_key_make(const struct packet *p, struct fragment_key *key)
{
	copy_words(key->src, &p->src, 16);
	copy_words(key->dst, &p->dst, 16);
	key->id = p->fragment_id;
	key->family = p->family;
	key->proto = p->fragment_proto;
	key->pad = 0;
}

static __always_inline void fragment_remember(struct scratch *s, u64 verdict)
{
	fragment_key_make(&s->packet, &s->fragment_key);
	copy_words(s->fragment.key, &s->key, sizeof(s->key));
	s->fragment.verdict = verdict;
	s->fragment.from_hi = s->packet.from_hi;
	fragment_insert(&s->fragment_key, &s->fragment);
}

/* Finds a later fragment's flow; → the verdict of its first piece, 0 if that was not seen. */
static __always_inline u64 fragment_recall(struct scratch *s)
{
	struct fragment *fragment;

	fragment_key_make(&s->packet, &s->fragment_key);
	fragment = fragment_lookup(&s->fragment_key);
	if (!fragment)
		return 0;
	copy_words(&s->key, fragment->key, sizeof(s->key));
	s->packet.from_hi = fragment->from_hi;
	return fragment->verdict;
}

static __always_inline int is_stale(u64 verdict, u64 epoch)
{
	return ((verdict ^ epoch) >> REVISION_SHIFT) || !(verdict & VERDICT_ENFORCE) != !(epoch & 1);
}

static __always_inline struct packet *packet_begin(struct scratch *s)
{
	__builtin_memset(&s->packet, 0, sizeof(s->packet));
	return &s->packet;
}

/* What a packet needs before it can be counted. */
enum flow_need {
	HOLDS,	  /* nothing: its flow's verdict holds */
	STALE,	  /* its flow was judged by another revision or mode */
	BEGINS,	  /* it has no flow */
	RESTARTS, /* it begins a new conversation in its flow's entry */
	ALONE,	  /* it can have no flow: judged by itself */
};

/* Finds out; `s->untracked` says why ALONE. */
static __always_inline u32 flow_need(struct scratch *s, struct flow *flow, const struct config *config,
				     u64 epoch)
{
	if (!flow) {
		s->untracked = COUNTER_UNTRACKED_TABLE_FULL;
		return flow_table_is_full(config) ? ALONE : BEGINS;
	}
	s->untracked = COUNTER_UNTRACKED_CLOSING;
	if (*(volatile u64 *)&flow->state != FLOW_ACTIVE)
		return ALONE;
	if (flow_is_over(flow, &s->key, &s->packet, config)) {
		if (__sync_val_compare_and_swap(&flow->state, FLOW_ACTIVE, FLOW_BUSY) != FLOW_ACTIVE)
			return ALONE;
		return flow_finish(flow, &s->key, &s->packet, config) ? ALONE : RESTARTS;
	}
	return is_stale(*(volatile u64 *)&flow->verdict, epoch) ? STALE : HOLDS;
}

/* Replaces the verdict of a flow. Of two CPUs one wins, and owes the `change`. */
static __always_inline void flow_rejudge(struct flow *flow, u64 old, const struct answer *answer)
{
	if (__sync_val_compare_and_swap(&flow->verdict, old, answer->verdict) != old)
		return;
	flow->src_identity = answer->src_identity;
	flow->dst_identity = answer->dst_identity;
	flow->sample = answer->sample;
	flow_owes(flow, DUE_CHANGE);
	if (is_denied(answer->verdict))
		flow_tentative(flow);
	else if (flow->packets[1])
		flow_settled(flow);
}

/* A packet that belongs to no flow, by its answer. */
static __always_inline int untracked(struct scratch *s, const struct config *config, u32 counter)
{
	counter_add(counter, s->packet.packets);
	count_rule(s->answer.verdict, &s->packet);
	untracked_emit(s);
	if (s->packet.kind == PACKET_FIRST_FRAGMENT)
		fragment_remember(s, s->answer.verdict);
	return is_dropped(s->answer.verdict);
}

/* All that follows the parser, for what is IP. */
APART int decide(int parsed)
{
	const struct config *config = config_lookup(0);
	struct scratch *s = scratch_lookup(0);
	struct flow *flow = NULL;
	struct packet *p;
	struct answer *answer;
	u64 epoch, verdict, count, kinds;
	u32 direction, refused = 0;

	if (!s || !config)
		return 0;
	p = &s->packet;
	answer = &s->answer;
	counter_add(COUNTER_PARSED, p->packets);
	epoch = effective_epoch(config, p->now);

	/* What belongs to no flow. */
	__builtin_memset(answer, 0, sizeof(*answer));
	if (parsed == PARSED_MALFORMED) {
		p->kind = PACKET_WHOLE;
		refused = REASON_MALFORMED;
	} else if (p->kind == PACKET_LATER_FRAGMENT) {
		answer->verdict = fragment_recall(s);
		if (answer->verdict)
			flow = flow_lookup(&s->key);
		/* Without a flow its first piece was judged alone, and so is this one while that verdict holds. */
		if (!flow && answer->verdict && !is_stale(answer->verdict, epoch))
			return untracked(s, config, COUNTER_UNTRACKED_UNATTRIBUTABLE);
		if (!flow)
			refused = REASON_HEADLESS_FRAGMENT;
	} else {
		if (p->kind != PACKET_ICMP_UNRELATED)
			flow = flow_lookup(&s->key);
		if (!flow && p->kind >= PACKET_ICMP_ERROR)
			refused = REASON_ICMP_UNRELATED;
	}
	if (refused) {
		/* Their reasons and rules are numbered alike. */
		answer->verdict = pack(epoch, refused - REASON_MALFORMED + RULE_MALFORMED, refused, VERDICT_DENY);
		return untracked(s, config, COUNTER_UNTRACKED_UNATTRIBUTABLE);
	}

	*(volatile u32 *)&s->state = flow_need(s, flow, config, epoch);
	verdict = flow ? *(volatile u64 *)&flow->verdict : 0;
	if (*(volatile u32 *)&s->state != HOLDS) {
		u32 need = *(volatile u32 *)&s->state;
		u32 ways = ways_to_judge(p, config, need == ALONE);
		int opener_type = -1;

		if (flow && (need == STALE || p->kind >= PACKET_LATER_FRAGMENT)) {
			if (p->kind >= PACKET_LATER_FRAGMENT)
				packet_as_flow(p, &s->key, flow);
			ways = flow->flipped == p->from_hi ? WAY_FORWARD : WAY_REVERSED;
			if (need == STALE && opener_was_guessed(flow, verdict, config))
				ways = WAY_BOTH;
			opener_type = flow->icmp_type;
		}
		judge(s, epoch, ways, opener_type);
		if (need == STALE) {
			answer->verdict |= verdict & (VERDICT_MIDSTREAM | VERDICT_REVERSED);
			/* Whichever way allowed it, the flow keeps its orientation, and its totals and identities theirs. */
			if (answer->reversed != (flow && flow->flipped != p->from_hi)) {
				u32 identity = answer->src_identity;

				answer->src_identity = answer->dst_identity;
				answer->dst_identity = identity;
			}
		} else {
			if (p->proto == IPPROTO_TCP && !(p->tcp_flags & TCP_SYN) && p->kind < PACKET_LATER_FRAGMENT)
				answer->verdict |= VERDICT_MIDSTREAM;
			if (answer->reversed)
				answer->verdict |= VERDICT_REVERSED;
		}
		if (need == ALONE)
			return untracked(s, config, s->untracked);
		if (need == BEGINS) {
			flow = flow_create(s) ? NULL : flow_lookup(&s->key);
			if (!flow)
				return untracked(s, config, COUNTER_UNTRACKED_TABLE_FULL);
		} else if (flow && need == RESTARTS) {
			flow_renew(flow, p, answer);
		} else if (flow) {
			flow_rejudge(flow, verdict, answer);
		}
		verdict = answer->verdict;
	}
	if (!flow)
		return 0; /* cannot be; the verifier does not know */

	/* Count. */
	direction = flow->flipped == p->from_hi ? 0 : 1;
	count = __sync_fetch_and_add(&flow->packets[direction], p->packets) + p->packets;
	__sync_fetch_and_add(&flow->bytes[direction], p->bytes);
	count_rule(verdict, p);
	if (direction && flow->tentative && !is_denied(verdict) && p->kind != PACKET_ICMP_ERROR)
		flow_settled(flow);
	if (p->kind != PACKET_ICMP_ERROR && flow->last_seen != p->now)
		flow->last_seen = p->now;
	/* Two CPUs may race for a flag; one lost only delays the end of the flow to its time-out. */
	if (p->tcp_flags & ~flow->tcp_flags[direction])
		flow->tcp_flags[direction] |= p->tcp_flags;

	/* Tell. */
	kinds = flow->due & (DUE_NEW | DUE_CHANGE);
	if (!kinds && flow->sample && count % flow->sample < p->packets)
		kinds = DUE_SAMPLE;
	if (kinds)
		flow_emit(flow, &s->key, p, p->now, kinds);
	if (p->kind == PACKET_FIRST_FRAGMENT)
		fragment_remember(s, verdict);
	return is_dropped(verdict);
}

static __always_inline int datapath(struct scratch *s, const struct frame *f)
{
	int parsed = parse(s, f);

	if (parsed == PARSED_NON_IP) {
		counter_add(COUNTER_NON_IP, 1);
		return 0;
	}
	return decide(parsed);
}

#endif
