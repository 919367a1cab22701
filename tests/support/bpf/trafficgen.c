/* Live frames for tests and benchmarks: test-run with BPF_F_TEST_XDP_LIVE_FRAMES, it turns each frame of UDP over IPv4
 * into one of `flows` flows and sends it out of the interface it pretends to have come in through. */
#include <uapi/linux/bpf.h>

struct setting {
	u32 flows;	/* this many flows, one after the other */
	u32 first;	/* number of the first one */
	u32 drop;	/* 1: XDP_DROP instead of sending, for measuring */
	u32 pad;
};

BPF_F_TABLE("array", u32, struct setting, setting, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("percpu_array", u32, u64, sent, 1, 0);

int send(struct xdp_md *ctx)
{
	u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 zero = 0;
	struct setting *s = setting.lookup(&zero);
	u64 *n = sent.lookup(&zero);

	if (!s || !n || data + 42 > end || !s->flows)
		return XDP_ABORTED;
	/* The page is used again and again: what is written must not depend on what was there. */
	u32 flow = s->first + (u32)(*n % s->flows);
	*n += 1;
	/* 16,384 ports an address: source port 1024 + flow % 16384, the address's last two bytes flow / 16384. */
	u16 port = 1024 + (flow & 0x3fff), address = flow >> 14;
	data[28] = address >> 8;
	data[29] = address;
	data[34] = port >> 8;
	data[35] = port;
	return s->drop ? XDP_DROP : XDP_TX;
}
