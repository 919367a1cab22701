"""What policy.yaml means, a row a case: policy, tuple, judgement."""

import pytest

from policy.parse import parse
from tests.support.naive_policy import Judgement, NaivePolicy, Tuple
from tests.support.policies import compiled, judge, judge_all

IDENTITIES = """
version: 1
identities:
  web: {labels: {app: web, env: prod}, addresses: [10.0.1.10, 10.0.1.11, "fd00:1::10"]}
  db: {labels: {app: db, env: prod}, addresses: [10.0.2.0/24, "fd00:2::/64"]}
  db-one: {labels: {app: db, env: test}, addresses: 10.0.2.1}
  all: {addresses: [10.0.0.0/8]}
"""
WEB, DB, DB_ONE, OTHER, OUT = "10.0.1.10", "10.0.2.7", "10.0.2.1", "10.9.9.9", "192.0.2.1"

# One rule `a` that allows, written as below; tuples (src, dst, proto, port) it matches, and some it does not.
RULES: list[tuple[str, list[tuple[str, str, int, int]], list[tuple[str, str, int, int]]]] = [
    ("from: web, to: db", [(WEB, DB, 6, 1), (WEB, DB_ONE, 47, 0), ("fd00:1::10", "fd00:2::9", 6, 1)],
     [(DB, WEB, 6, 1), (OTHER, DB, 6, 1), ("fd00:1::11", "fd00:2::9", 6, 1)]),
    ("from: {app: db}", [(DB, OUT, 6, 1), (DB_ONE, OUT, 6, 1)], [(WEB, OUT, 6, 1)]),
    ("from: {app: db, env: prod}", [(DB, OUT, 6, 1), (DB_ONE, OUT, 6, 1)], [(WEB, OUT, 6, 1)]),
    ("from: {env: test}", [(DB_ONE, OUT, 6, 1)], [(DB, OUT, 6, 1)]),
    ("from: {env: prod}, from_except: db-one", [(DB, OUT, 6, 1), (WEB, OUT, 6, 1)], [(DB_ONE, OUT, 6, 1)]),
    ("from: all, from_except: [{app: web}, 10.0.2.0/25]", [(OTHER, OUT, 6, 1), ("10.0.2.200", OUT, 6, 1)],
     [(WEB, OUT, 6, 1), (DB, OUT, 6, 1)]),
    ("from_except: world", [(WEB, OUT, 6, 1)], [(OUT, WEB, 6, 1)]),
    ("from: [web, 192.0.2.0/24]", [(WEB, OUT, 6, 1), (OUT, OUT, 6, 1)], [(DB, OUT, 6, 1)]),
    ("from: world", [(OUT, WEB, 6, 1), ("::1", "::2", 6, 1)], [(WEB, OUT, 6, 1), ("192.0.2.53", WEB, 6, 1)]),
    ("to: host", [(WEB, "192.0.2.53", 6, 1), ("::1", "fe80::1", 6, 1)], [(WEB, OUT, 6, 1)]),
    ("from: 0.0.0.0/0", [(WEB, OUT, 6, 1)], [("::1", "::2", 6, 1)]),
    ('from: "::/0"', [("::1", "::2", 6, 1), ("::10.0.1.10", "::2", 6, 1)], [(WEB, OUT, 6, 1)]),
    ("ports: 80/tcp", [(OUT, OUT, 6, 80)], [(OUT, OUT, 17, 80), (OUT, OUT, 6, 81)]),
    ("ports: [80/tcp, 8000-8100/udp]", [(OUT, OUT, 6, 80), (OUT, OUT, 17, 8000), (OUT, OUT, 17, 8100)],
     [(OUT, OUT, 17, 7999), (OUT, OUT, 17, 8101), (OUT, OUT, 6, 8000)]),
    ("ports: 53/any", [(OUT, OUT, 6, 53), (OUT, OUT, 17, 53), (OUT, OUT, 132, 53)],
     [(OUT, OUT, 1, 53), (OUT, OUT, 47, 53), (OUT, OUT, 6, 0)]),
    ("ports: any", [(OUT, OUT, p, q) for p in (0, 1, 6, 17, 47, 58, 132, 255) for q in (0, 255)], []),
    ("ports: tcp", [(OUT, OUT, 6, 0), (OUT, OUT, 6, 65535)], [(OUT, OUT, 17, 0)]),
    ("ports: 0-65535/tcp", [(OUT, OUT, 6, 0), (OUT, OUT, 6, 65535)], [(OUT, OUT, 17, 0)]),
    ("ports: icmp:8", [(OUT, OUT, 1, 8)], [(OUT, OUT, 1, 0), (OUT, OUT, 58, 8), (OUT, OUT, 6, 8)]),
    ("ports: icmpv6:128-129", [("::1", "::2", 58, 128), ("::1", "::2", 58, 129)], [("::1", "::2", 58, 130)]),
    ("ports: icmp", [(OUT, OUT, 1, 0), (OUT, OUT, 1, 255)], [("::1", "::2", 58, 0)]),
    # Over the other family ICMP has no types: it is a protocol like others, to the kernel too.
    ("ports: icmp", [("::1", "::2", 1, 0), ("::1", "::2", 1, 8)], [(OUT, OUT, 58, 0)]),
    ("ports: proto:58", [(OUT, OUT, 58, 0), ("::1", "::2", 58, 7)], [(OUT, OUT, 1, 58)]),
    ("ports: 'icmp:0-255'", [(OUT, OUT, 1, 8)], [("::1", "::2", 1, 8), ("::1", "::2", 58, 8)]),
    ("ports: icmpv6:128", [("::1", "::2", 58, 128)], [(OUT, OUT, 58, 128)]),
    ("dst_port: 128, proto: icmpv6", [("::1", "::2", 58, 128)], [(OUT, OUT, 58, 128)]),
    ("ports: proto:47", [(OUT, OUT, 47, 0)], [(OUT, OUT, 6, 47), (OUT, OUT, 46, 0)]),
    ("ports: proto:6", [(OUT, OUT, 6, 1234)], [(OUT, OUT, 17, 6)]),
    ("src_ip: 10.0.1.10, dst_ip: 192.0.2.1, dst_port: 80, proto: tcp", [(WEB, OUT, 6, 80)],
     [(WEB, OUT, 6, 81), (WEB, OUT, 17, 80), ("10.0.1.11", OUT, 6, 80), (OUT, WEB, 6, 80)]),
    ("src_ip: web, dst_ip: any", [(WEB, OUT, 6, 80), (WEB, OUT, 50, 0)], [(DB, OUT, 6, 80)]),
    ("dst_ip: 192.0.2.0/24, dst_port: 0, proto: udp", [(WEB, OUT, 17, 0), (WEB, OUT, 17, 65535)], [(WEB, OUT, 6, 1)]),
    ("dst_port: 53", [(OUT, OUT, 6, 53), (OUT, OUT, 17, 53), (OUT, OUT, 132, 53)], [(OUT, OUT, 1, 53)]),
    ("dst_port: 8000-8100, proto: 17", [(OUT, OUT, 17, 8050)], [(OUT, OUT, 17, 80), (OUT, OUT, 6, 8050)]),
    ("dst_port: 8, proto: icmp", [(OUT, OUT, 1, 8)], [(OUT, OUT, 1, 0)]),
    ("proto: 47", [(OUT, OUT, 47, 0)], [(OUT, OUT, 6, 0)]),
    ("proto: any", [(OUT, OUT, 47, 0), (OUT, OUT, 6, 9)], []),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "matches", "misses"), RULES, ids=[row[0] for row in RULES])
