"""Policies of any size for the benchmarks."""

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
