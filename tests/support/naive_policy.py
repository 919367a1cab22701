"""The most literal reading of policy.yaml there is: rules one by one, `ipaddress`, and the file as yaml.safe_load
gives it. It shares no code and no shortcut with policy/, so that a test may compare the two.

Rules must be named (an unnamed rule's name is the engine's own doing), words that YAML would turn into something else
must be quoted, or read by `as_written`.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
WITH_PORTS = (6, 17, 132)
# The library's own readers; reading the same text again is most of the time otherwise.
ip_address = lru_cache(65_536)(ipaddress.ip_address)
ip_network = lru_cache(65_536)(ipaddress.ip_network)


@dataclass(frozen=True)
class Tuple:
    """The first packet of a conversation; `port` is the ICMP type for ICMP."""

    src: str
    dst: str
    proto: int
    port: int


@dataclass(frozen=True)
class Judgement:
    """In words: decision, reason, rule, both identities."""

    decision: str
    reason: str
    rule: str
    src_identity: str
    dst_identity: str
    report_only: bool = False


class NaivePolicy:
    """Judges tuples by reading the whole policy for each."""

    def __init__(self, text: str, host: tuple[str, ...] = (), policy: dict[str, Any] | None = None) -> None:
        """`policy`: what `text` says, if somebody has read it already (`as_written`)."""
        self.policy: dict[str, Any] = yaml.safe_load(text) if policy is None else policy
        self.identities: dict[str, Any] = self.policy.get("identities") or {}
        self.host = host

    def judge(self, packet: Tuple) -> Judgement:
        """What the policy says of `packet`."""
        identities = (self.shown(packet.src), self.shown(packet.dst))
        matching = [rule for rule in self.policy.get("rules") or [] if self.matches(rule, packet)]
        if not matching:
            return Judgement(self.policy.get("default", "deny"), "default", "default", *identities)
        rule = min(matching, key=credit)
        report_only = rule.get("report_only", False)
        return Judgement(rule["action"], "rule", rule["name"], *identities, report_only)

    def matches(self, rule: dict[str, Any], packet: Tuple) -> bool:
        """Whether `rule` speaks of `packet`."""
        if any(key in rule for key in ("src_ip", "dst_ip", "dst_port", "proto")):
            return (
                self.selects(rule.get("src_ip", "any"), packet.src)
                and self.selects(rule.get("dst_ip", "any"), packet.dst)
                and flat_port_matches(rule.get("dst_port", 0), rule.get("proto", "any"), packet)
            )
        return (
            self.selects(rule.get("from", "any"), packet.src)
            and not self.selects(rule.get("from_except", []), packet.src)
            and self.selects(rule.get("to", "any"), packet.dst)
            and not self.selects(rule.get("to_except", []), packet.dst)
            and any(port_matches(port, packet) for port in as_list(rule.get("ports", "any")))
        )

    def selects(self, selector: Any, address: str) -> bool:
        """Whether `address` is in `selector`."""
        if isinstance(selector, list):
            return any(self.selects(item, address) for item in selector)
        if isinstance(selector, dict):
            fitting = [i for i in self.identities.values() if selector.items() <= i.get("labels", {}).items()]
            return any(holds(identity["addresses"], address) for identity in fitting)
        if selector == "any":
            return True
        if selector == "host":
            return holds(list(self.host), address)
        if selector == "world":
            return self.shown(address) == "world"
        if selector in self.identities:
            return holds(self.identities[selector]["addresses"], address)
        return holds([selector], address)

    def shown(self, address: str) -> str:
        """The identity a verdict shows: of the longest prefix, then the first in the file, then the host."""
        candidates = [(name, identity["addresses"]) for name, identity in self.identities.items()]
        candidates.append(("host", list(self.host)))
        best, longest = "world", -1
        for name, prefixes in candidates:
            for prefix in as_list(prefixes):
                network = ip_network(prefix)
                if inside(address, network) and network.prefixlen > longest:
                    best, longest = name, network.prefixlen
        return best


def credit(rule: dict[str, Any]) -> tuple[int, str]:
    """Deny, then report-only deny, then allow; then by name."""
    if rule["action"] == "allow":
        return 2, rule["name"]
    return (1 if rule.get("report_only") else 0), rule["name"]


def as_list(value: Any) -> list[Any]:
    """A list, or the one value in its place, as a list."""
    return value if isinstance(value, list) else [value]


def inside(address: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Whether `network` holds `address`, of the same family."""
    ip = ip_address(address)
    return ip.version == network.version and ip in network


def holds(prefixes: Any, address: str) -> bool:
    """Whether any of `prefixes` holds `address`."""
    return any(inside(address, ip_network(prefix)) for prefix in as_list(prefixes))


def within(ports: str, port: int) -> bool:
    """Whether `80` or `80-90` holds `port`."""
    first, _, last = ports.partition("-")
    return int(first) <= port <= int(last or first)


def protocol_matches(word: Any, proto: int) -> bool:
    """Whether `tcp`, `any` or a number is `proto`."""
    return word == "any" or proto == protocol_number(word)


def protocol_number(word: Any) -> int:
    """Of `tcp`, 6 or `6`."""
    return NUMBERS[word] if word in NUMBERS else int(word)


def port_matches(entry: str, packet: Tuple) -> bool:
    """Whether an entry of `ports` speaks of `packet`."""
    if entry == "any" or entry in NUMBERS:
        return protocol_matches(entry, packet.proto)
    if "/" in entry:
        ports, protocol = (part.strip() for part in entry.split("/"))
        fits = packet.proto in WITH_PORTS if protocol == "any" else packet.proto == protocol_number(protocol)
        return fits and within(ports, packet.port)
    head, tail = (part.strip() for part in entry.split(":"))
    if head == "proto":
        return packet.proto == int(tail)
    return packet.proto == NUMBERS[head] and has_types(packet) and within(tail, packet.port)


def flat_port_matches(port: Any, protocol: Any, packet: Tuple) -> bool:
    """The same for `dst_port` and `proto`."""
    if port in (0, "0", "any"):
        return protocol_matches(protocol, packet.proto)
    if protocol == "any":
        fits = packet.proto in WITH_PORTS
    else:
        fits = protocol_matches(protocol, packet.proto) and (packet.proto in WITH_PORTS or has_types(packet))
    return fits and within(str(port), packet.port)


def has_types(packet: Tuple) -> bool:
    """Whether it is ICMP in its own family: over the other one it is bytes that nobody understands."""
    return packet.proto == (1 if ip_address(packet.src).version == 4 else 58)


def as_written(text: str, names: list[str]) -> dict[str, Any]:
    """What `text` says, every word as the file shows it, whatever YAML makes of `on`, `010` or `1e3`.

    `names`: of all rules, for those that have none.
    """
    policy: dict[str, Any] = _plain(yaml.compose(text.removeprefix("\ufeff"), Loader=yaml.CSafeLoader))
    for rule, name in zip(policy.get("rules") or [], names, strict=True):
        rule.setdefault("name", name)
        rule["report_only"] = rule.get("report_only") in ("true", "True")
    return policy


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return None if node.tag == "tag:yaml.org,2002:null" else node.value
