/* What is known of the packet at hand. It lives in a per-CPU map, not on the stack: a program's stack has 512 bytes,
 * and the verifier forgets the value of what passes through a map, so that it need not walk everything after the parser
 * once for each kind of packet (with these on the stack it gave up after a million instructions).
 */
#ifndef ZTLENS_PACKET_H
#define ZTLENS_PACKET_H

#include "types.h"

enum packet_kind {
	PACKET_WHOLE,	     /* has its ports: may open a flow */
	PACKET_FIRST_FRAGMENT, /* the same, and later fragments will ask for its verdict */
	PACKET_LATER_FRAGMENT, /* has no ports: belongs to the flow of its first fragment */
	PACKET_ICMP_ERROR,   /* belongs to the flow of the packet it quotes */
	PACKET_ICMP_UNRELATED, /* quotes what its receiver cannot have sent, or what names no flow */
};

struct address {
	u64 word[2]; /* network byte order; IPv4 in the last 4 bytes */
};

/* memcpy in words: of bytes, as most of our structs have, the compiler copies one at a time. `size` is a constant. */
static __always_inline void copy_words(void *to, const void *from, u32 size)
{
#pragma unroll
	for (u32 i = 0; i < size / 8; i++)
		((u64 *)to)[i] = ((const u64 *)from)[i];
}

struct packet {
	struct address src, dst;
	u16 sport, dport; /* host byte order; ICMP: what flow_key says of lo_port and hi_port */
	u8 family, proto;
	u8 kind;	  /* enum packet_kind */
	u8 tcp_flags;
	u8 icmp_type;	  /* this packet's own */
	u8 hop_limit;
	u8 fragment_proto; /* as in the fragment header: the same in all pieces */
	u8 ports;	  /* enum: which section of `ports` policy asks */
	u32 fragment_id;
	u32 wire_length;  /* layer 2 bytes without FCS, of the whole packet */
	u64 bytes;	  /* what to count: on TC more than one packet's */
	u32 packets;
	u32 ifindex;
	u64 now;	  /* coarse clock */
	u8 flags;	  /* Flag bits of the hook */
	u8 from_hi;	  /* 1: sent by the key's `hi` endpoint */
	u8 pad[6];
};

enum { GROUP_TCP, GROUP_UDP, GROUP_SCTP, GROUP_ICMP, GROUP_ICMPV6, GROUP_OTHER };

struct answer {
	u64 verdict;
	u32 src_identity, dst_identity; /* of the opener, of the responder */
	u32 sample;
	u32 reversed; /* 1: the opener is the packet's receiver */
	u32 rule;     /* while it is judged */
	u32 pad;
};

/* What the parser carries over a loop or into a quoted packet: in memory, so each step starts from one state. */
struct cursor {
	u32 at;	  /* offset in the frame */
	u32 left; /* bytes of the IP payload from `at` on, as the IP header claims */
	u32 next; /* IPv6: the header at `at` */
	u32 error_type; /* of the ICMP error that quotes */
	u32 quote_end;	/* offset in the frame where that error ends */
	u32 later_fragment, first_fragment;
	u32 pad;
	struct address error_from, error_to;
};

/* No program interrupts another on its CPU: XDP and TC run with softirqs off. */
struct scratch {
	u64 tick, tick_ns; /* jiffies at the last look at the coarse clock, and what it said */
	struct packet packet;
	struct cursor cursor;
	struct flow_key key;
	struct answer answer;
	u32 state; /* enum flow_need */
	u32 untracked; /* COUNTER_UNTRACKED_* */
	struct flow flow; /* a new entry is put together here */
	struct fragment_key fragment_key;
	struct fragment fragment;
};

#endif
