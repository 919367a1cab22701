"""`policy.suggest`: exact text of small records; for any record all of it is allowed, and with `exact` nothing else."""

import ipaddress
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.check import check
from policy.compile import Compiled, compile_policy
from policy.diff import diff
from policy.errors import PolicyError
from policy.evaluate import evaluate
from policy.parse import parse
from policy.suggest import Part, Suggestion, suggest
from policy.tuples import Known, Tuples
from policy.units import Generality
from schemas.codes import Decision
from tests.support.naive_policy import Tuple
from tests.support.policies import columns
from tests.support.random_policies import random_prefix

SECOND = 10**9
CLOCK = 1_790_000_000 * SECOND
SHOP = """version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10, 10.0.1.11, "fd00:1::10"]}
  db: {addresses: [10.0.2.0/24, "fd00:2::/64"]}
rules: []
"""
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


def known(text: str = SHOP, *host: str) -> Known:
    policy = parse(text)
    return Known(policy.identities, host, policy.builtins_off)


def recorded(packets: list[Tuple]) -> Tuples:
    """Tuple i: i + 1 flows of 10 packets and 1,000 bytes, seen for a second from second i on."""
    count = np.arange(1, len(packets) + 1, dtype="<i8")
    first = CLOCK + (count - 1) * SECOND
    return Tuples(*columns(packets), count, 10 * count, 1000 * count, first, first + SECOND)


def suggestion(
    packets: list[Tuple], generality: str = "service", names: Known | None = None, head: tuple[str, ...] = ()
) -> Suggestion:
    return suggest(recorded(packets), known() if names is None else names, Generality(generality), head)


def rules(made: Suggestion) -> list[tuple[str, str, str]]:
    return [(", ".join(part.source), ", ".join(part.destination), ", ".join(part.ports)) for part in made.parts]


def compiled(text: str, *host: str) -> Compiled:
    return compile_policy(parse(text), host=host)


# ---- exact output

VISITS = [
    Tuple("10.0.1.10", "10.0.2.7", TCP, 5432), Tuple("fd00:1::10", "fd00:2::7", TCP, 5432),
    Tuple("10.0.9.1", "10.0.1.10", TCP, 443), Tuple("10.0.9.1", "10.0.1.10", TCP, 80),
    Tuple("10.0.9.1", "10.0.1.10", ICMP, 8),
]  # fmt: skip


def test_the_whole_file() -> None:
    made = suggestion(VISITS, head=("Suggested.",))
    assert (
        made.text
        == """# Suggested.
version: 1
default: deny

identities:
  web: {labels: {app: web}, addresses: [10.0.1.10, 10.0.1.11, "fd00:1::10"]}
  db: {addresses: [10.0.2.0/24, "fd00:2::/64"]}

rules:
  # 12 flows, 120 packets, 2026-09-21T14:13:22Z – 2026-09-21T14:13:25Z
  - name: 10.0.9.1-to-web
    from: 10.0.9.1
    to: web
    ports: [80/tcp, 443/tcp, "icmp:8"]
    action: allow
  # 3 flows, 30 packets, 2026-09-21T14:13:20Z – 2026-09-21T14:13:22Z
  - name: web-to-db
    from: web
    to: db
    ports: [5432/tcp]
    action: allow
"""
    )
    assert made.parts == [
        Part("10.0.9.1-to-web", ("10.0.9.1",), ("web",), ("80/tcp", "443/tcp", "icmp:8"), 12, 120, 12_000,
             CLOCK + 2 * SECOND, CLOCK + 5 * SECOND, 0, 1, 3),
        Part("web-to-db", ("web",), ("db",), ("5432/tcp",), 3, 30, 3000, CLOCK, CLOCK + 2 * SECOND,
             1, 255 + 2**64 - 1, 2 * 256 - 1 + 2**64 - 1),
    ]  # fmt: skip


def test_exact_says_what_was_seen() -> None:
    made = suggestion(VISITS, "exact")
    assert rules(made) == [
        ("10.0.9.1", "10.0.1.10", "80/tcp, 443/tcp, icmp:8"), ("10.0.1.10", "10.0.2.7", "5432/tcp"),
        ("web", "fd00:2::7", "5432/tcp"),  # its one address of IPv6
    ]  # fmt: skip
    assert {(part.new_sources, part.new_destinations, part.new_tuples) for part in made.parts} == {(0, 0, 0)}


