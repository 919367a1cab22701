"""Synthetic traffic for tests of the sink: verdict rows, envelopes, policy and loss records, all alike real ones.

`traffic` makes what a ring would hold: each flow's `new`, `sample` and `end` with cumulative totals, in time order,
so compression, grouping and totals behave as they do with a real datapath.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from schemas import codes, envelope
from schemas.codes import Counter, Decision, Direction, EventKind, Flag, Outcome, Reason, RuleId
from schemas.messages import FlowSums, IdentityInfo, LossRecord, PolicyRecord, RuleInfo
from schemas.verdict import DTYPE, STRIDE

CLOCK = 1_790_000_000_000_000_000
"""Wall clock minus monotonic clock of the made-up node: boot on 2026-09-21."""
START = 3_600_000_000_000
"""The traffic begins an hour after boot."""


@dataclass(frozen=True)
class Traffic:
    """`rows` in ring order; `flows` how many; `packets`, `bytes` the sum over flows of their last event's totals."""

    rows: np.ndarray
    flows: int
    packets: int
    bytes: int


def _addresses(values: np.ndarray, v6: np.ndarray) -> np.ndarray:
    """uint32 host numbers → V16: IPv4 in the last 4 bytes, IPv6 below fd00::/64."""
    raw = np.zeros((len(values), 16), "u1")
    raw[:, 12:] = np.ascontiguousarray(values.astype(">u4")).view("u1").reshape(-1, 4)
    raw[v6, 0] = 0xFD
    return raw.view("V16").ravel()


