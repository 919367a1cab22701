/* From bytes to a packet's tuple: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers,
 * fragments, TCP, UDP, SCTP, ICMP, and the packet an ICMP error quotes.
 *
 *	parse(scratch, frame)	→ enum parsed; fills scratch->packet and ->key
 *
 * Every bound is checked against data_end (what can be read) and against the length the IP header claims (what
 * belongs to the packet). No map is touched here.
 */
#ifndef ZTLENS_PARSE_H
#define ZTLENS_PARSE_H

#include "packet.h"

#define VLAN_TAGS_MAX 2
#define EXTENSIONS_MAX 8   /* IPv6 extension headers; a packet with more is malformed */
#define HEADERS_MAX 0x7000 /* bytes before the last header: more than the longest extensions give, less than the verifier bears */
#define EXTENSION_FRAGMENT 44
#define EXTENSION_AH 51

enum parsed { PARSED_IP, PARSED_NON_IP, PARSED_MALFORMED };

#define FLOW_KEY_HI_ASKS 0x100 /* in hi_port of an ICMP key */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline int icmp_is_error(u8 family, u8 type)
{
	if (family == 4)
		return type == 3 || type == 4 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

/* The request's type of a query or its reply, which share a flow; 0 if `type` is no query. */
static __always_inline u8 icmp_query(u8 family, u8 type)
{
	if (family == 6)
		return type == 128 || type == 129 ? 128 : 0;
	if (type == 8 || type == 0)
		return 8;
	if (type == 13 || type == 14)
		return 13;
	if (type == 15 || type == 16)
		return 15;
	if (type == 17 || type == 18)
		return 17;
	return 0;
}

static __always_inline int is_extension(u8 proto)
{
	return proto == 0 || proto == 43 || proto == EXTENSION_FRAGMENT || proto == EXTENSION_AH || proto == 60 || proto == 135 ||
	       proto == 139 || proto == 140;
}

/* Which section of `ports` policy asks. */
static __always_inline u8 ports_group(u8 family, u8 proto)
{
	if (proto == IPPROTO_TCP)
		return GROUP_TCP;
	if (proto == IPPROTO_UDP)
		return GROUP_UDP;
	if (proto == IPPROTO_SCTP)
		return GROUP_SCTP;
	if (proto == IPPROTO_ICMP && family == 4)
		return GROUP_ICMP;
	if (proto == IPPROTO_ICMPV6 && family == 6)
		return GROUP_ICMPV6;
	return GROUP_OTHER;
}

/* What a hook was given: one of the two, known when this is compiled. */
struct frame {
	struct xdp_md *xdp;
	struct __sk_buff *skb;
};

static __always_inline void *frame_data(const struct frame *f)
{
	return (void *)(long)(f->xdp ? f->xdp->data : f->skb->data);
}

static __always_inline void *frame_end(const struct frame *f)
{
	return (void *)(long)(f->xdp ? f->xdp->data_end : f->skb->data_end);
}

/* Whole loads: a memcpy from bytes becomes a load a byte. The kernel allows unaligned ones wherever XDP is fast. */
static __always_inline u16 read16(const u8 *at)
{
	return __builtin_bswap16(*(const u16 *)at);
}

static __always_inline u32 read32(const u8 *at)
{
	return __builtin_bswap32(*(const u32 *)at);
}

static __always_inline u64 read_word(const u8 *at)
{
	return *(const u64 *)at;
}

/* Bytes at the cursor, NULL if it is past the frame. `data` is asked for anew: of a pointer the verifier remembers how
 * much of the frame was checked, and would walk the rest once for each way that led here. */
static __always_inline u8 *cursor_bytes(const struct cursor *c, const struct frame *f, void **end)
{
	u32 at = *(volatile u32 *)&c->at;
	void *data = frame_data(f);
	u8 *bytes;

	if (at > HEADERS_MAX)
		return NULL;
	/* The compiler may test another copy of `at` than the one it adds: the verifier must see this one bounded. */
	asm volatile("%0 &= 0x7fff" : "+r"(at));
	bytes = (u8 *)data + at;
	*end = frame_end(f);
	return (void *)bytes > *end ? NULL : bytes;
}

/* Where the parser stands. */
struct layer {
	u8 *at;
	u32 offset;    /* of `at` in the frame (the verifier allows no difference of these pointers) */
	u32 left;      /* bytes of the IP payload from `at` on, as the IP header claims */
	u32 available; /* bytes from the IP header on, as the frame says; ~0 inside a quoted packet, which is cut off */
};

/* parse_ipv4 and parse_ipv6 move behind the header and its extensions. */
static __always_inline int parse_ipv4(struct packet *p, struct layer *l, struct cursor *c, void *end)
{
	u8 *at = l->at;
	u32 header, total;
	u16 offset;

	if ((void *)(at + 20) > end || at[0] >> 4 != 4)
		return PARSED_MALFORMED;
	header = (at[0] & 15) * 4;
	total = read16(at + 2);
	/* A merged packet past 64 KiB (BIG TCP) says 0. Else it ends here: 0 < header is no news to Linux 6.1. */
	if (total == 0) {
		if (p->packets < 2)
			return PARSED_MALFORMED;
		total = l->available;
	}
	if (header < 20 || total < header || total > l->available)
		return PARSED_MALFORMED;
	offset = read16(at + 6);
	p->family = 4;
	p->hop_limit = at[8];
	p->proto = at[9];
	p->fragment_proto = at[9];
	p->fragment_id = read16(at + 4);
	p->src.word[0] = p->dst.word[0] = 0;
	p->src.word[1] = (u64)*(u32 *)(at + 12) << 32; /* little-endian hosts: the last four of the 16 bytes */
	p->dst.word[1] = (u64)*(u32 *)(at + 16) << 32;
	c->later_fragment = (offset & 0x1fff) != 0;
	c->first_fragment = (offset & 0x3fff) == 0x2000;
	/* RFC 1858: a TCP fragment at offset 1 overwrites the flags that were judged. */
	if ((offset & 0x1fff) == 1 && at[9] == IPPROTO_TCP)
		return PARSED_MALFORMED;
	l->at = at + header;
	l->offset += header;
	l->left = total - header;
	return (void *)l->at > end ? PARSED_MALFORMED : PARSED_IP;
}

static __always_inline int is_mapped(const struct address *a)
{
	/* ::ffff:0:0/96 */
	return a->word[0] == 0 && (a->word[1] & 0xffffffffULL) == 0xffff0000ULL;
}

/* One extension header; → 0, or it is malformed. */
static __always_inline int parse_extension(struct packet *p, struct cursor *c, const struct frame *f)
{
	void *end;
	u8 *at = cursor_bytes(c, f, &end);
	u32 length;

	if (!at || (void *)(at + 8) > end)
		return -1;
	if (c->next == EXTENSION_FRAGMENT) {
		u16 offset = read16(at + 2);

		p->fragment_proto = at[0];
		p->fragment_id = read32(at + 4);
		c->later_fragment = (offset & 0xfff8) != 0;
		c->first_fragment = (offset & 0xfff9) == 1;
		if ((offset & 0xfff8) == 8 && at[0] == IPPROTO_TCP)
			return -1;
		length = 8;
	} else if (c->next == EXTENSION_AH) {
		length = ((u32)at[1] + 2) * 4;
	} else {
		length = ((u32)at[1] + 1) * 8;
	}
	if (c->left < length)
		return -1;
	c->next = at[0];
	c->left -= length;
	c->at += length;
	return 0;
}

static __always_inline int parse_ipv6(struct packet *p, struct layer *l, struct cursor *c, const struct frame *f, void *end)
{
	u8 *at = l->at;

	if ((void *)(at + 40) > end || at[0] >> 4 != 6)
		return PARSED_MALFORMED;
	l->left = read16(at + 4);
	if (l->left == 0 && p->packets > 1)
		l->left = l->available - 40;
	if (l->left > l->available - 40)
		return PARSED_MALFORMED;
	p->family = 6;
	p->hop_limit = at[7];
	p->proto = at[6];
	p->src.word[0] = read_word(at + 8);
	p->src.word[1] = read_word(at + 16);
	p->dst.word[0] = read_word(at + 24);
	p->dst.word[1] = read_word(at + 32);
	if (is_mapped(&p->src) || is_mapped(&p->dst))
		return PARSED_MALFORMED;
	c->later_fragment = c->first_fragment = 0;
	l->at = at + 40;
	l->offset += 40;
	if (!is_extension(at[6]))
		return PARSED_IP;
	c->at = l->offset;
	c->left = l->left;
	c->next = at[6];
#pragma clang loop unroll(disable)
	for (int i = 0;; i++) {
		if (i == EXTENSIONS_MAX || parse_extension(p, c, f))
			return PARSED_MALFORMED;
		if (!is_extension(*(volatile u32 *)&c->next) || *(volatile u32 *)&c->later_fragment)
			break;
	}
	p->proto = c->next;
	l->left = c->left;
	l->offset = c->at;
	l->at = cursor_bytes(c, f, &end);
	return l->at ? PARSED_IP : PARSED_MALFORMED;
}

/* Ports, flags, type. Of a quoted packet only the first 8 bytes are there for sure. */
static __always_inline int parse_layer4(struct packet *p, const struct layer *l, void *end, int quoted)
{
	u8 *at = l->at, query;
	u32 need;

	p->sport = p->dport = 0;
	p->ports = ports_group(p->family, p->proto);
	if (p->ports == GROUP_OTHER)
		return PARSED_IP;
	need = quoted ? 8 : p->ports == GROUP_TCP ? 20 : p->ports == GROUP_SCTP ? 12 : 8;
	if ((void *)(at + 8) > end || l->left < need)
		return PARSED_MALFORMED;
	if (p->ports == GROUP_ICMP || p->ports == GROUP_ICMPV6) {
		query = icmp_query(p->family, at[0]);
		p->icmp_type = at[0];
		p->sport = query ? read16(at + 4) : p->hop_limit;
		p->dport = query ? query : at[0];
		return PARSED_IP;
	}
	p->sport = read16(at);
	p->dport = read16(at + 2);
	if (quoted)
		return PARSED_IP;
	if (p->ports == GROUP_UDP)
		return read16(at + 4) < 8 ? PARSED_MALFORMED : PARSED_IP;
	if (p->ports == GROUP_SCTP)
		return (void *)(at + 12) > end ? PARSED_MALFORMED : PARSED_IP;
	if ((void *)(at + 20) > end || at[12] >> 4 < 5 || (u32)(at[12] >> 4) * 4 > l->left)
		return PARSED_MALFORMED;
	p->tcp_flags = at[13];
	return PARSED_IP;
}

static __always_inline int same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1];
}