def test_exact_names_whom_it_saw_whole() -> None:
    """Both addresses of a name, and of IPv6 the one there is."""
    names = known('version: 1\nidentities: {web: {addresses: [10.0.1.10, 10.0.1.11, "fd00:1::10"]}}\nrules: []\n')
    packets = [Tuple(f"10.0.1.{host}", "10.0.2.7", TCP, 5432) for host in (10, 11)]
    assert rules(suggestion(packets, "exact", names)) == [("web", "10.0.2.7", "5432/tcp")]
    assert rules(suggestion(packets[:1], "exact", names)) == [("10.0.1.10", "10.0.2.7", "5432/tcp")]


def test_networks_of_clients() -> None:
    packets = [Tuple(f"10.0.{net}.{host}", "10.0.7.1", TCP, 80) for net in (8, 9) for host in (1, 2)]
    packets += [Tuple("10.0.8.5", "10.0.7.1", UDP, 53), Tuple("fd00:9::1", "fd00:7::1", TCP, 80)]
    made = suggestion(packets, "network")
    assert rules(made) == [
        ("10.0.8.0/24", "10.0.7.1", "53/udp"), ("10.0.8.0/23", "10.0.7.1", "80/tcp"),
        ("fd00:9::/64", "fd00:7::1", "80/tcp"),
    ]  # fmt: skip
    assert [part.new_sources for part in made.parts] == [255, 508, 2**64 - 1]


@pytest.mark.parametrize(
    ("networks", "source"),
    [(64, "11.0.0.0/18"), (65, "11.0.0.0/16"), (64 << 8, "11.0.0.0/10"), (65 << 8, "11.0.0.0/8")],
)
def test_many_networks_are_one_larger(networks: int, source: str) -> None:
    packets = [Tuple(f"11.{net >> 8}.{net & 255}.1", "192.0.2.1", TCP, 80) for net in range(networks)]
    assert [part.source for part in suggestion(packets, "network").parts] == [(source,)]


def test_many_servers_are_networks() -> None:
    packets = [Tuple("10.0.1.10", f"203.0.{net}.1", TCP, 443) for net in range(65)]
    assert rules(suggestion(packets, "network")) == [("web", "203.0.0.0/16", "443/tcp")]
    assert rules(suggestion(packets[:64], "network")) == [("web", "servers-203.0.0.1-and-63", "443/tcp")]


def test_the_whole_world_is_any() -> None:
    packets = [Tuple(f"{net}.0.0.1", "192.0.2.1", TCP, 80) for net in range(1, 70)]
    packets += [Tuple(f"{net:x}::1", "2001:db8::1", TCP, 80) for net in range(0x2000, 0x2045)]
    assert rules(suggestion(packets, "network")) == [
        ("0.0.0.0/0", "192.0.2.1", "80/tcp"), ("::/0", "2001:db8::1", "80/tcp"),
    ]  # fmt: skip
    mail = known('version: 1\nidentities: {mail: {addresses: [192.0.2.1, "2001:db8::1"]}}\nrules: []\n')
    assert rules(suggestion(packets, "network", mail)) == [("any", "mail", "80/tcp")]


def test_a_name_for_what_stands_together() -> None:
    packets = [Tuple(f"192.0.2.{host}", "10.0.1.10", TCP, 443) for host in (1, 3, 5, 7, 9)]
    packets += [Tuple("192.0.2.1", "198.51.100.1", TCP, port) for port in (1, 2)]
    packets += [Tuple("198.51.100.1", server, TCP, 25) for server in ("203.0.113.9", "2001:db8::9")[:1]]
    text = suggestion(packets).text
    assert "clients-192.0.2.3-and-3: " not in text  # four of the five stand alike: they are listed
    packets += [Tuple("192.0.2.11", "10.0.1.10", TCP, 443)]
    text = suggestion(packets).text
    assert "  clients-192.0.2.3-and-4: {addresses: [192.0.2.3, 192.0.2.5, 192.0.2.7, 192.0.2.9, 192.0.2.11]}\n" in text


