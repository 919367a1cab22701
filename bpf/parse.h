/* From bytes to a packet's tuple: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension headers,
 * fragments, TCP, UDP, SCTP, ICMP, and the packet an ICMP error quotes.
 *
 *	parse(scratch, data, data_end)	→ enum parsed; fills scratch->packet and ->key
 *
 * Every bound is checked against data_end (what can be read) and against the length the IP header claims (what
 * belongs to the packet). No map is touched here.
 */
#ifndef ZTLENS_PARSE_H
#define ZTLENS_PARSE_H

#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>

#include "packet.h"

#define VLAN_TAGS_MAX 2
#define EXTENSIONS_MAX 8   /* IPv6 extension headers; a packet with more is malformed */
#define HEADERS_MAX 0x7000 /* bytes before the last header: more than the longest extensions give, less than the verifier bears */
#define EXTENSION_FRAGMENT 44
#define EXTENSION_AH 51

enum parsed { PARSED_IP, PARSED_NON_IP, PARSED_MALFORMED };

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
	return proto == 0 || proto == 43 || proto == EXTENSION_FRAGMENT || proto == EXTENSION_AH || proto == 60 || proto == 135 || proto == 139 ||
	       proto == 140;
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

/* `size` bytes at the cursor, NULL if the frame ends before. */
static __always_inline u8 *reach(const struct cursor *c, void *data, void *end, u32 size)
{
	u32 at = *(volatile u32 *)&c->at;
	u8 *bytes;

	if (at > HEADERS_MAX)
		return NULL;
	/* The compiler may test another copy of `at` than the one it adds: the verifier must see this one bounded. */
	asm volatile("%0 &= 0x7fff" : "+r"(at));
	bytes = (u8 *)data + at;
	return (void *)(bytes + size) > end ? NULL : bytes;
}

/* parse_ipv4 and parse_ipv6 move the cursor behind the header and its extensions. */
static __always_inline int parse_ipv4(struct packet *p, struct cursor *c, void *data, void *end)
{
	u8 *at = reach(c, data, end, 20);
	u32 header, total;
	u16 offset;

	if (!at || at[0] >> 4 != 4)
		return PARSED_MALFORMED;
	header = (at[0] & 15) * 4;
	total = read16(at + 2);
	/* A merged packet past 64 KiB (BIG TCP) says 0. */
	if (total == 0 && p->packets > 1)
		total = c->available;
	if (header < 20 || total < header || (!c->quoted && total > c->available))
		return PARSED_MALFORMED;
	offset = read16(at + 6);
	p->family = 4;
	p->hop_limit = at[8];
	p->proto = at[9];
	p->fragment_proto = p->proto;
	p->fragment_id = read16(at + 4);
	p->src.word[0] = p->dst.word[0] = 0;
	p->src.word[1] = (u64)*(u32 *)(at + 12) << 32; /* little-endian hosts: the last four of the 16 bytes */
	p->dst.word[1] = (u64)*(u32 *)(at + 16) << 32;
	c->later_fragment = (offset & 0x1fff) != 0;
	c->first_fragment = (offset & 0x3fff) == 0x2000;
	/* RFC 1858: a TCP fragment at offset 1 overwrites the flags that were judged. */
	if ((offset & 0x1fff) == 1 && at[9] == IPPROTO_TCP)
		return PARSED_MALFORMED;
	c->at += header;
	c->left = total - header;
	return reach(c, data, end, 0) ? PARSED_IP : PARSED_MALFORMED;
}

static __always_inline int is_mapped(const struct address *a)
{
	/* ::ffff:0:0/96 */
	return a->word[0] == 0 && (a->word[1] & 0xffffffffULL) == 0xffff0000ULL;
}

/* One extension header; → 0, or it is malformed. */
static __always_inline int parse_extension(struct packet *p, struct cursor *c, void *data, void *end)
{
	u8 *at = reach(c, data, end, 8);
	u32 length;

	if (!at)
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

static __always_inline int parse_ipv6(struct packet *p, struct cursor *c, void *data, void *end)
{
	u8 *at = reach(c, data, end, 40);

	if (!at || at[0] >> 4 != 6)
		return PARSED_MALFORMED;
	c->left = read16(at + 4);
	if (c->left == 0 && p->packets > 1)
		c->left = c->available - 40;
	if (!c->quoted && c->left + 40 > c->available)
		return PARSED_MALFORMED;
	p->family = 6;
	p->hop_limit = at[7];
	p->src.word[0] = read_word(at + 8);
	p->src.word[1] = read_word(at + 16);
	p->dst.word[0] = read_word(at + 24);
	p->dst.word[1] = read_word(at + 32);
	if (is_mapped(&p->src) || is_mapped(&p->dst))
		return PARSED_MALFORMED;
	c->next = at[6];
	c->at += 40;
#pragma clang loop unroll(disable)
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		if (!is_extension(c->next) || c->later_fragment)
			break;
		if (parse_extension(p, c, data, end))
			return PARSED_MALFORMED;
	}
	if (is_extension(c->next) && !c->later_fragment)
		return PARSED_MALFORMED;
	p->proto = c->next;
	return reach(c, data, end, 0) ? PARSED_IP : PARSED_MALFORMED;
}

