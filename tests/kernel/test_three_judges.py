"""Three judges of one policy: the kernel program (by test-run), `policy.evaluate`, and the naive reader that shares no
code with either. They agree on decision, rule, reason, identities, and on what happens to the packet.

The normal run has 2,000 pairs of policy and packet, and 200 of 10,000 rules. A long one:

    ZTLENS_JUDGES_PAIRS=1000000 ZTLENS_JUDGES_SEED=7 pytest tests/kernel/test_three_judges.py
"""

import ipaddress
import os
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from random import Random
from typing import Any

import numpy as np
import pytest

from collector.kernel.private import PrivateDatapath, private_datapath
from policy.compile import Compiled
from policy.evaluate import evaluate
from policy.explain import ICMP_ERRORS, IPV6_EXTENSIONS, explain
from schemas import codes
from schemas.codes import Decision, Flag, Mode, Outcome, Reason, word
from schemas.structs import SUMMARY_RULES
from tests.support.naive_policy import Judgement, NaivePolicy, Tuple
from tests.support.policies import address_pools, as_yaml, columns, compiled, random_packets
from tests.support.random_policies import random_host, random_policy
from ztlens.probing import agrees, described, kernel_answers, opening_frame

PAIRS = int(os.environ.get("ZTLENS_JUDGES_PAIRS", "2000"))
SEED = int(os.environ.get("ZTLENS_JUDGES_SEED", "1"))
PACKETS = 80 if PAIRS <= 10_000 else 250
"""A policy: changing one costs a grace period, a packet next to nothing."""
KNOBS = {"FLOWS_MAX": 4096, "RULES_MAX": 192, "CLASSES_MAX": 512, "PREFIXES_MAX": 2048, "RING_BYTES": 1 << 18}
MANY, MANY_PACKETS = 10_000, PAIRS // 10
"""Rules of the large policy, and packets it is asked about: the naive reader takes 40 ms for each."""
MANY_KNOBS = KNOBS | {"RULES_MAX": 10_048}
FIRST_PORT = 20_000  # none that policies or built-in rules speak of
DROP, PASS = 1, 2


class KernelJudge:
    """The loaded program in mode enforce; every packet opens a flow of its own and has an event."""

    def __init__(self, datapath: PrivateDatapath) -> None:
        self.datapath = datapath
        datapath.set_mode(Mode.ENFORCE)

    def apply(self, policy: Compiled) -> None:
        self.datapath.apply(policy, self.datapath.revision + 1)

    def judge(self, packets: list[Tuple]) -> tuple[np.ndarray, list[int]]:
        """Events and what the program returned, a packet each."""
        handle = self.datapath.handle
        handle.flows.remove(handle.flows.read()[0])
        totals = handle.totals.values
        totals["flows"][0] = totals["tentative"][0] = 0
        actions = []
        for number, packet in enumerate(packets):
            src, dst = (ipaddress.ip_address(text).packed for text in (packet.src, packet.dst))
            actions.append(
                self.datapath.run(opening_frame(src, dst, packet.proto, packet.port, FIRST_PORT + number))[0]
            )
        rows = []
        while (events := self.datapath.read(4096)) is not None:
            rows.append(events.rows.copy())
            self.datapath.release(events.start + len(events.rows) * self.datapath.stride)
        return np.concatenate(rows), actions


@pytest.fixture(scope="module")
def kernel(loader: str) -> Iterator[KernelJudge]:
    with private_datapath(KNOBS, loader=loader, sample=1, budget=1_000_000_000) as datapath:
        yield KernelJudge(datapath)


def family(packet: Tuple) -> int:
    return ipaddress.ip_address(packet.src).version


def is_icmp_error(packet: Tuple) -> bool:
    own = 1 if family(packet) == 4 else 58
    return packet.proto == own and packet.port in ICMP_ERRORS[family(packet)]


def possible(packets: list[Tuple]) -> list[Tuple]:
    """Those that can be, and are not the reply of another: without ports both directions are one conversation."""
    known: set[Any] = set()
    out = []
    for packet in packets:
        if family(packet) == 6 and packet.proto in IPV6_EXTENSIONS:
            continue
        if packet.proto not in (6, 17, 132):
            key = (frozenset((packet.src, packet.dst)), packet.proto, packet.port)
            if packet.proto not in (1 if family(packet) == 4 else 58,):
                key = key[:2]
            if key in known:
                continue
            known.add(key)
        out.append(packet)
    return out


