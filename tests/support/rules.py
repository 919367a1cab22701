"""A policy for tests of the kernel program, written into its arrays by the most naive compiler there is.

It shares nothing with policy/: a prefix named anywhere is a class of its own, and so is a port named anywhere. What
`rules` gives is in order of credit; the first that matches decides.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from schemas.codes import Decision, IdentityId
from schemas.structs import PORT_GROUPS, PORTS_PER_SLOT, RULE, SLOT, dtype

ANY = "any"
PREFIX = np.dtype([("family", "u1"), ("length", "u1"), ("addr", "V16"), ("identity", "<u4"), ("source_class", "<u4"),
                   ("destination_class", "<u4")])  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """`source`, `destination`: a prefix or ANY. `port`: "tcp/80", "icmp/8", "other/47", or ANY."""

    source: str
    destination: str
    port: str
    allow: bool
    report_only: bool = False
    sample: int = 0


@dataclass(frozen=True)
class Rules:
    """A policy; `builtins`: bit i turns RuleId 16 + i on."""

    rules: tuple[Rule, ...] = ()
    default: Decision = Decision.DENY
    builtins: int = 15
    has_policy: bool = True


NO_POLICY = Rules(has_policy=False)


def _covers(selector: str, prefix: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    if selector == ANY:
        return True
    wide = ipaddress.ip_network(selector)
    return wide.version == prefix.version and prefix.subnet_of(wide)  # type: ignore[arg-type]


def _vectors(matches: Sequence[Sequence[bool]], words: int) -> np.ndarray:
    out = np.zeros((len(matches), words), np.uint64)
    for row, bits in enumerate(matches):
        for rule, on in enumerate(bits):
            if on:
                out[row, rule // 64] |= np.uint64(1 << rule % 64)
    return out


def address(text: str) -> bytes:
    """16 bytes, IPv4 in the last 4."""
    return ipaddress.ip_address(text).packed.rjust(16, b"\0")


def identity_of(rules: Rules, prefix: str) -> int:
    """The number `compile_rules` gives a prefix."""
    return IdentityId.FIRST + prefixes_of(rules).index(ipaddress.ip_network(prefix))


def prefixes_of(rules: Rules) -> list:
    """Every prefix named, once, in the order of the file."""
    named = [p for r in rules.rules for p in (r.source, r.destination) if p != ANY]
    return [ipaddress.ip_network(p) for p in dict.fromkeys(named)]


def compile_rules(rules: Rules) -> SimpleNamespace:
    """What `Datapath.apply` takes, as policy.compile.Compiled has it."""
    words = max(1, -(-len(rules.rules) // 64))
    networks = prefixes_of(rules)
    prefixes = np.zeros(len(networks), PREFIX)
    for i, n in enumerate(networks):
        addr = np.frombuffer(address(str(n.network_address)), "V16")[0]
        prefixes[i] = (n.version, n.prefixlen, addr, IdentityId.FIRST + i, i + 1, i + 1)
    sides = []
    for side in ("source", "destination"):
        outside = [getattr(r, side) == ANY for r in rules.rules]  # class 0: in no prefix
        rows = [[_covers(getattr(r, side), n) for r in rules.rules] for n in networks]
        sides.append(_vectors([outside, *rows], words))
    named = list(dict.fromkeys(r.port for r in rules.rules if r.port != ANY))
    ports = np.zeros(PORTS_PER_SLOT, np.uint32)
    for i, port in enumerate(named):
        group, number = port.split("/")
        ports[PORT_GROUPS[group.upper()][0] + int(number)] = i + 1
    by_port = _vectors([[r.port in (ANY, name) for r in rules.rules] for name in [None, *named]], words)
    table = np.zeros(len(rules.rules), dtype(RULE))
    for i, r in enumerate(rules.rules):
        table[i] = (Decision.ALLOW if r.allow else Decision.DENY, r.report_only, 0, r.sample)
    slot = np.zeros(1, dtype(SLOT))
    slot["words"], slot["has_policy"] = words, rules.has_policy
    slot["default_decision"], slot["builtins"] = rules.default, rules.builtins
    order = sorted(range(len(networks)), key=lambda i: (networks[i].version, networks[i]))
    return SimpleNamespace(
        prefixes=prefixes[order], ports=ports, source_rules=sides[0], destination_rules=sides[1], port_rules=by_port,
        rules=table, slot=slot[0],
    )  # fmt: skip