def test_rule_matches_exactly(
    rule: str, matches: list[tuple[str, str, int, int]], misses: list[tuple[str, str, int, int]]
) -> None:
    text = f"{IDENTITIES}rules:\n  - {{name: a, action: allow, {rule}}}\n"
    host = ("192.0.2.53", "fe80::1")
    policy, naive = compiled(text, *host), NaivePolicy(text, host)
    packets = [Tuple(*row) for row in matches + misses]
    found = judge_all(policy, packets)
    assert [(j.decision, j.reason, j.rule) for j in found] == [("allow", "rule", "a")] * len(matches) + [
        ("deny", "default", "default")
    ] * len(misses)
    assert found == [naive.judge(packet) for packet in packets]


@pytest.mark.parametrize(
    ("address", "identity"),
    [(WEB, "web"), (DB, "db"), (DB_ONE, "db-one"), (OTHER, "all"), (OUT, "world"), ("fd00:2::1", "db"),
     ("::1", "world"), ("10.0.5.5", "host"), ("10.0.2.9", "db")],
)  # fmt: skip
def test_shown_identity_is_of_the_longest_prefix(address: str, identity: str) -> None:
    policy = compiled(IDENTITIES, "10.0.5.5")
    found = judge(policy, address, address)
    assert (found.src_identity, found.dst_identity) == (identity, identity)