def in_words(row: Any, policy: Compiled) -> Judgement:
    said = described(row, policy)
    return Judgement(
        said["decision"], said["reason"], said["rule"], said["src_identity"], said["dst_identity"], said["report_only"]
    )


@lru_cache(maxsize=64)
def read(text: str, host: tuple[str, ...]) -> tuple[Compiled, Callable[[Tuple], Judgement]]:
    """A policy compiled, and its naive reader, which answers once: the programs of both loaders are asked the same."""
    return compiled(text, *host), cache(NaivePolicy(text, host).judge)


def compare(kernel: KernelJudge, text: str, host: tuple[str, ...], packets: list[Tuple]) -> int:
    """Number of pairs judged; fails with what reproduces it at the first disagreement."""
    policy, naive = read(text, host)
    kernel.apply(policy)
    rows, actions = kernel.judge(packets)
    assert len(rows) == len(packets)
    errors = np.array([is_icmp_error(packet) for packet in packets], bool)
    assert (rows["reason"][errors] == Reason.ICMP_UNRELATED).all()
    assert (rows["decision"][errors] == Decision.DENY).all()
    out = evaluate(policy, *columns(packets))
    same = np.logical_and.reduce([
        *(rows[name] == out[name] for name in ("rule", "decision", "reason", "src_identity", "dst_identity")),
        ((rows["flags"] & Flag.REPORT_ONLY) != 0) == out["report_only"],
        (rows["outcome"] == Outcome.DROPPED) == ((out["decision"] == Decision.DENY) & ~out["report_only"]),
        (np.array(actions) == DROP) == (rows["outcome"] == Outcome.DROPPED),
    ])  # fmt: skip
    for i in np.flatnonzero(~errors).tolist():
        expected = naive(packets[i])
        assert same[i] and in_words(rows[i], policy) == expected, (
            f"{packets[i]}\nnaive    {expected}\nkernel   {in_words(rows[i], policy)}\n"
            f"evaluate { {name: int(column[i]) for name, column in out.items()} }\nhost {host}\n{text}"
        )
    return int((~errors).sum())


