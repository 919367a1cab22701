"""Shorthand for tests of policy/: compile YAML, judge one tuple in words, and generated policies with their tuples."""

import ipaddress
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from policy.compile import Compiled, compile_policy
from policy.evaluate import evaluate
from policy.parse import parse
from schemas.codes import Decision, Reason, word
from tests.support.naive_policy import Judgement, Tuple


def compiled(text: str, *host: str) -> Compiled:
    """The policy in `text`, with `host` as the node's addresses."""
    return compile_policy(parse(text), host=host)


def columns(packets: list[Tuple]) -> list[np.ndarray]:
    """Arguments of `evaluate` behind the policy."""
    src, dst = ([ipaddress.ip_address(getattr(p, end)) for p in packets] for end in ("src", "dst"))
    return [
        np.array([a.packed.rjust(16, b"\0") for a in src], "V16"),
        np.array([a.packed.rjust(16, b"\0") for a in dst], "V16"),
        np.array([a.version for a in src], "u1"),
        np.array([p.proto for p in packets], "u1"),
        np.array([p.port for p in packets], "u2"),
    ]


def judge_all(policy: Compiled, packets: list[Tuple]) -> list[Judgement]:
    """What the engine says of `packets`, in words."""
    out = evaluate(policy, *columns(packets))
    return [
        Judgement(
            word(Decision(int(out["decision"][i]))),
            word(Reason(int(out["reason"][i]))),
            policy.rule_name(int(out["rule"][i])),
            policy.identity_name(int(out["src_identity"][i])),
            policy.identity_name(int(out["dst_identity"][i])),
            bool(out["report_only"][i]),
        )
        for i in range(len(packets))
    ]


def judge(policy: Compiled, src: str, dst: str, proto: int = 6, port: int = 80) -> Judgement:
    """What the engine says of one tuple."""
    return judge_all(policy, [Tuple(src, dst, proto, port)])[0]


# ---- generated policies: a small world, so that prefixes nest, meet and repeat

LABELS = {"app": ["a", "b", "c"], "env": ["x", "y"]}
NAMES = ["i0", "i1", "i2", "i3", "i4"]
PORTS = [0, 1, 22, 53, 79, 80, 81, 443, 8000, 65534, 65535]
PROTOCOLS = [0, 1, 6, 17, 47, 58, 132, 255]


@st.composite
def prefixes(draw: st.DrawFn) -> str:
    """An address or CIDR of either family."""
    octet = st.sampled_from([0, 1, 2, 128, 255])
    if draw(st.booleans()):
        address = ipaddress.IPv4Address(bytes([10, *(draw(octet) for _ in range(3))]))
        length = draw(st.sampled_from([0, 1, 8, 15, 16, 17, 24, 30, 31, 32, 32, 32]))
    else:
        middle = draw(octet)
        raw = bytes([0xFD, middle, *([0] * 5), draw(octet), draw(octet), *([0] * 6), draw(octet)])
        address = ipaddress.IPv6Address(raw)
        length = draw(st.sampled_from([0, 8, 16, 56, 63, 64, 65, 72, 127, 128, 128, 128]))
    network = ipaddress.ip_network((address, length), strict=False)
    return str(network.network_address) if length == network.max_prefixlen and draw(st.booleans()) else str(network)


def _label_pairs() -> st.SearchStrategy[dict[str, str]]:
    pairs = {key: st.sampled_from(values) for key, values in LABELS.items()}
    return st.fixed_dictionaries({}, optional=pairs)


def _spans(highest: int) -> st.SearchStrategy[str]:
    values = [port for port in PORTS if port <= highest]
    return st.tuples(st.sampled_from(values), st.sampled_from(values)).map(
        lambda ends: str(ends[0]) if ends[0] == ends[1] and ends[0] else f"{min(ends)}-{max(ends)}"
    )


