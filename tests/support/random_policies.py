"""Whole policies from a random.Random: quick enough to make a hundred thousand of, where hypothesis would take days.

The same small world as in tests/support/policies.py, so that prefixes nest, meet and repeat; rules are named.
"""

import ipaddress
from random import Random
from typing import Any

from tests.support.policies import LABELS, NAMES, PORTS, PROTOCOLS

LENGTHS = {4: [0, 1, 8, 15, 16, 17, 24, 30, 31, 32, 32, 32], 6: [0, 8, 16, 56, 63, 64, 65, 72, 127, 128, 128, 128]}
OCTETS = [0, 1, 2, 128, 255]


def random_prefix(random: Random) -> str:
    """An address or CIDR of either family."""
    family = random.choice([4, 6])
    if family == 4:
        raw = bytes([10, *random.choices(OCTETS, k=3)])
    else:
        one, two, three, four = random.choices(OCTETS, k=4)
        raw = bytes([0xFD, one, *([0] * 5), two, three, *([0] * 6), four])
    network = ipaddress.ip_network((raw, random.choice(LENGTHS[family])), strict=False)
    alone = network.prefixlen == network.max_prefixlen and random.random() < 0.5
    return str(network.network_address) if alone else str(network)


def random_policy(random: Random) -> dict[str, Any]:
    """As the data of its YAML; up to 8 rules, now and then 140, so that vectors have words more than one."""
    identities: dict[str, Any] = {}
    for name in random.sample(NAMES, random.randrange(6)):
        labels = {key: random.choice(values) for key, values in LABELS.items() if random.random() < 0.5}
        identities[name] = {"labels": labels, "addresses": [random_prefix(random) for _ in range(random.randrange(5))]}
    used = [identity["labels"] for identity in identities.values() if identity["labels"]]
    count = 140 if random.random() < 0.03 else random.randrange(9)
    policy: dict[str, Any] = {
        "version": 1, "identities": identities, "rules": [_rule(random, identities, used, n) for n in range(count)],
    }  # fmt: skip
    if random.random() < 0.5:
        policy["default"] = random.choice(["allow", "deny"])
    return policy


def random_host(random: Random) -> tuple[str, ...]:
    """The node's own addresses."""
    networks = (ipaddress.ip_network(random_prefix(random)) for _ in range(random.randrange(3)))
    return tuple(str(network.network_address) for network in networks)


def _rule(random: Random, identities: dict[str, Any], used: list[dict[str, str]], number: int) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": f"{random.choice('rstu')}{number}", "action": random.choice(["allow", "deny"])}
    if rule["action"] == "deny" and random.random() < 0.5:
        rule["report_only"] = True
    if random.random() < 0.25:
        for key in ("src_ip", "dst_ip"):
            if random.random() < 0.6:
                rule[key] = _word(random, identities)
        if random.random() < 0.5:
            rule["proto"] = random.choice(["tcp", "udp", "icmp", "any", *PROTOCOLS])
        else:
            rule["dst_port"] = random.choice([*PORTS, _span(random, 65535)])
            rule["proto"] = random.choice(["tcp", "udp", "sctp", "any", 6, 17])
        return rule
    for key in ("from", "to"):
        if random.random() < 0.7:
            rule[key] = _selectors(random, identities, used, 1)
        if random.random() < 0.25:
            rule[f"{key}_except"] = _selectors(random, identities, used, 0)
    if random.random() < 0.7:
        rule["ports"] = [_ports(random) for _ in range(random.randrange(1, 4))]
    return rule


def _word(random: Random, identities: dict[str, Any]) -> str:
    if random.random() < 0.5:
        return random_prefix(random)
    return random.choice(["any", "world", "host", *identities])


def _selectors(random: Random, identities: dict[str, Any], used: list[dict[str, str]], least: int) -> Any:
    found: list[Any] = []
    for _ in range(random.randrange(least, 4)):
        if used and random.random() < 0.3:
            labels = random.choice(used)
            key = random.choice(sorted(labels))
            found.append(labels if random.random() < 0.5 else {key: labels[key]})
        else:
            found.append(_word(random, identities))
    return found[0] if len(found) == 1 and random.random() < 0.5 else found


def _span(random: Random, highest: int) -> str:
    low, high = sorted(random.choices([port for port in PORTS if port <= highest], k=2))
    return str(low) if low == high and low else f"{low}-{high}"


def _ports(random: Random) -> str:
    kind = random.randrange(3)
    if kind == 0:
        words = ["any", "tcp", "udp", "sctp", "icmp", "icmpv6", *(f"proto:{n}" for n in PROTOCOLS)]
        return random.choice(words)
    if kind == 1:
        return f"{_span(random, 65535)}/{random.choice(['tcp', 'udp', 'sctp', 'any'])}"
    return f"{random.choice(['icmp', 'icmpv6'])}:{_span(random, 255)}"