def test_shown_identity_of_equal_prefixes_is_the_first_in_the_file_then_the_host() -> None:
    text = "version: 1\nidentities: {b: {addresses: 10.0.0.1}, a: {addresses: [10.0.0.1, 10.0.0.2]}}"
    policy = compiled(text, "10.0.0.1", "10.0.0.3")
    shown = [judge(policy, f"10.0.0.{n}", OUT).src_identity for n in (1, 2, 3, 4)]
    assert shown == ["b", "a", "host", "world"]


def test_an_address_matches_by_every_identity_it_is_in() -> None:
    text = IDENTITIES + "rules: [{name: a, from: all, action: allow}, {name: d, from: db, action: deny}]"
    assert judge(compiled(text), DB_ONE, OUT) == Judgement("deny", "rule", "d", "db-one", "world")
    assert judge(compiled(text), OTHER, OUT) == Judgement("allow", "rule", "a", "all", "world")


@pytest.mark.parametrize("inner", ["10.0.2.0", "10.0.2.255", "10.0.2.0/25", "10.0.2.128/25", "10.0.2.0/24"])
def test_a_prefix_at_either_end_of_an_identity_is_still_in_it(inner: str) -> None:
    address = inner.partition("/")[0]
    rules = f"[{{name: a, from: db, action: allow}}, {{name: d, from: {inner}, ports: tcp, action: deny}}]"
    text = f"{IDENTITIES}rules: {rules}"
    assert judge(compiled(text), address, OUT, 17) == Judgement("allow", "rule", "a", "db", "world")
    assert judge(compiled(text), address, OUT, 6) == Judgement("deny", "rule", "d", "db", "world")


CREDIT = [
    (["allow z", "allow a"], ("allow", "a", False)),
    (["allow a", "deny z"], ("deny", "z", False)),
    (["allow a", "deny y", "deny x"], ("deny", "x", False)),
    (["report a", "deny z", "allow b"], ("deny", "z", False)),
    (["report z", "allow a"], ("deny", "z", True)),
    (["report b", "report a"], ("deny", "a", True)),
    (["allow B", "allow a"], ("allow", "B", False)),
    ([], ("deny", "default", False)),
]


@pytest.mark.parametrize(("rules", "expected"), CREDIT)
def test_credit(rules: list[str], expected: tuple[str, str, bool]) -> None:
    for order in (rules, rules[::-1]):
        lines = []
        for rule in order:
            action, name = rule.split()
            word = "deny, report_only: true" if action == "report" else action
            lines.append(f"{{name: {name}, action: {word}}}")
        found = judge(compiled(f"version: 1\nrules: [{', '.join(lines)}]"), OUT, WEB)
        assert (found.decision, found.rule, found.report_only) == expected


@pytest.mark.parametrize(("line", "decision"), [("", "deny"), ("default: deny", "deny"), ("default: allow", "allow")])
def test_no_match_is_the_default(line: str, decision: str) -> None:
    policy = compiled(f"version: 1\n{line}\nrules: [{{from: 10.0.0.1, action: deny}}]")
    assert judge(policy, OUT, WEB) == Judgement(decision, "default", "default", "world", "world")


