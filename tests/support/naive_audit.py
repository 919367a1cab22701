"""An audit written the plain way: event by event, flow by flow, with the naive reader of policies; and its traffic."""

import ipaddress
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from policy.compile import compile_policy
from policy.parse import parse
from schemas.codes import PROTOCOLS, Decision, EventKind, Flag, IdentityId, Outcome, Reason, RuleId
from schemas.messages import IdentityInfo, PolicyRecord
from tests.support import batches
from tests.support.naive_policy import NaivePolicy, Tuple
from tests.support.policies import as_yaml
from tests.support.rollups import TOTALS


@dataclass
class Day:
    """A revision: `policy` as the data of its YAML, and the node's addresses."""

    revision: int
    policy: dict[str, Any]
    host: tuple[str, ...] = ()
    time: int = batches.CLOCK
    numbers: dict[str, int] = field(default_factory=dict)
    """Rule → its number."""
    identities: dict[str, int] = field(default_factory=dict)
    """Identity → its number."""

    def record(self, **who: str) -> PolicyRecord:
        """As the collector tells it."""
        compiled = compile_policy(parse(as_yaml(self.policy)), host=self.host)
        self.numbers = {rule.name: rule.id for rule in compiled.rule_infos()} | {"default": int(RuleId.DEFAULT)}
        self.identities = {"world": 0, "host": 1} | {one.name: one.id for one in compiled.identity_infos()}
        host = [IdentityInfo(int(IdentityId.HOST), "host", {}, list(self.host))] if self.host else []
        assert compiled.policy is not None
        return batches.policy_record(
            revision=self.revision, time=self.time, yaml=compiled.policy.text, hash=compiled.policy.hash,
            rules=compiled.rule_infos(), identities=[*host, *compiled.identity_infos()], **who,
        )  # fmt: skip


def raw(address: str) -> bytes:
    """16 bytes, IPv4 in the last 4."""
    return ipaddress.ip_address(address).packed.rjust(16, b"\0")


def text(row: np.void) -> Tuple:
    """The tuple of a row."""
    ends = []
    for end in ("src", "dst"):
        data = row[end].tobytes()
        ends.append(str(ipaddress.ip_address(data[12:] if row["family"] == 4 else data)))
    return Tuple(ends[0], ends[1], int(row["proto"]), int(row["dport"]))


