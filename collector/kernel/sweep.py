"""Ending flows exactly, from user space's side.

User space cannot write into a BPF ring, and lookup-and-delete loses the packets that are just being counted. So it
only picks candidates (batch lookups, numpy); `mark`, test-run with their keys as its packet, decides again and marks
them dead; after a membarrier no CPU counts into them any more, and `reap` emits `end` and deletes.
"""

import time

import numpy as np

from collector.kernel import libbpf, libc
from collector.kernel.handle import Handle
from collector.kernel.interface import SweepReport
from schemas.codes import FlowClass
from schemas.messages import FlowSums
from schemas.structs import DUE_BITS, FLOW_STATES

_COARSE = 6  # CLOCK_MONOTONIC_COARSE, what bpf_ktime_get_coarse_ns() reads
_FIN, _RST = 1, 4
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_OWED = np.uint32(DUE_BITS["NEW"] | DUE_BITS["CHANGE"])


def sweep(handle: Handle) -> SweepReport:
    """Emit what is due, end what is over, as far as the ring has room; then sum up what stays."""
    before, candidates = _scan(handle)
    # A flow marked dead is lost to its packets until it is reaped: never mark more than the ring takes.
    candidates = candidates[: handle.events.room]
    if not len(candidates):
        return SweepReport(0, 0, before)
    ended = 0
    if _run(handle, "mark", candidates):
        libc.membarrier()
        ended = _run(handle, "reap", candidates)
    after, _ = _scan(handle)
    return SweepReport(ended, max(0, before.due - after.due), after)


def end_all(handle: Handle) -> int:
    """End every flow, idle or not, as far as the ring has room; returns how many were. The programs are off.

    Works on a datapath of another version: it needs the keys alone.
    """
    handle.config.values["timeouts"][0] = 0
    # With no time-out a flow is over from the first tick of the coarse clock after its last packet.
    tick = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == tick:
        time.sleep(0.001)
    keys = handle.flows.read()[0][: handle.events.room]
    if not len(keys):
        return 0
    _run(handle, "mark", keys)
    libc.membarrier()
    return _run(handle, "reap", keys)


def _scan(handle: Handle) -> tuple[FlowSums, np.ndarray]:
    """Sums over the flow table, and the keys of flows that are dead, idle, or owe an event (in that order)."""
    now = np.int64(time.clock_gettime_ns(_COARSE))
    timeouts = handle.config.values["timeouts"][0].astype(np.int64)
    live = packets = size = due = 0
    dead, idle, owing = [], [], []
    for keys, flows in handle.flows.batches():
        live += len(flows)
        packets += int(flows["packets"].sum())
        size += int(flows["bytes"].sum())
        owed = flows["due"]
        due += int(np.bitwise_count(owed).sum())
        # BUSY with `end` owed: a packet began the next conversation here, and found no room in the ring.
        is_dead = (flows["state"] == FLOW_STATES["DEAD"]) | (
            (flows["state"] == FLOW_STATES["BUSY"]) & (owed & np.uint64(DUE_BITS["END"])).astype(bool)
        )
        is_idle = now - flows["last_seen"].astype(np.int64) > timeouts[flow_classes(keys, flows)]
        is_idle &= ~is_dead
        dead.append(keys[is_dead])
        idle.append(keys[is_idle])
        owing.append(keys[(owed & _OWED).astype(bool) & ~is_dead & ~is_idle])
    parts = dead + idle + owing
    return FlowSums(live, packets, size, due), np.concatenate(parts) if parts else np.zeros(0, handle.flows.key)


def flow_classes(keys: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """FlowClass of each flow, as bpf/flow.h's flow_timeout() sees it. `mark` decides; this only picks."""
    flags = flows["tcp_flags"]
    closed = ((flags[:, 0] | flags[:, 1]) & _RST).astype(bool) | (flags[:, 0] & flags[:, 1] & _FIN).astype(bool)
    answered = flags[:, 1] > 0  # an ICMP error counts as a reply, but establishes nothing
    tcp = np.where(closed, FlowClass.TCP_CLOSED, np.where(answered, FlowClass.TCP_ESTABLISHED, FlowClass.TCP_HALF_OPEN))
    proto = keys["proto"]
    icmp = (proto == _ICMP) | (proto == _ICMPV6)
    return np.select(
        [proto == _TCP, proto == _UDP, icmp], [tcp, FlowClass.UDP, FlowClass.ICMP], default=FlowClass.OTHER
    )


def _run(handle: Handle, program: str, keys: np.ndarray) -> int:
    """Test-run `program` over all keys, SWEEP_MAX at a time; the sum of its answers."""
    fd, step, done = handle.programs[program], handle.layout.knobs["SWEEP_MAX"], 0
    raw = keys.view(np.uint8).reshape(len(keys), -1)
    for at in range(0, len(raw), step):
        done += libbpf.test_run(fd, raw[at : at + step].reshape(-1))[0]
    return done