NAMES = [
    ("{src_ip: 192.168.86.250, dst_ip: 1.1.1.1, dst_port: 80, proto: tcp, action: allow}",
     "allow 192.168.86.250 to 1.1.1.1 80/tcp"),
    ("{action: deny}", "deny any to any any"),
    ("{from: web, to: [{env: prod, app: db}, world], to_except: '::/0', ports: [53/any, tcp], action: deny}",
     "deny web to [world, {app: db, env: prod}] except ::/0 [tcp, 53/udp, 53/sctp]"),
    ("{ports: [icmp:8, proto:47, 1-2/any, icmpv6:1-3], report_only: true, action: deny}",
     "deny report-only any to any [1-2/any, icmp:8, icmpv6:1-3, proto:47]"),
    ("{ports: [icmp, 'proto:58', 'proto:2'], action: allow}", "allow any to any [icmp, icmpv6, proto:2]"),
    ("{ports: ['icmp:0-255'], action: allow}", "allow any to any icmp:0-255"),
]  # fmt: skip


def test_unnamed_rules_are_named_by_what_they_say() -> None:
    text = "\n  - ".join([f"{IDENTITIES}rules:", *(rule for rule, _ in NAMES)])
    assert [rule.name for rule in parse(text).rules] == [name for _, name in NAMES]


def test_the_same_rule_has_the_same_name_in_either_form_and_any_order() -> None:
    pairs = [
        ("{src_ip: web, dst_port: 53, action: allow}", "{from: web, ports: [53/udp, 53/sctp, 53/tcp], action: allow}"),
        ("{from: [db, web], ports: [tcp, 1/tcp], action: deny}", "{from: [web, db, web], ports: tcp, action: deny}"),
        ("{to: {app: db, env: prod}, action: allow}", "{to: [{env: prod, app: db}], action: allow, sample: 3}"),
    ]
    for one, other in pairs:
        names = [parse(f"{IDENTITIES}rules: [{rule}]").rules[0].name for rule in (one, other)]
        assert names[0] == names[1]


def test_long_content_makes_a_short_name_that_still_tells_rules_apart() -> None:
    many = ", ".join(f"10.0.0.{i}" for i in range(30))
    texts = [f"{{from: [{many}], to: 10.9.9.{n}, action: allow}}" for n in (1, 2)]
    names = [rule.name for rule in parse(f"version: 1\nrules: [{', '.join(texts)}]").rules]
    assert [len(name) for name in names] == [80, 80]
    assert names[0] != names[1]
    assert names[0].startswith("allow [10.0.0.0, 10.0.0.1, ")


def test_words_are_taken_as_written() -> None:
    """YAML would read these as a boolean, a number, an octal, a sexagesimal and a date."""
    text = """
version: 1
identities:
  on: {labels: {v: 010, w: yes, x: 1.0, d: 2001-01-01}, addresses: 10.0.0.1}
  1e3: {addresses: [1:2:3:4:5:6:7:8]}
rules:
  - {name: 7, from: {v: "010", w: 'yes', x: 1.0, d: 2001-01-01}, to: 1e3, action: allow}
  - {from: on, to: 1:2:3:4:5:6:7:8, action: deny}
"""
    policy = parse(text)
    assert [identity.name for identity in policy.identities] == ["on", "1e3"]
    assert policy.identities[0].labels == {"v": "010", "w": "yes", "x": "1.0", "d": "2001-01-01"}
    assert str(policy.identities[1].addresses[0]) == "1:2:3:4:5:6:7:8"
    assert [rule.name for rule in policy.rules] == ["7", "deny on to 1:2:3:4:5:6:7:8 any"]


def test_rule_text_is_what_the_author_wrote() -> None:
    text = """version: 1
rules:
  - name: one   # why
    from:
      - 10.0.0.1
    action: allow   # trailing

  # about the next
  - {name: two, action: deny}
  -
      name: three
      action: deny
"""
    assert [(rule.line, rule.text) for rule in parse("\ufeff" + text).rules] == [
        (3, "name: one   # why\nfrom:\n  - 10.0.0.1\naction: allow"),
        (9, "{name: two, action: deny}"),
        (11, "name: three\naction: deny"),
    ]


def test_builtins_can_be_turned_off_one_by_one() -> None:
    masks = {"": 15, "ndp: false": 14, "mld: false": 13, "dhcp: false": 11, "dhcpv6: false": 7, "ndp: true": 15}
    for line, mask in masks.items():
        assert compiled(f"version: 1\nbuiltins: {{{line}}}").slot["builtins"] == mask