/* The same key for both directions; any total order of the endpoints serves. Returns 1 if the sender is `hi`. */
static __always_inline u8 flow_key_make(const struct packet *p, struct flow_key *key)
{
	int icmp = p->ports == GROUP_ICMP || p->ports == GROUP_ICMPV6;
	u8 from_hi = p->src.word[0] != p->dst.word[0]	? p->src.word[0] > p->dst.word[0]
		     : p->src.word[1] != p->dst.word[1] ? p->src.word[1] > p->dst.word[1]
							: !icmp && p->sport > p->dport;
	u64 lo_port, hi_port;

	*(struct address *)key->lo = from_hi ? p->dst : p->src;
	*(struct address *)key->hi = from_hi ? p->src : p->dst;
	lo_port = from_hi && !icmp ? p->dport : p->sport;
	hi_port = from_hi && !icmp ? p->sport : p->dport;
	/* Who asks is part of an ICMP key: else the responder's own queries would pass as replies. */
	if (icmp && from_hi == (p->icmp_type == (u8)p->dport))
		hi_port |= FLOW_KEY_HI_ASKS;
	/* lo_port, hi_port, family, proto, pad as one store: the hash reads wider than these fields, and a load that
	 * spans several stores waits for all of them (8 ns here). */
	*(u64 *)&key->lo_port = lo_port | hi_port << 16 | (u64)p->family << 32 | (u64)p->proto << 40;
	return from_hi;
}

