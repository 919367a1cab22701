"""A long history with the locality of real traffic, made up block by block in the order of its ring.

How it is made. 1,250,000 pairs of a client (one of 40,000, in /24s of a hundred, a tenth IPv6) and a service (one of
2,000: an address, a protocol, a port). Half of all flows are of pairs drawn by popularity (the r-th with weight 1 / r),
half of any pair. A flow has `new` and `end`; one in five has one to three samples between. Packets of a flow are
lognormal (median 8), a service has a packet size of its own. A client's /24 belongs to one of 16 teams; two services
make a group, with one port, and are closed to one team: to these pairs, one in 16, flows are denied, with up to three
packets and no answer. A service belongs to one of 200 rules, an identity is a client's /24 or a service's address.
A flow lasts lognormal seconds (median 0.5), but ends within its block.

`policy` is a candidate that mostly agrees: one group in fifty it closes to half of the teams, another it opens to all.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from schemas.codes import Decision, Direction, EventKind, Outcome, Reason, RuleId
from schemas.messages import IdentityInfo, PolicyRecord, RuleInfo
from schemas.verdict import DTYPE
from tests.support.batches import START, policy_record

PAIRS, CLIENTS, SERVICES, RULES, TEAMS = 1_250_000, 40_000, 2_000, 200, 16
NETS, GROUPS = CLIENTS // 100, SERVICES // 2
PORTS = (443, 80, 22, 53, 5432, 6379, 9092, 8080, 3306, 25)
FORMAT = 2
"""Of what is made: other for other rows, so that a history kept is known to be of this program."""
BLOCK = 1_000_000
"""Events of a block, nearly."""
_PER_FLOW = 2.4


class RealTraffic:
    """Blocks of one ring's events, each `seconds` long."""

    def __init__(self, seconds: float, seed: int = 1) -> None:
        rng = self._rng = np.random.default_rng(seed)
        self._seconds = seconds
        self._serial = np.zeros(2, "u8")
        self._client = rng.integers(0, CLIENTS, PAIRS)
        self._service = rng.integers(0, SERVICES, PAIRS)
        self._popular = np.cumsum(1 / np.arange(1.0, PAIRS + 1))
        self._size = rng.integers(80, 1400, SERVICES)

    def blocks(self, count: int, events: int = BLOCK) -> Iterator[np.ndarray]:
        """`count` arrays of about `events` rows of schemas.verdict.DTYPE, by time."""
        for number in range(count):
            yield self._block(START + int(number * self._seconds * 1e9), int(events / _PER_FLOW))

    def _block(self, start: int, flows: int) -> np.ndarray:
        rng = self._rng
        popular = np.searchsorted(self._popular, rng.random(flows // 2) * self._popular[-1])
        pair = rng.permutation(np.concatenate([popular, rng.integers(0, PAIRS, flows - flows // 2)]))
        client, service = self._client[pair], self._service[pair]
        denied = client // 100 % TEAMS == closed_to(service // 2)
        begin = np.sort(rng.random(flows)) * self._seconds * 1e9
        length = np.minimum(rng.lognormal(np.log(0.5), 1.5, flows) * 1e9, self._seconds * 1e9 - begin)
        packets = np.maximum(2, rng.lognormal(np.log(8), 1.3, flows)).astype("u8")
        packets = np.where(denied, rng.integers(1, 4, flows), packets).astype("u8")
        samples = np.where((rng.random(flows) < 0.2) & ~denied, rng.integers(1, 4, flows), 0)

        events = samples + 2
        of = np.repeat(np.arange(flows), events)
        step = np.arange(len(of)) - np.repeat(np.cumsum(events) - events, events)
        share = step / (events[of] - 1)
        rows = np.zeros(len(of), DTYPE)
        rows["time"] = (start + begin[of] + share * length[of]).astype("u8")
        cpu = client % 2
        serial = np.empty(flows, "u8")
        for number in (0, 1):
            mine = cpu == number
            serial[mine] = self._serial[number] + np.arange(1, mine.sum() + 1, dtype="u8")
            self._serial[number] += np.uint64(mine.sum())
        rows["flow_id"] = ((cpu.astype("u8") << np.uint64(48)) | serial)[of]
        v6 = client % 10 == 9
        rows["src"] = _addresses(0x0A000000 + client // 100 * 256 + client % 100 + 1, v6)[of]
        rows["dst"] = _addresses(0x0AC80000 + service, v6)[of]
        rows["packets_original"] = np.where(step == 0, 1, np.ceil(share * (packets[of] + 1) / 2))
        rows["packets_reply"] = np.where((step == 0) | denied[of], 0, np.floor(share * packets[of] / 2))
        rows["bytes_original"] = rows["packets_original"] * 74
        rows["bytes_reply"] = rows["packets_reply"] * self._size[service][of].astype("u8")
        rows["revision"] = 1
        rows["src_identity"] = (16 + client // 100)[of]
        rows["dst_identity"] = (16 + NETS + service)[of]
        rows["ifindex"] = 3
        rows["sport"] = rng.integers(32768, 61000, flows)[of]
        rows["dport"] = np.array(PORTS)[service // 2 % len(PORTS)][of]
        rows["rule"] = np.where(denied, RuleId.DEFAULT, RuleId.FIRST + service % RULES)[of]
        rows["family"] = np.where(v6, 6, 4)[of]
        rows["proto"] = np.where(rows["dport"] == 53, 17, 6)
        rows["event"] = np.where(step == 0, EventKind.NEW, np.where(share == 1, EventKind.END, EventKind.SAMPLE))
        rows["decision"] = np.where(denied, Decision.DENY, Decision.ALLOW)[of]
        rows["outcome"] = np.where(denied, Outcome.DROPPED, Outcome.PASSED)[of]
        rows["reason"] = np.where(denied, Reason.DEFAULT, Reason.RULE)[of]
        rows["direction"] = np.where((step > 0) & ~denied[of], Direction.REPLY, Direction.ORIGINAL)
        tcp = rows["proto"] == 6
        rows["tcp_flags_original"] = np.where(tcp, np.where((step == 0) | denied[of], 2, 0x1B), 0)
        rows["tcp_flags_reply"] = np.where(tcp & (step > 0) & ~denied[of], 0x1B, 0)
        return rows[np.argsort(rows["time"], kind="stable")]


def _addresses(low: np.ndarray, v6: np.ndarray) -> np.ndarray:
    """uint32 numbers → V16: IPv4 in the last 4 bytes, IPv6 the same below fd00::/64."""
    raw = np.zeros((len(low), 16), "u1")
    raw[:, 12:] = np.ascontiguousarray(low.astype(">u4")).view("u1").reshape(-1, 4)
    raw[v6, 0] = 0xFD
    return raw.view("V16").ravel()


def closed_to(group: Any) -> Any:
    """The team that may not speak to a group of services; of a number or an array."""
    return group * 7 % TEAMS


def identities() -> dict[str, tuple[dict[str, str], list[str]]]:
    """Name → labels, prefixes, in the order of their numbers: clients by /24, then the services."""
    out: dict[str, tuple[dict[str, str], list[str]]] = {}
    for net in range(NETS):
        high, low = divmod(net, 256)
        where = [f"10.{high}.{low}.0/24", f"fd00::a{high:02x}:{low:02x}00/120"]
        out[f"clients-{net}"] = {"team": f"t{net % TEAMS}"}, where
    for service in range(SERVICES):
        high, low = divmod(service, 256)
        out[f"service-{service}"] = {}, [f"10.200.{high}.{low}", f"fd00::ac8:{service:x}"]
    return out


def opened_to(group: int) -> list[int]:
    """The teams that `policy` lets speak to a group of services."""
    if group % 50 == 7:
        return [team for team in range(TEAMS // 2) if team != closed_to(group)]
    return [team for team in range(TEAMS) if team != closed_to(group) or group % 50 == 13]


def policy() -> str:
    """The candidate, a policy.yaml with a rule for each group."""
    lines = ["version: 1", "default: deny", "identities:"]
    for name, (labels, where) in identities().items():
        lines.append(f"  {name}: {{labels: {json.dumps(labels)}, addresses: {json.dumps(where)}}}")
    lines.append("rules:")
    for group in range(GROUPS):
        teams = ", ".join(f"{{team: t{team}}}" for team in opened_to(group))
        services = f"service-{2 * group}, service-{2 * group + 1}"
        port = PORTS[group % len(PORTS)]
        lines.append(
            f"  - {{name: r{group}, from: [{teams}], to: [{services}],"
            f" ports: [{port}/{'udp' if port == 53 else 'tcp'}], action: allow}}"
        )
    return "\n".join(lines) + "\n"


def fates(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What an audit must find of whole blocks: unchanged, newly_denied, newly_allowed → [flows, packets, bytes]."""
    ends = rows[rows["event"] == EventKind.END]
    opened = np.zeros((GROUPS, TEAMS), bool)
    for group in range(GROUPS):
        opened[group, opened_to(group)] = True
    allowed = opened[(ends["dst_identity"] - 16 - NETS) // 2, (ends["src_identity"] - 16) % TEAMS]
    before = ends["decision"] == Decision.ALLOW
    sums = np.column_stack([
        np.ones(len(ends), "u8"), ends["packets_original"] + ends["packets_reply"],
        ends["bytes_original"] + ends["bytes_reply"],
    ])  # fmt: skip
    which = {"unchanged": before == allowed, "newly_denied": before & ~allowed, "newly_allowed": ~before & allowed}
    return {name: sums[some].sum(axis=0) for name, some in which.items()}


def record() -> PolicyRecord:
    """What was in force while it was recorded, as its names are."""
    return policy_record(
        "start", node="n1", ring="r1",
        rules=[RuleInfo(id=RuleId.FIRST + i, name=f"rule-{i}", action="allow") for i in range(RULES)],
        identities=[IdentityInfo(16 + i, name, labels, where)
                    for i, (name, (labels, where)) in enumerate(identities().items())],
    )  # fmt: skip