def traffic(random: Random, packets: list[Tuple], days: list[Day], seconds: int = 180) -> np.ndarray:
    """A flow a tuple of `packets`, or an event without one, as `days` decide, one after the other in `seconds`."""
    rows = []
    length = seconds * 10**9 // len(days)
    naive = [NaivePolicy("", day.host, day.policy) for day in days]
    begins = sorted(batches.START + random.randrange(seconds * 10**9) for _ in packets)  # flow ids rise with time
    for number, (begin, packet) in enumerate(zip(begins, packets, strict=True), 1):
        time = begin
        tracked = random.random() < 0.9
        flags = (0 if tracked else Flag.UNTRACKED) | (Flag.MIDSTREAM if random.random() < 0.05 else 0)
        totals, last = np.zeros(4, "u8"), -1
        for step in range(random.randint(1, 5) if tracked else 1):
            today = min(len(days) - 1, (time - batches.START) // length)
            judgement = naive[today].judge(packet)
            totals += np.array([random.randrange(1, 9), 500, random.randrange(9), 900], "u8")
            kind = EventKind.SAMPLE if today == last or not tracked else EventKind.CHANGE if step else EventKind.NEW
            denied = judgement.decision == "deny"
            dropped = denied and not judgement.report_only and number % 2
            rows.append(batches.verdict(
                time=time, flow_id=number if tracked else 0, src=raw(packet.src), dst=raw(packet.dst),
                family=ipaddress.ip_address(packet.src).version, proto=packet.proto, dport=packet.port, event=kind,
                revision=days[today].revision, rule=days[today].numbers[judgement.rule], flags=flags,
                src_identity=days[today].identities[judgement.src_identity],
                dst_identity=days[today].identities[judgement.dst_identity],
                decision=Decision.DENY if denied else Decision.ALLOW,
                outcome=Outcome.DROPPED if dropped else Outcome.PASSED,
                reason=Reason.DEFAULT if judgement.reason == "default" else Reason.RULE,
                **dict(zip(TOTALS, totals.tolist(), strict=True)),
            ))  # fmt: skip
            last, time = today, time + random.randrange(1, 40 * 10**9)
    out = np.concatenate(rows)
    return out[np.argsort(out["time"], kind="stable")]


def of_the_day(candidate: dict[str, Any], day: Day) -> dict[str, Any]:
    """`candidate` with what the day's names stood for, where the day had them."""
    known = day.policy.get("identities") or {}
    own = candidate.get("identities") or {}
    return candidate | {"identities": {name: known.get(name, identity) for name, identity in own.items()}}


def audit(
    rows: np.ndarray, days: list[Day], candidate: dict[str, Any], *, now: bool = False, against: bool = False,
    since: int = 0,
) -> dict[tuple, list[Any]]:  # fmt: skip
    """(list, src_identity, dst_identity, proto, dport, decision_before, rule_before, rule_after) →
    [flows, packets, bytes, crossing, first_seen, last_seen, lower_bound], times in ns since 1970.

    `list`: `unchanged` (all in one, no more in the key), `newly_denied`, `newly_allowed`, or the cause. `against`: the
    last day's policy stands for what was recorded.
    """
    by_revision = {day.revision: day for day in days}
    judges: dict[tuple[str, int], NaivePolicy] = {}
    for day in days:
        for name, policy in (("after", candidate), ("before", days[-1].policy)):
            chosen = policy if now else of_the_day(policy, day)
            judges[name, day.revision] = NaivePolicy("", days[-1].host if now else day.host, chosen)
    found: dict[tuple, list[Any]] = defaultdict(lambda: [0, 0, 0, 0, None, None, False])
    flows: dict[int, np.void] = {}
    first_of: dict[int, int] = {}

    def add(row: np.void, judged: np.void, *sums: int) -> None:
        time, packet, revision = int(row["time"]) + batches.CLOCK, text(row), int(judged["revision"])
        after = judges["after", revision].judge(packet)
        names = {number: name for name, number in by_revision[revision].numbers.items()}
        before = ("deny" if judged["decision"] == Decision.DENY else "allow", names[int(judged["rule"])])
        if against:
            said = judges["before", revision].judge(packet)
            before = (said.decision, said.rule)
        where = "unchanged"
        if row["flags"] & Flag.MIDSTREAM:
            where = "midstream"
        elif before[0] != after.decision:
            where = "newly_denied" if after.decision == "deny" else "newly_allowed"
            if row["flags"] & Flag.UNTRACKED and packet.proto != 6 and where == "newly_denied":
                where = "untracked"  # the kernel judges it both ways
        proto = PROTOCOLS.get(packet.proto, str(packet.proto))
        shown = {number: name for name, number in by_revision[revision].identities.items() if number > 1 and not now}
        ends = (shown.get(int(judged[f"{e}_identity"]), getattr(after, f"{e}_identity")) for e in ("src", "dst"))
        key = (where, *ends, proto, packet.port, *before, after.rule)
        entry = found[key if where != "unchanged" else ("unchanged",)]
        for i, more in enumerate(sums):
            entry[i] += more
        entry[4] = time if entry[4] is None else min(entry[4], time)
        entry[5] = time if entry[5] is None else max(entry[5], time)
        retries = judged["outcome"] == Outcome.DROPPED and after.decision == "allow"
        entry[6] |= bool(retries or row["flags"] & Flag.UNTRACKED) and where != "unchanged"

    last_inside: dict[int, np.void] = {}
    for row in rows:
        flow = int(row["flow_id"])
        before = flows.get(flow) if flow else None
        judged = before if before is not None and row["event"] == EventKind.CHANGE else row
        added = [int(row[name]) - (int(before[name]) if before is not None else 0) for name in TOTALS]
        first_of.setdefault(flow, int(row["time"]) + batches.CLOCK)
        if flow:
            flows[flow] = row
        if int(row["time"]) + batches.CLOCK >= since:
            opened = int(flow != 0 and before is None)
            add(row, judged, opened, added[0] + added[2], added[1] + added[3], 0)
            if flow and first_of[flow] < since:
                last_inside[flow] = row
    for row in last_inside.values():
        add(row, row, 0, 0, 0, 1)
    return dict(found)