@pytest.mark.timeout(600 + PAIRS // 100)
def test_kernel_evaluate_and_naive_reader_agree(kernel: KernelJudge, capsys: pytest.CaptureFixture[str]) -> None:
    random = Random(SEED)
    pairs = policies = told = 0
    while pairs < PAIRS:
        policy, host = random_policy(random), random_host(random)
        packets = possible(random_packets(random, address_pools(policy, host=host), PACKETS))
        pairs += compare(kernel, as_yaml(policy), host, packets)
        policies += 1
        if pairs >= told + 50_000:
            told = pairs
            with capsys.disabled():
                print(f"\nthree judges: {pairs:,} pairs so far", flush=True)
    with capsys.disabled():
        print(f"\nthree judges agree on {pairs:,} pairs of {policies:,} policies and their packets, seed {SEED}")
    counters = kernel.datapath.counters()
    assert (counters["untracked_table_full"], counters["samples_lost"], counters["reserve_failed"]) == (0, 0, 0)


def many_rules(random: Random) -> dict[str, Any]:
    """MANY rules between 240 prefixes: three vectors meet in many words of 64 rules that have no rule in common."""
    named = [f"10.{i >> 4}.{i & 15}.0/{random.choice((20, 24, 24, 28))}" for i in range(200)]
    named += [f"fd00:{i}::/{random.choice((16, 32, 64))}" for i in range(40)]
    prefixes = [str(ipaddress.ip_network(prefix, strict=False)) for prefix in named]
    ports = [f"{1000 + i}/{random.choice(('tcp', 'udp', 'any'))}" for i in range(60)]
    rules = []
    for number in random.sample(range(100_000), MANY):
        ends = 1 if random.random() < 0.998 else 100
        source, destination = random.sample(prefixes, ends), random.sample(prefixes, ends)
        action = random.choice(("allow", "allow", "allow", "deny"))
        rule = {"name": f"r{number:05}", "from": source, "to": destination, "ports": [random.choice(ports)]}
        only = {"report_only": True} if action == "deny" and random.random() < 0.5 else {}
        rules.append(rule | {"action": action} | only)
    return {"version": 1, "rules": rules}


def packet_for(random: Random, rule: dict[str, Any]) -> Tuple:
    """One that `rule` speaks of, if its ends are of one family."""
    src, dst = (ipaddress.ip_network(random.choice(rule[end])) for end in ("from", "to"))
    port, proto = rule["ports"][0].split("/")
    number = {"tcp": 6, "udp": 17, "any": random.choice((6, 17, 132))}[proto]
    if dst.version != src.version:
        dst = src
    return Tuple(str(src[random.randrange(16)]), str(dst[random.randrange(16)]), number, int(port))


@pytest.mark.timeout(600 + PAIRS // 100)
def test_judges_agree_over_ten_thousand_rules(loader: str, capsys: pytest.CaptureFixture[str]) -> None:
    random = Random(SEED)
    policy = many_rules(random)
    text = as_yaml(policy)
    packets = [packet_for(random, random.choice(policy["rules"])) for _ in range(MANY_PACKETS)]
    with private_datapath(MANY_KNOBS, loader=loader, sample=1, budget=1_000_000_000) as datapath:
        pairs = compare(KernelJudge(datapath), text, (), possible(packets))
    found = evaluate(read(text, ())[0], *columns(packets))["rule"].astype(int) - codes.RuleId.FIRST
    blocks = np.unique(found[found >= 0] // SUMMARY_RULES).tolist()
    assert blocks == [0, 1, 2], "rules of every summary word decide"
    with capsys.disabled():
        print(f"\nthree judges agree on {pairs:,} packets under {MANY:,} rules, seed {SEED}")


EVERY_KIND = """version: 1
default: allow
identities:
  four: {addresses: 10.0.0.0/8}
  six: {addresses: "fd00::/8"}
rules:
  - {name: icmp, ports: icmp, action: deny}
  - {name: icmpv6, ports: icmpv6, action: deny, report_only: true}
  - {name: echo, ports: ["icmp:8", "icmpv6:128"], action: deny}
  - {name: rest, from: four, ports: ["proto:47", "proto:255"], action: deny}
"""


def test_every_protocol_and_type(kernel: KernelJudge) -> None:
    """All 256 protocols and all ICMP types, in both families."""
    packets = []
    for src, dst in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        packets += [Tuple(src, dst, proto, 80) for proto in range(256)]
        packets += [Tuple(src, dst, proto, kind) for proto in (1, 58) for kind in range(256)]
    assert compare(kernel, EVERY_KIND, (), possible(packets)) > 700


def test_explain_says_what_the_kernel_says(kernel: KernelJudge) -> None:
    policy = compiled(EVERY_KIND)
    tuples = [("10.0.0.1", "10.9.9.9", 6, 80), ("10.0.0.1", "10.9.9.9", 47, 0), ("10.0.0.1", "10.9.9.9", 1, 8),
              ("10.0.0.1", "10.9.9.9", 1, 3), ("fd00::1", "::2", 58, 128), ("fd00::1", "::2", 58, 2),
              ("fd00::1", "::2", 1, 0), ("::2", "fd00::1", 58, 135), ("fd00::1", "::2", 132, 9)]  # fmt: skip
    found = [explain(policy, *each) for each in tuples]
    answers = kernel_answers(policy, found)
    assert [agrees(one, answer) for one, answer in zip(found, answers, strict=True)] == [True] * len(tuples)
    assert [one.rule for one in found] == [
        "default", "rest", "echo", "icmp_unrelated", "echo", "icmp_unrelated", "icmp", "icmpv6", "default",
    ]  # fmt: skip
    assert not agrees(found[0], answers[0] | {"rule": "echo"})


def test_words_of_the_kernel(kernel: KernelJudge) -> None:
    """Rule and identity names of an event are those of the policy that decided."""
    policy = compiled(EVERY_KIND)
    kernel.apply(policy)
    rows, actions = kernel.judge([Tuple("10.0.0.1", "192.0.2.1", 47, 0), Tuple("fd00::1", "::1", 58, 140)])
    assert [in_words(row, policy) for row in rows] == [
        Judgement("deny", "rule", "rest", "four", "world"), Judgement("deny", "rule", "icmpv6", "six", "world", True),
    ]  # fmt: skip
    assert actions == [DROP, PASS]
    assert word(codes.Outcome(int(rows[1]["outcome"]))) == "passed"