/* Ports, flags, type. Of a quoted packet only the first 8 bytes are there for sure. */
static __always_inline int parse_layer4(struct packet *p, struct cursor *c, void *data, void *end)
{
	u8 *at, query;
	u32 need;

	p->sport = p->dport = 0;
	p->ports = ports_group(p->family, p->proto);
	if (p->ports == GROUP_OTHER)
		return PARSED_IP;
	need = c->quoted ? 8 : p->ports == GROUP_TCP ? 20 : p->ports == GROUP_SCTP ? 12 : 8;
	at = reach(c, data, end, 8);
	if (!at || c->left < need)
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
	if (c->quoted)
		return PARSED_IP;
	if (p->ports == GROUP_UDP)
		return read16(at + 4) < 8 ? PARSED_MALFORMED : PARSED_IP;
	if (p->ports == GROUP_SCTP)
		return reach(c, data, end, 12) ? PARSED_IP : PARSED_MALFORMED;
	at = reach(c, data, end, 20);
	if (!at || at[12] >> 4 < 5 || (u32)(at[12] >> 4) * 4 > c->left)
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
	/* lo_port, hi_port, family, proto, pad as one store: the hash reads wider than these fields, and a load that
	 * spans several stores waits for all of them (8 ns here). */
	*(u64 *)&key->lo_port = lo_port | hi_port << 16 | (u64)p->family << 32 | (u64)p->proto << 40;
	return from_hi;
}

static __always_inline int parse(struct scratch *s, void *data, void *end)
{
	struct packet *p = &s->packet;
	struct cursor *c = &s->cursor;
	u16 type;

	c->state = 0;
	if ((u8 *)data + 14 > (u8 *)end)
		return PARSED_NON_IP;
	type = read16((u8 *)data + 12);
	c->at = 14;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		u8 *tag;
		if (type != 0x8100 && type != 0x88a8)
			break;
		tag = reach(c, data, end, 4);
		if (!tag)
			return PARSED_NON_IP;
		type = read16(tag + 2);
		c->at += 4;
	}
	if (type != 0x0800 && type != 0x86dd)
		return PARSED_NON_IP;
	p->family = type == 0x0800 ? 4 : 6;
	c->available = p->wire_length - c->at;
	/* Once for the packet, and once more for the one an ICMP error quotes. */
#pragma clang loop unroll(disable)
	for (int depth = 0; depth < 2; depth++) {
		int parsed = *(volatile u8 *)&p->family == 4 ? parse_ipv4(p, c, data, end) : parse_ipv6(p, c, data, end);

		if (parsed == PARSED_IP && c->later_fragment) {
			p->sport = p->dport = 0;
			p->ports = GROUP_OTHER;
			p->kind = c->quoted ? PACKET_ICMP_UNRELATED : PACKET_LATER_FRAGMENT;
			break;
		}
		if (parsed == PARSED_IP)
			parsed = parse_layer4(p, c, data, end);
		if (parsed != PARSED_IP) {
			if (!c->quoted)
				return PARSED_MALFORMED;
			p->kind = PACKET_ICMP_UNRELATED;
			break;
		}
		if (c->quoted)
			break;
		p->kind = c->first_fragment ? PACKET_FIRST_FRAGMENT : PACKET_WHOLE;
		if ((p->ports != GROUP_ICMP && p->ports != GROUP_ICMPV6) || !icmp_is_error(p->family, p->icmp_type))
			break;
		p->kind = PACKET_ICMP_ERROR;
		c->error_from = p->src;
		c->error_to = p->dst;
		c->error_type = p->icmp_type;
		c->at += 8;
		c->quoted = 1;
	}
	p->from_hi = flow_key_make(p, &s->key);
	if (c->quoted) {
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
