"""Policies of any size for the benchmarks."""

import ipaddress
from dataclasses import dataclass

import numpy as np

from policy.compile import Compiled, compile_policy
from policy.parse import parse

CLIENTS, SERVERS = "10.1.0.0/16", "10.2.0.0/16"
ALLOWED_PORT, DENIED_PORT = 5000, 6000


def policy_text(rules: int) -> str:
    """`rules` rules, the default deny. Credit for CLIENTS to SERVERS on ALLOWED_PORT goes to the very last one.

    The others each name a source, a destination and a port of their own: `rules` classes of each kind, and random
    sources in CLIENTS meet as many prefixes.
    """
    lines = ["version: 1", "default: deny", "rules:"]
    for i in range(rules - 1):
        source = f"10.1.{i // 4 % 256}.{i % 4 * 64}/26"
        lines.append(
            f"  - {{name: rule-{i:05}, from: {source}, to: 10.2.{i // 256 % 256}.{i % 256}, "
            f"ports: [{10_000 + i}/udp], action: allow}}"
        )
    lines.append(f"  - {{name: zz, from: {CLIENTS}, to: {SERVERS}, ports: [{ALLOWED_PORT}/udp], action: allow}}")
    return "\n".join(lines) + "\n"


def policy(rules: int) -> Compiled:
    return compile_policy(parse(policy_text(rules)))


@dataclass(frozen=True)
class Crowd:
    """A policy of allow rules, each from one of many identities to another on a UDP port of its own choice.

    `members`: per family V16[identities, addresses], one out of each prefix. `rules`: intp[rules, 3], from, to, port.
    """

    text: str
    members: dict[int, np.ndarray]
    rules: np.ndarray

    def tuples(self, n: int, family: int = 4) -> list[np.ndarray]:
        """n tuples in no order, as `policy.evaluate` takes them; every other one is what some rule allows."""
        numbers, members = np.random.default_rng(family), self.members[family]
        chosen = self.rules[numbers.integers(len(self.rules), size=n)]
        chosen[::2, :2] = numbers.integers(len(members), size=(len(chosen[::2]), 2))
        ends = [members[chosen[:, end], numbers.integers(members.shape[1], size=n)] for end in (0, 1)]
        return [*ends, np.full(n, family, "u1"), np.full(n, 17, "u1"), chosen[:, 2].astype("u2")]


def crowd(rules: int, identities: int, addresses: int, families: tuple[int, ...] = (4,)) -> Crowd:
    """`identities` of `addresses` prefixes a family, scattered: half of them hosts, of IPv6 twenty in a /64."""
    numbers = np.random.default_rng(1)
    table = np.column_stack([numbers.integers(identities, size=(rules, 2)), numbers.integers(10_000, 10_100, rules)])
    named: list[list[str]] = [[] for _ in range(identities)]
    members = {}
    for family in families:
        values, lengths = (_scattered4 if family == 4 else _scattered6)(numbers, identities * addresses)
        for i, pair in enumerate(zip(values, lengths, strict=True)):
            named[i // addresses].append(f'"{ipaddress.ip_network(pair)}"')
        packed = np.array([value.to_bytes(16, "big") for value in values], "V16")
        members[family] = packed.reshape(identities, addresses)
    lines = [
        "version: 1",
        "identities:",
        *(f"  i{i}: {{addresses: [{', '.join(own)}]}}" for i, own in enumerate(named)),
    ]
    lines.append("rules:")
    for number, (source, destination, port) in enumerate(table.tolist()):
        ends = f"from: i{source}, to: i{destination}"
        lines.append(f"  - {{name: r{number:05}, {ends}, ports: [{port}/udp], action: allow}}")
    return Crowd("\n".join(lines) + "\n", members, table)


def _scattered4(numbers: np.random.Generator, n: int) -> tuple[list[int], list[int]]:
    """Of 10.0.0.0/8: n blocks of 16 addresses, every other one as its first address alone."""
    blocks = numbers.choice(1 << 20, n, replace=False)
    return ((10 << 24) + (blocks << 4)).tolist(), np.where(np.arange(n) % 2, 28, 32).tolist()


def _scattered6(numbers: np.random.Generator, n: int) -> tuple[list[int], list[int]]:
    """Of fd00::/16: half are hosts, twenty to a /64, the rest /64s and /56s of their own."""
    hosts, half = [], n // 2
    for subnet in numbers.integers(1 << 40, size=-(-half // 20)).tolist():
        hosts += [(0xFD00 << 112) + (subnet << 64) + host for host in numbers.integers(1 << 48, size=20).tolist()]
    nets = [(0xFD01 << 112) + (net << 72) for net in numbers.choice(1 << 32, n - half, replace=False).tolist()]
    both = list(zip(hosts[:half], [128] * half, strict=True)) + [(net, 56 + 8 * (i % 2)) for i, net in enumerate(nets)]
    numbers.shuffle(both)
    return [int(value) for value, _ in both], [int(length) for _, length in both]


def labels_text() -> str:
    """100,000 addresses in 1,000 identities under 10 rules of labels."""
    lines = ["version: 1", "identities:"]
    for i in range(1000):
        own = ", ".join(f"10.{i // 250}.{i % 250}.{j}" for j in range(100))
        lines.append(f"  i{i}: {{labels: {{app: a{i % 10}}}, addresses: [{own}]}}")
    lines += ["rules:", *(f"  - {{from: {{app: a{i}}}, to: {{app: a{9 - i}}}, action: allow}}" for i in range(10))]
    return "\n".join(lines) + "\n"