PORT_ENTRIES = st.one_of(
    st.sampled_from(["any", "tcp", "udp", "sctp", "icmp", "icmpv6", *(f"proto:{n}" for n in PROTOCOLS)]),
    st.tuples(_spans(65535), st.sampled_from(["tcp", "udp", "sctp", "any"])).map("/".join),
    st.tuples(st.sampled_from(["icmp", "icmpv6"]), _spans(255)).map(":".join),
)
FLAT_PORTS = st.one_of(
    st.fixed_dictionaries({}, optional={"proto": st.sampled_from(["tcp", "udp", "icmp", "any", *PROTOCOLS])}),
    st.fixed_dictionaries(
        {"dst_port": st.one_of(st.sampled_from(PORTS), _spans(65535))},
        optional={"proto": st.sampled_from(["tcp", "udp", "sctp", "any", 6, 17])},
    ),
)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """A whole policy, rules named, as the data of its YAML."""
    identities = {
        name: {"labels": draw(_label_pairs()), "addresses": draw(st.lists(prefixes(), max_size=4))}
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    }
    words = st.one_of(st.sampled_from(["any", "world", "host", *identities]), prefixes())
    used: dict[str, set[str]] = {}
    for identity in identities.values():
        for key, value in identity["labels"].items():
            used.setdefault(key, set()).add(value)
    labels = [{key: value} for key, values in sorted(used.items()) for value in sorted(values)] + [
        identity["labels"] for identity in identities.values() if identity["labels"]
    ]
    selector = st.one_of(words, st.sampled_from(labels)) if labels else words
    selectors = st.one_of(selector, st.lists(selector, min_size=1, max_size=3))
    sides = {key: selectors for key in ("from", "to")}
    excepts = {key: st.lists(selector, max_size=2) for key in ("from_except", "to_except")}
    ports = {"ports": st.one_of(PORT_ENTRIES, st.lists(PORT_ENTRIES, min_size=1, max_size=3))}
    rules = []
    for number in range(draw(st.integers(0, 8)) + draw(st.sampled_from([0, 0, 0, 70]))):
        if number >= 8:  # far on, so that vectors have more words than one
            rules.append({"name": f"p{number}", "from": "host", "ports": f"{number}/tcp", "action": "allow"})
            continue
        rule = {"name": f"{draw(st.sampled_from('rstu'))}{number}", "action": draw(st.sampled_from(["allow", "deny"]))}
        if rule["action"] == "deny" and draw(st.booleans()):
            rule["report_only"] = True
        if draw(st.integers(0, 3)):
            rule |= draw(st.fixed_dictionaries({}, optional=sides | excepts | ports))
        else:
            rule |= draw(st.fixed_dictionaries({}, optional={"src_ip": words, "dst_ip": words})) | draw(FLAT_PORTS)
        rules.append(rule)
    policy = {"version": 1, "identities": identities, "rules": rules}
    if draw(st.booleans()):
        policy["default"] = draw(st.sampled_from(["allow", "deny"]))
    return policy


@st.composite
def hosts(draw: st.DrawFn) -> tuple[str, ...]:
    """The node's own addresses."""
    return tuple(str(ipaddress.ip_network(p).network_address) for p in draw(st.lists(prefixes(), max_size=2)))


def address_pools(*policies: dict[str, Any], host: tuple[str, ...] = ()) -> dict[int, list[str]]:
    """By family the addresses at the edges of the policies' prefixes, where mistakes are: the first address of every
    region that any of them can tell from others is among them."""
    edges: dict[int, set[Any]] = {
        4: {ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("255.255.255.255")},
        6: {ipaddress.ip_address("::"), ipaddress.ip_address("::10.1.1.1"), ipaddress.ip_address("ffff::")},
    }
    for text in set(host).union(*map(_named_prefixes, policies)):
        network = ipaddress.ip_network(text)
        kind = type(network.network_address)
        for number in (int(network.network_address) - 1, int(network.network_address),
                       int(network.broadcast_address), int(network.broadcast_address) + 1):  # fmt: skip
            if 0 <= number < 1 << network.max_prefixlen:
                edges[network.version].add(kind(number))
    return {family: sorted(map(str, pool)) for family, pool in edges.items()}


def random_packets(random: Any, pools: dict[int, list[str]], n: int) -> list[Tuple]:
    """`n` tuples of addresses of one family each; `random` is a random.Random."""
    out = []
    for _ in range(n):
        pool = pools[random.choice([4, 6])]
        proto = random.choice(PROTOCOLS)
        port = random.choice([p for p in PORTS if p < 256] if proto in (1, 58) else PORTS)
        out.append(Tuple(random.choice(pool), random.choice(pool), proto, port))
    return out


@st.composite
def packets(draw: st.DrawFn, policy: dict[str, Any], host: tuple[str, ...]) -> list[Tuple]:
    """Tuples at the edges of the policy."""
    return random_packets(draw(st.randoms(use_true_random=False)), address_pools(policy, host=host), 40)


def every_port() -> list[tuple[int, int]]:
    """(protocol, port) of every kind that generated policies can tell from others."""
    with_ports = sorted({p for port in PORTS for p in (port, port + 1) if p < 65536})
    types = [p for p in with_ports if p < 256]
    out = [(proto, port) for proto in (6, 17, 132) for port in with_ports]
    out += [(proto, kind) for proto in (1, 58) for kind in types]
    return out + [(proto, 0) for proto in (0, 2, 47, 255)]


def _named_prefixes(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_named_prefixes(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(_named_prefixes(item) for item in value))
    if not isinstance(value, str):
        return set()
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return set()
    return {value}


def as_yaml(policy: dict[str, Any]) -> str:
    """The file's text; without the references that safe_dump makes of equal lists."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(policy, Dumper=Dumper, sort_keys=False)
