/* From a tuple to a verdict: built-in rules, then the first rule whose vectors of source, destination and port class
 * all have its bit (rules are numbered in order of credit), then the default. A vector begins with its summary, a bit
 * for each word of 64 rules that is not empty: only words that three summaries name are looked at.
 *
 *	judge(scratch, epoch, ways, opener_type)	→ fills scratch->answer from scratch->packet
 *
 * The packed verdict is one u64, revision << 32 | rule << 16 | reason << 8 | VERDICT_* bits: one load says whether
 * it still holds, and one cmpxchg replaces it.
 */
#ifndef ZTLENS_JUDGE_H
#define ZTLENS_JUDGE_H

#include "parse.h"

/* Which end is the opener: the packet's sender, its receiver, or whichever makes it allowed, the sender tried first. */
enum ways { WAY_FORWARD = 1, WAY_REVERSED = 2, WAY_BOTH = 3 };

static __always_inline u64 pack(u64 epoch, u32 rule, u32 reason, u32 bits)
{
	return (epoch >> REVISION_SHIFT) << REVISION_SHIFT | (u64)rule << RULE_SHIFT | reason << REASON_SHIFT | bits |
	       (epoch & 1 ? VERDICT_ENFORCE : 0);
}

static __always_inline int is_denied(u64 verdict)
{
	return verdict & VERDICT_DENY;
}

static __always_inline int is_dropped(u64 verdict)
{
	return (verdict & (VERDICT_DENY | VERDICT_ENFORCE | VERDICT_REPORT_ONLY)) == (VERDICT_DENY | VERDICT_ENFORCE);
}

static __always_inline u32 verdict_rule(u64 verdict)
{
	return (verdict >> RULE_SHIFT) & 0xffff;
}

static __always_inline u32 verdict_slot(u64 verdict)
{
	return (verdict >> REVISION_SHIFT) & 1;
}

/* What a network needs to live. Returns the rule, 0 if none. `sport`, `dport` are the packet's. */
static __always_inline u32 builtin(const struct packet *p)
{
	if (p->ports == GROUP_ICMPV6) {
		u8 type = p->icmp_type;
		if (type >= 133 && type <= 137 && p->hop_limit == 255)
			return RULE_BUILTIN_NDP;
		if (((type >= 130 && type <= 132) || type == 143) && p->hop_limit == 1)
			return RULE_BUILTIN_MLD;
	}
	if (p->ports == GROUP_UDP) {
		if (p->family == 4 && ((p->sport == 68 && p->dport == 67) || (p->sport == 67 && p->dport == 68)))
			return RULE_BUILTIN_DHCP;
		if (p->family == 6 && ((p->sport == 546 && p->dport == 547) || (p->sport == 547 && p->dport == 546)))
			return RULE_BUILTIN_DHCPV6;
	}
	return 0;
}

/* Where policy looks the port up: the responder's port, or the opener's ICMP type, or the protocol. */
static __always_inline u32 port_index(const struct packet *p, int reversed, u8 opener_type)
{
	switch (p->ports) {
	case GROUP_TCP:
		return PORTS_TCP + (reversed ? p->sport : p->dport);
	case GROUP_UDP:
		return PORTS_UDP + (reversed ? p->sport : p->dport);
	case GROUP_SCTP:
		return PORTS_SCTP + (reversed ? p->sport : p->dport);
	case GROUP_ICMP:
		return PORTS_ICMP + opener_type;
	case GROUP_ICMPV6:
		return PORTS_ICMPV6 + opener_type;
	default:
		return PORTS_OTHER + p->proto;
	}
}

/* Index of the lowest set bit of `word` ≠ 0, as the number of bits below it. No branch: the verifier would walk the
 * rest of the program once for each of 64 results; and __builtin_ctzll crashes LLVM 14's BPF back end. */