def test_a_name_for_who_appears_often() -> None:
    packets = [Tuple("192.0.2.1", f"203.0.113.{host}", TCP, 80 + host) for host in (1, 2, 3)]
    assert rules(suggestion(packets)) == [
        ("client-192.0.2.1", f"203.0.113.{host}", f"{80 + host}/tcp") for host in (1, 2, 3)
    ]


def test_host() -> None:
    names = known(SHOP, "192.0.2.10", "fd00:5::10")
    packets = [Tuple("192.0.2.10", "10.0.2.7", TCP, 5432), Tuple("192.0.2.1", "192.0.2.10", TCP, 22)]
    assert rules(suggestion(packets, names=names)) == [("host", "db", "5432/tcp"), ("192.0.2.1", "host", "22/tcp")]


def test_names_inside_others_say_nothing_twice() -> None:
    names = known("""version: 1
identities:
  all: {addresses: [10.0.0.0/8]}
  web: {addresses: [10.0.1.10]}
rules: []
""")
    packets = [Tuple("10.0.1.10", "192.0.2.1", TCP, 80), Tuple("10.9.9.9", "192.0.2.1", TCP, 80)]
    assert rules(suggestion(packets, names=names)) == [("all", "192.0.2.1", "80/tcp")]


def test_a_rule_that_two_others_cover_is_left_out() -> None:
    names = known("""version: 1
identities:
  low: {addresses: [10.0.0.0/16, 192.0.2.1]}
  high: {addresses: [10.1.0.0/16, 192.0.2.2]}
  both: {addresses: [10.0.0.0/24, 10.1.0.0/24]}
rules: []
""")
    sources = {"low": "192.0.2.1", "high": "192.0.2.2", "both": "10.0.0.1"}
    reached = {"low": (1, 2, 4), "high": (1, 2, 3), "both": (1,)}
    packets = [Tuple(sources[who], "203.0.113.1", TCP, port) for who, ports in reached.items() for port in ports]
    assert rules(suggestion(packets, names=names)) == [
        ("low", "203.0.113.1", "1-2/tcp, 4/tcp"), ("high", "203.0.113.1", "1-3/tcp"),
    ]  # fmt: skip


def test_what_has_no_word_alone() -> None:
    """Port 0; ICMP of the other family; protocols by number."""
    packets = [Tuple("10.0.9.1", "10.0.9.2", TCP, 0), Tuple("10.0.9.1", "10.0.9.2", 47, 0),
               Tuple("10.0.9.1", "10.0.9.2", ICMPV6, 9), Tuple("fd00:9::1", "fd00:9::2", ICMP, 3)]  # fmt: skip
    made = suggestion(packets, "exact")
    assert [ports for _, _, ports in rules(made)] == ["0-0/tcp, icmpv6, proto:47", "icmp"]
    assert [part.new_tuples for part in made.parts] == [0, 0]


def test_built_in_rules_stay_as_they_are() -> None:
    names = known("version: 1\nbuiltins: {dhcp: false}\nrules: []\n")
    text = suggestion(VISITS, names=names).text
    assert "\nbuiltins: {dhcp: false}\n" in text
    assert parse(text).builtins_off == {"dhcp"}


def test_words_that_yaml_takes_for_others() -> None:
    names = known('version: 1\nidentities: {"null": {labels: {"on": "1"}, addresses: [10.0.1.10]}}\nrules: []\n')
    text = suggestion(VISITS, names=names).text
    assert '  "null": {labels: {"on": "1"}, addresses: [10.0.1.10]}\n' in text
    assert [identity.name for identity in parse(text).identities] == ["null"]


def test_too_much_for_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.parse.MAX_RULES", 4)
    packets = [Tuple(f"10.1.1.{i}", f"10.1.2.{i}", TCP, i) for i in range(1, 6)]
    with pytest.raises(PolicyError, match="makes too large a policy") as raised:
        suggestion(packets, "exact")
    assert raised.value.hint == "a shorter span, or `--generality network`"


# ---- any record

PORTS = [(TCP, 0), (TCP, 22), (TCP, 80), (TCP, 81), (UDP, 53), (UDP, 80), (132, 80), (ICMP, 8), (ICMP, 0),
         (ICMPV6, 128), (ICMPV6, 8), (47, 0), (255, 0)]  # fmt: skip