static __always_inline int parse(struct scratch *s, const struct frame *f)
{
	void *end = frame_end(f);
	struct packet *p = &s->packet;
	struct cursor *c = &s->cursor;
	struct layer l = {.at = frame_data(f)};
	int quoted = 0;
	u16 type;

	if ((void *)(l.at + 14) > end)
		return PARSED_NON_IP;
	type = read16(l.at + 12);
	l.at += 14;
	l.offset = 14;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		if (type != 0x8100 && type != 0x88a8)
			break;
		if ((void *)(l.at + 4) > end)
			return PARSED_NON_IP;
		type = read16(l.at + 2);
		l.at += 4;
		l.offset += 4;
	}
	if (l.offset > 14) { /* through memory: else the verifier walks the rest once for one tag and once for two */
		*(volatile u32 *)&c->at = l.offset;
		l.offset = *(volatile u32 *)&c->at;
		l.at = cursor_bytes(c, f, &end);
		if (!l.at)
			return PARSED_NON_IP;
	}
	l.available = p->wire_length - l.offset;
	if (type != 0x0800 && type != 0x86dd)
		return PARSED_NON_IP;
	p->family = type == 0x0800 ? 4 : 6;
	/* Once for the packet, and once more for the one an ICMP error quotes. */
#pragma clang loop unroll(disable)
	for (int depth = 0; depth < 2; depth++) {
		int parsed = *(volatile u8 *)&p->family == 4 ? parse_ipv4(p, &l, c, end) : parse_ipv6(p, &l, c, f, end);

		quoted = depth;
		if (parsed == PARSED_IP && *(volatile u32 *)&c->later_fragment) {
			p->sport = p->dport = 0;
			p->ports = GROUP_OTHER;
			p->kind = quoted ? PACKET_ICMP_UNRELATED : PACKET_LATER_FRAGMENT;
			break;
		}
		if (parsed == PARSED_IP)
			parsed = parse_layer4(p, &l, end, quoted);
		if (parsed != PARSED_IP) {
			if (!quoted)
				return PARSED_MALFORMED;
			p->kind = PACKET_ICMP_UNRELATED;
			break;
		}
		if (quoted) {
			/* A trailer of the frame is no part of the quote. */
			if (l.offset + (p->ports == GROUP_OTHER ? 0 : 8) > *(volatile u32 *)&c->quote_end)
				p->kind = PACKET_ICMP_UNRELATED;
			break;
		}
		p->kind = *(volatile u32 *)&c->first_fragment ? PACKET_FIRST_FRAGMENT : PACKET_WHOLE;
		if ((p->ports != GROUP_ICMP && p->ports != GROUP_ICMPV6) || !icmp_is_error(p->family, p->icmp_type))
			break;
		p->kind = PACKET_ICMP_ERROR;
		c->error_from = p->src;
		c->error_to = p->dst;
		c->error_type = p->icmp_type;
		c->quote_end = l.offset + l.left;
		c->at = l.offset + 8;
		l.offset += 8;
		l.at = cursor_bytes(c, f, &end);
		l.available = ~0U;
		if (!l.at)
			return PARSED_MALFORMED;
	}
	p->from_hi = flow_key_make(p, &s->key);
	if (quoted) {
		/* The quoted packet went the other way; what is told of is the error itself. */
		if (!same_address(&p->src, &c->error_to))
			p->kind = PACKET_ICMP_UNRELATED;
		p->from_hi = !p->from_hi;
		p->src = c->error_from;
		p->dst = c->error_to;
		p->proto = p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
		p->icmp_type = c->error_type;
		p->sport = 0;
		p->dport = c->error_type;
	}
	return PARSED_IP;
}

#endif