static __always_inline u32 lowest_bit(u64 word)
{
	u64 below = (word & -word) - 1;

	below -= (below >> 1) & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + ((below >> 2) & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (below * 0x0101010101010101ULL) >> 56;
}

/* Number of the first rule that all three vectors hold; RULES_MAX: none. A vector is SUMMARY_WORDS words of summary (bit
 * i of word b: word 64 × b + i of the rules is not 0), then words of rules (bit i of word w: rule 64 × w + i), of which
 * `words` are in use. */
APART u32 first_rule(u32 source, u32 destination, u32 port, u32 words)
{
	const u64 *a = source_rules_lookup(source), *b = destination_rules_lookup(destination), *c = port_rules_lookup(port);

	if (!a || !b || !c)
		return RULES_MAX; /* cannot be */
#pragma clang loop unroll(disable)
	for (u32 block = 0; block < SUMMARY_WORDS && block * 64 < words; block++) {
		u64 left = a[block] & b[block] & c[block]; /* words still to be looked at */

#pragma clang loop unroll(disable)
		for (u32 step = 0; step < 64 && left; step++) {
			/* u64: of a u32 the compiler would test one copy and use another, unbounded to the verifier. */
			u64 word = block * 64 + lowest_bit(left), hit;

			if (word >= RULES_MAX / 64)
				break;
			hit = a[SUMMARY_WORDS + word] & b[SUMMARY_WORDS + word] & c[SUMMARY_WORDS + word];
			if (hit)
				return word * 64 + lowest_bit(hit);
			left &= left - 1;
		}
	}
	return RULES_MAX;
}

/* 1 if a − b − borrow is below 0. Without a branch: no processor could predict it, and the verifier would follow each. */
static __always_inline u64 borrows(u64 a, u64 b, u64 borrow)
{
	return ((~a & b) | ((~a | b) & (a - b - borrow))) >> 63;
}

/* What policy knows of an address: of the last range that begins at or below it. */
APART int classify(const struct address *a, u32 slot, u32 levels, u32 family, struct address_range *found)
{
	u64 high, low;
	u32 node = 0, leaves = 0; /* nodes above the current level */
	struct range_node *n;
	struct address_range *entry;

	if (!a || !found)
		return -1;
	high = __builtin_bswap64(a->word[0]);
	low = __builtin_bswap64(a->word[1]);
	if (family == 4)
		low |= 0xffffULL << 32;
#pragma clang loop unroll(disable)
	for (u32 level = 0; level < LEVELS_MAX; level++) {
		asm volatile("" : "+r"(level)); /* else the compiler counts down from the lesser bound, unknown to the verifier */
		if (level >= levels)
			break;
		n = range_nodes_lookup(slot * NODES_MAX + node);
		if (!n)
			break;
		node = 4 * node + 4 - borrows(high, n->high[1], borrows(low, n->low[1], 0)) -
		       borrows(high, n->high[2], borrows(low, n->low[2], 0)) -
		       borrows(high, n->high[3], borrows(low, n->low[3], 0));
		leaves = 4 * leaves + 1;
	}
	entry = ranges_lookup(slot * RANGES_MAX + node - leaves);
	if (!entry)
		return -1; /* cannot be */
	*found = *entry;
	return 0;
}

/* `opener_type`: the ICMP type that opened the flow, where it is known; if < 0 that of this packet, turned to the
 * request's if the packet is judged as a reply. */
APART int judge(struct scratch *scratch, u64 epoch, u32 ways, int opener_type)
{
	const struct config *config = config_lookup(0);
	u8 slot = (epoch >> REVISION_SHIFT) & 1;
	struct address_range source = {}, destination = {};
	const struct slot *s;
	const struct packet *p;
	struct answer *answer;
	u32 rule, at;

	if (!scratch || !config)
		return -1;
	s = (const struct slot *)&config->slots[slot];
	p = &scratch->packet;
	answer = &scratch->answer;
	__builtin_memset(answer, 0, sizeof(*answer));
	answer->sample = config->sample;
	answer->reversed = ways == WAY_REVERSED;
	classify(&p->src, slot, s->levels, p->family, &source);
	classify(&p->dst, slot, s->levels, p->family, &destination);
	answer->src_identity = answer->reversed ? destination.identity : source.identity;
	answer->dst_identity = answer->reversed ? source.identity : destination.identity;
	rule = builtin(p);
	if (rule && (s->builtins >> (rule - RULE_BUILTIN_NDP)) & 1) {
		answer->verdict = pack(epoch, rule, REASON_BUILTIN, 0);
		return 0;
	}
	if (!s->has_policy) {
		answer->verdict = pack(epoch, RULE_NO_POLICY, REASON_NO_POLICY, 0);
		return 0;
	}
#pragma clang loop unroll(disable)
	for (u32 way = 0; way < 2; way++) {
		u32 reversed = way, from, to, *port;
		struct rule *found;
		u64 verdict;

		if (!(ways & (way ? WAY_REVERSED : WAY_FORWARD)))
			continue;
		from = reversed ? destination.source_class : source.source_class;
		to = reversed ? source.destination_class : destination.destination_class;
		at = port_index(p, reversed, opener_type >= 0 ? opener_type : reversed ? (u8)p->dport : p->icmp_type);
		port = ports_lookup(slot * PORTS_PER_SLOT + at);
		if (!port)
			return 0;
		answer->rule = first_rule(slot * CLASSES_MAX + from, slot * CLASSES_MAX + to, slot * CLASSES_MAX + *port, s->words);
		/* By way of memory: else the verifier follows each bound that the loop found for it, to the end. */
		rule = *(volatile u32 *)&answer->rule;
		if (rule < RULES_MAX) {
			found = rules_lookup(slot * RULES_MAX + rule);
			if (!found)
				return 0;
			verdict = pack(epoch, RULE_FIRST + rule, REASON_RULE,
				       (found->decision == DECISION_DENY ? VERDICT_DENY : 0) |
					       (found->report_only ? VERDICT_REPORT_ONLY : 0));
			if (found->sample)
				answer->sample = found->sample;
		} else {
			verdict = pack(epoch, RULE_DEFAULT, REASON_DEFAULT,
				       s->default_decision == DECISION_DENY ? VERDICT_DENY : 0);
		}
		/* Denied both ways: the first answer stands. */
		if (way && ways == WAY_BOTH && is_denied(verdict))
			break;
		answer->verdict = verdict;
		answer->reversed = reversed;
		answer->src_identity = reversed ? destination.identity : source.identity;
		answer->dst_identity = reversed ? source.identity : destination.identity;
		if (!is_denied(verdict))
			break;
	}
	return 0;
}

#endif