def random_address(random: Random, family: int) -> str:
    while True:
        network = ipaddress.ip_network(random_prefix(random))
        if network.version == family:
            return str(network[random.randrange(min(3, network.num_addresses))])


def random_names(random: Random) -> Known:
    lines = ["version: 1", "identities:"]
    for number in range(random.randrange(5)):
        addresses = ", ".join(f'"{random_prefix(random)}"' for _ in range(random.randrange(4)))
        lines.append(f"  i{number}: {{addresses: [{addresses}]}}")
    host = [random_address(random, family) for family in (4, 6) if random.random() < 0.3]
    return known("\n".join([*lines, "rules: []"]) if len(lines) > 2 else "version: 1\nrules: []\n", *host)


def random_record(random: Random) -> list[Tuple]:
    """Few machines, so that they meet again."""
    machines = {family: [random_address(random, family) for _ in range(random.randrange(1, 9))] for family in (4, 6)}
    packets = {}
    for _ in range(random.choice([1, 3, 10, 60])):
        family = random.choice([4, 6])
        ends = random.choices(machines[family], k=2)
        packets[Tuple(*ends, *random.choice(PORTS))] = None
    distinct = {(p.src, p.dst, p.proto, p.port if p.proto not in (47, 255) else 0): p for p in packets}
    return [*distinct.values()]


def places(tuples: Tuples) -> set[tuple[Any, ...]]:
    """What a policy can tell tuples apart by."""
    return {*zip(tuples.src.tolist(), tuples.dst.tolist(), tuples.family.tolist(), tuples.places.tolist(), strict=True)}


def allowed(text: str, tuples: Tuples, *host: str) -> np.ndarray:
    found = evaluate(compiled(text, *host), tuples.src, tuples.dst, tuples.family, tuples.proto, tuples.port)
    return found["decision"] == Decision.ALLOW


def one_a_place(packets: list[Tuple]) -> list[Tuple]:
    tuples = recorded(packets)
    keys = zip(tuples.src.tolist(), tuples.dst.tolist(), tuples.family.tolist(), tuples.places.tolist(), strict=True)
    return [*dict(zip(keys, packets, strict=True)).values()]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([*Generality]))
def test_any_record(seed: int, generality: Generality) -> None:
    random = Random(seed)
    names, packets = random_names(random), one_a_place(random_record(random))
    tuples = recorded(packets)
    made = suggest(tuples, names, generality)
    assert allowed(made.text, tuples, *names.host).all()
    policy = compiled(made.text, *names.host)
    assert not {warning.kind for warning in check(policy)} & {"shadowed", "never_matches", "unused", "not_checked"}
    assert sum(part.flows for part in made.parts) >= tuples.flows.sum()
    again = random.sample(range(len(packets)), len(packets))
    shuffled = Tuples(*(getattr(tuples, name)[again] for name in Tuples.__dataclass_fields__))
    assert suggest(shuffled, names, generality) == made
    if generality != Generality.EXACT:
        exact = suggest(tuples, names, Generality.EXACT)
        gained = {row.access for row in diff(compiled(exact.text, *names.host), policy).rows}
        assert gained <= {"gained"}
        assert bool(gained) == any(part.new_tuples for part in made.parts)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_exact_allows_nothing_else(seed: int) -> None:
    random = Random(seed)
    names, packets = random_names(random), one_a_place(random_record(random))
    tuples = recorded(packets)
    made = suggest(tuples, names, Generality.EXACT)
    assert {part.new_tuples for part in made.parts} == {0}
    ends = [address for packet in packets for address in (packet.src, packet.dst)]
    others = [random_address(random, family) for family in (4, 6) for _ in range(3)]
    sample = [
        Tuple(src, dst, *random.choice(PORTS))
        for src in (*ends, *others) for dst in random.choices([*ends, *others], k=4)
        if ipaddress.ip_address(src).version == ipaddress.ip_address(dst).version
    ]  # fmt: skip
    judged = recorded(sample)
    seen = places(tuples)
    keys = zip(judged.src.tolist(), judged.dst.tolist(), judged.family.tolist(), judged.places.tolist(), strict=True)
    assert allowed(made.text, judged, *names.host).tolist() == [key in seen for key in keys]