def traffic(events: int, *, seed: int = 1, flow_events: int = 3, seconds: float = 60.0) -> Traffic:
    """About `events` rows (exactly: a multiple of `flow_events` ≥ 2) over `seconds` of traffic, one in eight denied."""
    rng = np.random.default_rng(seed)
    flows = max(1, events // flow_events)
    of = np.repeat(np.arange(flows), flow_events)  # flow of each event
    step = np.tile(np.arange(flow_events), flows)
    v6 = rng.random(flows) < 0.1
    denied = rng.random(flows) < 0.125
    client = 0x0A000100 + rng.integers(0, 200, flows)
    server = 0x0A000200 + rng.zipf(1.6, flows) % 50
    packets = np.cumsum(rng.geometric(0.08, (flows, flow_events)), axis=1)
    reply = packets * (rng.random(flows)[:, None] < 0.9) * ~denied[:, None]
    begin = rng.random(flows) * seconds * 1e9
    times = START + begin[:, None] + np.cumsum(rng.exponential(2e8, (flows, flow_events)), axis=1)
    size = rng.integers(60, 1500, flows)[:, None]

    rows = np.zeros(flows * flow_events, DTYPE)
    rows["time"] = times.astype("u8").ravel()
    serial = np.empty(flows, "u8")
    serial[np.argsort(begin)] = np.arange(flows) // 2 + 1
    cpu = np.empty(flows, "u8")
    cpu[np.argsort(begin)] = np.arange(flows) % 2
    rows["flow_id"] = ((cpu << np.uint64(48)) | serial)[of]
    rows["src"] = _addresses(client, v6)[of]
    rows["dst"] = _addresses(server, v6)[of]
    rows["packets_original"] = packets.ravel()
    rows["bytes_original"] = (packets * size).ravel()
    rows["packets_reply"] = reply.ravel()
    rows["bytes_reply"] = (reply * size).ravel()
    rows["revision"] = 1
    rows["src_identity"] = 16
    rows["dst_identity"] = np.where(denied, 0, 17)[of]
    rows["ifindex"] = (3 + client % 5)[of]
    rows["sport"] = rng.integers(32768, 61000, flows)[of]
    rows["dport"] = rng.choice([80, 443, 5432, 6379, 53], flows)[of]
    rows["rule"] = np.where(denied, RuleId.DEFAULT, RuleId.FIRST)[of]
    rows["family"] = np.where(v6, 6, 4)[of]
    rows["proto"] = np.where(rows["dport"] == 53, 17, 6)
    rows["event"] = np.where(
        step == 0, EventKind.NEW, np.where(step == flow_events - 1, EventKind.END, EventKind.SAMPLE)
    )
    rows["decision"] = np.where(denied, Decision.DENY, Decision.ALLOW)[of]
    rows["outcome"] = Outcome.PASSED
    rows["reason"] = np.where(denied, Reason.DEFAULT, Reason.RULE)[of]
    rows["direction"] = np.where(step % 2, Direction.REPLY, Direction.ORIGINAL)
    rows["tcp_flags_original"] = np.where(rows["proto"] == 6, np.where(step == 0, 2, 0x1B), 0)
    rows["tcp_flags_reply"] = np.where((rows["proto"] == 6) & (step > 0) & ~denied[of], 0x1B, 0)
    rows = rows[np.argsort(rows["time"], kind="stable")]
    last = packets[:, -1] + reply[:, -1]
    return Traffic(rows, flows, int(last.sum()), int((last * size[:, 0]).sum()))


def verdict(**fields: object) -> np.ndarray:
    """One row: an allowed TCP flow's `new`, with `fields` replaced."""
    row = np.zeros(1, DTYPE)
    defaults: dict[str, object] = {
        "time": START, "flow_id": 1, "packets_original": 1, "bytes_original": 74, "revision": 1, "sport": 40000,
        "dport": 443, "rule": RuleId.FIRST, "family": 4, "proto": 6, "event": EventKind.NEW,
        "decision": Decision.ALLOW, "outcome": Outcome.PASSED, "reason": Reason.RULE, "ifindex": 3,
        "direction": Direction.ORIGINAL, "src_identity": 16, "dst_identity": 17,
    }  # fmt: skip
    for name, value in (defaults | fields).items():
        row[name] = np.void(value) if isinstance(value, bytes) else value
    return row


def untracked(**fields: object) -> np.ndarray:
    """One row without a flow: a malformed packet, denied."""
    return verdict(**({"flow_id": 0, "flags": Flag.UNTRACKED, "decision": Decision.DENY, "reason": Reason.MALFORMED,
                       "rule": RuleId.MALFORMED} | fields))  # fmt: skip


def batch(rows: np.ndarray, start: int = 0, *, node: str = "n1", ring: str = "r1", rev: int = 1) -> envelope.Envelope:
    """`rows` as the decoded batch at ring position `start`."""
    return envelope.decode(packed(rows, start, node=node, ring=ring, rev=rev))


def packed(rows: np.ndarray, start: int = 0, *, node: str = "n1", ring: str = "r1", rev: int = 1) -> bytes:
    """`rows` as the message at ring position `start`."""
    return envelope.encode(rows, node=node, ring=ring, start=start, clock=CLOCK, rev=rev)


def cut(rows: np.ndarray, size: int, *, first: int = 0, node: str = "n1", ring: str = "r1") -> Iterator[bytes]:
    """`rows`, row 0 at index `first` of the ring, as messages of up to `size` rows."""
    for i in range(0, len(rows), size):
        yield packed(rows[i : i + size], (first + i) * STRIDE, node=node, ring=ring)


RULES = [
    RuleInfo(id=64, name="web-to-db", action="allow", text="- name: web-to-db"),
    RuleInfo(id=65, name="rest", action="deny", report_only=True, text="- name: rest"),
]
IDENTITIES = [
    IdentityInfo(id=16, name="frontend", labels={"app": "frontend"}, addresses=["10.0.1.10"]),
    IdentityInfo(id=17, name="database", labels={"app": "db"}, addresses=["10.0.2.0/24", "fd00:2::/64"]),
]


def policy_record(kind: str = "revision", *, node: str = "n1", ring: str = "r1", revision: int = 1, time: int = CLOCK,
                  **fields: object) -> PolicyRecord:  # fmt: skip
    """A change of policy, from revision - 1, by root."""
    given: dict = {
        "mode": "monitor", "default": "deny", "hash": f"{revision:064x}", "yaml": "version: 1", "rules": RULES,
        "identities": IDENTITIES, "who": "root(0) control.sock", "from_revision": max(0, revision - 1),
    } | fields  # fmt: skip
    return PolicyRecord(v=1, kind=kind, node=node, ring=ring, time=time, revision=revision, **given)


def loss_record(produced: int, *, node: str = "n1", ring: str = "r1", time: int = CLOCK, consumed: int | None = None,
                packets: int = 0, untracked: int = 0, live: FlowSums | None = None, final: bool = False,
                pending: int = 0, lost: int = 0, held_back: int = 0, revision: int = 1,
                **fields: object) -> LossRecord:  # fmt: skip
    """A balanced record: `produced`, `consumed` in events; `packets` of ended flows, `live` of live ones."""
    flows = live if live is not None else FlowSums(live=0, packets=0, bytes=0, due=0)
    parsed = packets + untracked + flows.packets
    counters = {codes.word(counter): 0 for counter in Counter} | {
        "parsed": parsed, "untracked_unattributable": untracked, "ended_packets": packets, "samples_lost": lost,
        "samples_held_back": held_back, "samples_lost_denied": lost // 2,
        "events_due": produced + pending + lost + held_back,
    }  # fmt: skip
    given: dict = {
        "counters": counters, "judged_packets": parsed,
        "flows": FlowSums(flows.live, flows.packets, flows.bytes, pending),
    } | fields  # fmt: skip
    return LossRecord(
        v=1, node=node, ring=ring, time=time, revision=revision, mode="monitor", stride=STRIDE,
        produced=produced * STRIDE, consumed=(produced if consumed is None else consumed) * STRIDE, ring_bytes=1 << 26,
        judged_bytes=0, interfaces={"eth9": "native+egress"}, collector={"received": produced, "sent": produced},
        final=final, **given,
    )  # fmt: skip
