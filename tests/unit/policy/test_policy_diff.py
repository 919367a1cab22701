"""Differences by meaning: rows of examples, and the property that a tuple is in a row just when it changes."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from policy import boxes
from policy.compile import compile_policy
from policy.diff import ALLOW, DENY, REPORT, Row, diff, with_a_host
from policy.errors import PolicyError
from policy.space import unnamed
from policy.words import prefix
from tests.support.naive_policy import Judgement, NaivePolicy, Tuple
from tests.support.naive_rows import NaiveRows
from tests.support.policies import address_pools, as_yaml, compiled, hosts, policies, random_packets

PROPERTY = settings(
    max_examples=80, deadline=None, print_blob=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip

HEAD = """version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10, "fd00:1::/64"]}
  api: {labels: {app: api}, addresses: [10.0.2.10, "fd00:2::/64"]}
  db: {labels: {app: db}, addresses: [10.0.3.0/24]}
  db-one: {labels: {app: db}, addresses: [10.0.4.9]}
"""


def policy(*rules: str, head: str = HEAD) -> Any:
    return compiled(head + "rules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules))


def told(rows: list[Row]) -> list[tuple[str, ...]]:
    return [(row.access, row.before, row.after, *map(str, (row.source, row.destination, row.ports))) for row in rows]


WEB_DB = "name: a, from: web, to: db, ports: 5432/tcp, action: allow"
CASES = [
    ([], [WEB_DB], [("gained", DENY, ALLOW, "web", "db", "5432/tcp")]),
    ([WEB_DB], [], [("lost", ALLOW, DENY, "web", "db", "5432/tcp")]),
    ([WEB_DB], [WEB_DB.replace("name: a", "name: b, sample: 7")], []),
    ([WEB_DB], ["from: 10.0.1.10, to: 10.0.3.0/24, ports: [5432/tcp, 5432-5432/tcp], action: allow"], []),
    ([WEB_DB], [WEB_DB, "name: n, from: any, to: any, action: deny"], [("lost", ALLOW, DENY, "web", "db", "5432/tcp")]),
    ([WEB_DB], [WEB_DB.replace("5432/tcp", "[5431-5433/tcp, icmp]")],
     [("gained", DENY, ALLOW, "web", "db", "5431/tcp, 5433/tcp, icmp")]),
    ([], ["from: {app: db}, to: [web, api], action: allow"], [("gained", DENY, ALLOW, "{app: db}", "api, web", "any")]),
    ([], ["from: any, from_except: web, to: api, ports: [80/tcp, 'icmpv6:128', 'icmp:8'], action: allow"],
     [("gained", DENY, ALLOW, "any except web", "api", "80/tcp, icmp:8, icmpv6:128")]),
    ([], ["from: world, to: db, ports: udp, action: allow"], [("gained", DENY, ALLOW, "world", "db", "udp")]),
    ([], ["from: 10.0.0.0/8, from_except: [web, api], to: db, action: allow"],
     [("gained", DENY, ALLOW, "10.0.0.0/8 except api, web", "db", "any")]),
    (["action: allow"], ["action: allow", "from: web, ports: 22/tcp, action: deny, report_only: true"],
     [("kept", ALLOW, REPORT, "web", "any", "22/tcp")]),
    (["from: web, action: deny"], ["from: web, action: deny, report_only: true"],
     [("gained", DENY, REPORT, "web", "any", "any")]),
    # One family alone: names that mean both are not enough.
    (["action: allow"], ["action: allow", "from: 0.0.0.0/0, to: 0.0.0.0/0, action: deny"],
     [("lost", ALLOW, DENY, "any", "0.0.0.0/0", "any")]),
    ([], ["from: web, to: 'fd00:2::/64', action: allow"], [("gained", DENY, ALLOW, "web", "fd00:2::/64", "any")]),
    ([], ["ports: 'icmp:0-255', action: allow"], [("gained", DENY, ALLOW, "any", "0.0.0.0/0", "icmp")]),
    ([], ["ports: icmp, action: allow"], [("gained", DENY, ALLOW, "any", "any", "icmp")]),
    ([], ["ports: ['proto:1', tcp, udp, sctp, icmpv6], action: allow"],
     [("gained", DENY, ALLOW, "any", "any", "tcp, udp, sctp, icmp, icmpv6")]),
    ([], ["action: allow", "ports: tcp, action: deny"], [("gained", DENY, ALLOW, "any", "any", "any except tcp")]),
    ([], ["from: web, to: api, action: allow", "from: web, to: db, action: allow", "from: api, to: db, action: allow"],
     [("gained", DENY, ALLOW, "api", "db", "any"), ("gained", DENY, ALLOW, "web", "api, db", "any")]),
    ([], ["from: web, to: [api, 192.0.2.0/24, '2001:db8::/32'], action: allow"],
     [("gained", DENY, ALLOW, "web", "api, 192.0.2.0/24, 2001:db8::/32", "any")]),
    ([], ["from: web, to: [192.0.2.1], ports: [tcp], action: allow", "from: web, to: ['2001:db8::1'], action: allow"],
     [("gained", DENY, ALLOW, "web", "192.0.2.1", "tcp"), ("gained", DENY, ALLOW, "web", "2001:db8::1", "any")]),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "rows"), CASES, ids=range(len(CASES)))
def test_rows(before: list[str], after: list[str], rows: list[tuple[str, ...]]) -> None:
    found = diff(policy(*before), policy(*after))
    assert told(found.rows) == rows
    assert found.same == (not rows)


def test_an_identity_with_other_addresses_has_no_name_in_rows() -> None:
    other = HEAD.replace("10.0.3.0/24", "10.0.3.0/24, 10.0.4.4")
    found = diff(policy(WEB_DB), policy(WEB_DB, head=other))
    assert told(found.rows) == [("gained", DENY, ALLOW, "web", "10.0.4.4", "5432/tcp")]


def test_no_policy_allows_everything() -> None:
    closed = compiled("version: 1")
    assert told(diff(compile_policy(None), closed).rows) == [("lost", ALLOW, DENY, "any", "any", "any")]
    assert told(diff(closed, compile_policy(None)).rows) == [("gained", DENY, ALLOW, "any", "any", "any")]
    assert diff(compile_policy(None), compiled("version: 1\ndefault: allow")).same


def test_built_in_rules_are_compared() -> None:
    found = diff(compiled("version: 1\nbuiltins: {ndp: false}"), compiled("version: 1\nbuiltins: {dhcp: false}"))
    assert (found.rows, found.builtins_on, found.builtins_off, found.same) == ([], ["ndp"], ["dhcp"], False)


def test_examples_name_the_rules_that_decide() -> None:
    (row,) = diff(policy("name: n, action: deny", WEB_DB), policy(WEB_DB)).rows
    assert row.example == ("10.0.1.10", "10.0.3.1", 6, 5432, "n", "a")


def test_other_rules_with_the_same_decision_are_rows_on_demand() -> None:
    before, after = policy(WEB_DB), policy(WEB_DB.replace("name: a", "name: b").replace("to: db", "to: [db, api]"))
    assert told(diff(before, after).rows) == [("gained", DENY, ALLOW, "web", "api", "5432/tcp")]
    found = diff(before, after, rules=True).rows
    assert told(found) == [
        ("gained", DENY, ALLOW, "web", "api", "5432/tcp"),
        ("kept", ALLOW, ALLOW, "web", "db", "5432/tcp"),
    ]
    assert (found[1].example.rule_before, found[1].example.rule_after) == ("a", "b")


def test_what_is_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "MAX_BOXES", 3)
    with pytest.raises(PolicyError) as caught:
        diff(policy(*(f"from: 10.9.0.{i}, to: 10.8.0.{i}, action: allow" for i in range(9))), policy())
    assert caught.value.hint


# ---- properties


@st.composite
def changed(draw: st.DrawFn, policy: dict[str, Any]) -> dict[str, Any]:
    """Another policy: `policy` with a few changes, or one that has nothing to do with it."""
    if draw(st.integers(0, 3)) == 0:
        return draw(policies())
    out = copy.deepcopy(policy)
    random = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(0, 3))):
        rule = random.choice(out["rules"]) if out["rules"] else None
        what = random.randrange(6)
        if what == 0:
            out["default"] = random.choice(["allow", "deny"])
        elif what == 1 and out["identities"]:
            identity = random.choice(sorted(out["identities"]))
            out["identities"][identity]["addresses"] = random.choice([[], ["10.0.0.0/8"], ["fd00::/16", "10.0.0.1"]])
        elif rule is None:
            continue
        elif what == 2:
            out["rules"].remove(rule)
        elif what == 3:
            rule["action"] = "deny"
            rule["report_only"] = random.choice([True, False])
        elif what == 4:
            rule["name"] += "x"
        else:
            for key in ("src_ip", "dst_ip", "dst_port", "proto"):
                rule.pop(key, None)
            rule["ports"] = random.choice(["any", "tcp", "1-79/any", "icmp", "proto:1"])
    return out


def verdict(judgement: Judgement) -> str:
    return REPORT if judgement.report_only else judgement.decision


@PROPERTY
@given(policy=policies(), host=hosts(), data=st.data())
def test_a_tuple_is_in_one_row_just_when_it_changes(
    policy: dict[str, Any], host: tuple[str, ...], data: st.DataObject
) -> None:
    other = data.draw(changed(policy))
    other_host = data.draw(st.sampled_from([host, ()]))
    texts = (as_yaml(policy), as_yaml(other))
    note("\n".join(texts))
    naive = (NaivePolicy(texts[0], host), NaivePolicy(texts[1], other_host))
    engines = (compiled(texts[0], *host), compiled(texts[1], *other_host))
    by_rules = data.draw(st.booleans())
    found = diff(*engines, rules=by_rules)
    for row in found.rows:
        note(str(row))
    reader = NaiveRows(*naive)
    pools = address_pools(policy, other, host=host)
    tuples = random_packets(data.draw(st.randoms(use_true_random=False)), pools, 60)
    tuples += [Tuple(*row.example[:4]) for row in found.rows]
    for packet in tuples:
        was, now = (reading.judge(packet) for reading in naive)
        said = (verdict(was), verdict(now))
        expected = [said] if said[0] != said[1] or (by_rules and was.rule != now.rule) else []
        rows = [row for row in found.rows if reader.holds(row, packet)]
        assert [(row.before, row.after) for row in rows] == expected, packet
    for row in found.rows:
        packet = Tuple(*row.example[:4])
        assert reader.holds(row, packet)
        assert [reading.judge(packet).rule for reading in naive] == [row.example.rule_before, row.example.rule_after]
    assert found == diff(*engines, rules=by_rules)


@settings(PROPERTY, max_examples=20)
@given(policy=policies(), host=hosts(), data=st.data())
def test_the_way_back_is_the_same_rows(policy: dict[str, Any], host: tuple[str, ...], data: st.DataObject) -> None:
    other = data.draw(changed(policy))
    one, two = (compiled(as_yaml(p), *host) for p in (policy, other))
    assert diff(one, one, rules=True).same
    assert sorted(map(turned, diff(one, two).rows)) == sorted(told(diff(two, one).rows))


def turned(row: Row) -> tuple[str, ...]:
    """The row of the way back."""
    access = {"gained": "lost", "lost": "gained"}.get(row.access, row.access)
    return access, row.after, row.before, str(row.source), str(row.destination), str(row.ports)


@pytest.mark.parametrize(
    ("named", "four", "six"),
    [
        ([], "198.51.100.2", "2001:db8::2"),
        (["0.0.0.0/0", "10.0.0.0/8", "::/0"], "198.51.100.2", "2001:db8::2"),
        (["198.51.100.0/24", "2001:db8::2"], "0.0.0.1", "2001:db8::1"),
        (["0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/2", "64.0.0.0/3", "192.0.0.0/2"], "96.0.0.1", "2001:db8::2"),
    ],
)
def test_an_address_that_no_policy_names(named: list[str], four: str, six: str) -> None:
    prefixes = [prefix(word) for word in named]
    assert [str(unnamed(family, prefixes)) for family in (4, 6)] == [four, six]


def test_files_are_compared_for_a_node_somewhere_else() -> None:
    """What leaves the host out of `world` differs for the host alone."""
    closed = "version: 1\nrules:\n  - {name: n, from: world, to: 10.0.0.0/8, action: deny}\n"
    opened = closed + "  - {name: a, from: any, to: 10.0.0.0/8, action: allow}\n"
    assert diff(compiled(closed), compiled(opened)).same, "a node without addresses"
    rows = diff(*with_a_host(compiled(closed), compiled(opened))).rows
    assert told(rows) == [("gained", DENY, ALLOW, "host", "10.0.0.0/8", "any")]
    plain = policy(WEB_DB), policy()
    assert with_a_host(*plain) == plain, "nothing to compile anew"
