"""Why a tuple is decided as it is: the rules that match, and what names stand for."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy import explain as explaining
from policy.compile import compile_policy
from policy.errors import PolicyError
from policy.explain import Explanation, explain, explain_all
from tests.support.naive_policy import NaivePolicy
from tests.support.policies import as_yaml, compiled, hosts, judge_all, packets, policies

POLICY = """version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10, 10.0.1.11, "fd00:1::/64"]}
  db: {addresses: [10.0.2.0/24]}
  db-one: {addresses: [10.0.2.9]}
  none: {addresses: []}
rules:
  - {name: all, from: 10.0.0.0/8, action: allow}
  - {name: web-db, from: web, to: db, ports: 5432/tcp, action: allow}
  - name: try
    to: db
    ports: [1-9999/tcp]
    action: deny
    report_only: true
  - {name: no-b, to: db-one, action: deny}
  - {name: no-a, to: 10.0.2.9, ports: tcp, action: deny}
"""
WEB, DB, ONE = "10.0.1.10", "10.0.2.1", "10.0.2.9"


def reasons(found: Explanation) -> list[tuple[str, bool, str]]:
    return [(match.rule, match.decides, match.why) for match in found.matched]


def test_every_rule_that_matches_has_its_reason() -> None:
    found = explain(compiled(POLICY), WEB, ONE, 6, 5432)
    assert (found.decision, found.reason, found.rule, found.report_only) == ("deny", "rule", "no-a", False)
    assert (found.src_identity, found.dst_identity) == ("web", "db-one")
    assert reasons(found) == [
        ("no-a", True, "is the first by name of its kind, denies, and deny beats allow"),
        ("no-b", False, "is later by name than 'no-a'"),
        ("try", False, "a denial that drops beats one that reports"),
        ("all", False, "deny beats allow"),
        ("web-db", False, "deny beats allow"),
    ]
    assert found.why == "'no-a' is the first by name of its kind, denies, and deny beats allow"
    assert [(m.action, m.report_only, m.line) for m in found.matched] == [
        ("deny", False, 16), ("deny", False, 15), ("deny", True, 10), ("allow", False, 8), ("allow", False, 9),
    ]  # fmt: skip
    assert found.matched[2].text.startswith("name: try\nto: db\n")


def test_reasons_of_lesser_wins() -> None:
    policy = compiled(POLICY)
    assert reasons(explain(policy, WEB, DB, 17, 5432)) == [("all", True, "is the only rule that matches")]
    assert reasons(explain(policy, "fd00:1::1", "::1", 6, 1)) == []
    assert explain(policy, "fd00:1::1", "::1", 6, 1).why == "no rule matches: the default is deny"
    found = explain(policy, WEB, DB, 6, 1)
    assert (found.rule, found.report_only, reasons(found)[0][2]) == ("try", True, "denies, and deny beats allow")
    drops = compiled("version: 1\nrules:\n  - {name: a, action: deny, report_only: true}\n  - {name: b, action: deny}")
    assert reasons(explain(drops, WEB, DB, 6, 1))[0] == ("b", True, "drops, and that beats reporting")
    none = explain(compile_policy(None), WEB, DB, 6, 1)
    assert (none.decision, none.reason, none.why) == (
        "allow", "no_policy", "there is no policy: everything is allowed",
    )  # fmt: skip


def test_what_the_datapath_decides_before_policy() -> None:
    policy = compiled(POLICY)
    found = explain(policy, WEB, DB, 1, 3)
    assert (found.decision, found.reason, found.rule) == ("deny", "icmp_unrelated", "icmp_unrelated")
    assert reasons(found) == [("all", False, "is not asked")]
    assert explain(policy, "fd00:1::1", "::1", 1, 3).reason == "default"  # ICMP over IPv6 is no ICMP
    notes = explain(policy, "fe80::1", "ff02::1", 58, 135).notes
    assert notes == ("with hop limit 255 the built-in rule builtin:ndp allows it before any rule is asked",)
    off = compiled(POLICY + "builtins: {ndp: false}\n")
    assert explain(off, "fe80::1", "ff02::1", 58, 135).notes == ()
    assert explain(policy, WEB, DB, 17, 67).notes != () == explain(policy, "::1", "::2", 17, 67).notes


PLACES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (WEB, DB, "1/tcp", [(WEB, DB)]),
    ("web", DB, "1/tcp", [("10.0.1.10", DB)]),  # both addresses of IPv4 are one case
    ("web", "any", "icmpv6:128", [("fd00:1::1", "2001:db8::1"), ("fd00:1::1", "fd00:1::1")]),
    (WEB, "db", "1/tcp", [(WEB, DB), (WEB, ONE)]),
    ("world", DB, "1/tcp", [("198.51.100.1", DB), ("10.0.0.1", DB)]),
    ("192.0.2.0/24", DB, "proto:47", [("192.0.2.1", DB), ("192.0.2.77", DB)]),
    ("host", DB, "1/tcp", [("192.0.2.77", DB)]),
]


@pytest.mark.parametrize(("source", "destination", "port", "pairs"), PLACES)
def test_names_stand_for_an_address_of_each_kind(
    source: str, destination: str, port: str, pairs: list[tuple[str, str]]
) -> None:
    found = explain_all(compiled(POLICY, "192.0.2.77"), source, destination, port)
    assert sorted((one.src, one.dst) for one in found) == sorted(pairs)


REFUSED = [
    ("webb", DB, "1/tcp", "no identity is called 'webb'", "did you mean 'web'?"),
    ("none", DB, "1/tcp", "'none' has no addresses", "name an address"),
    ("host", DB, "1/tcp", "'host' has no addresses", "name an address"),
    (WEB, "::1", "1/tcp", "no packet goes from 10.0.1.10 to ::1 on 1/tcp",
     "both need an address of one family; icmp is for IPv4, icmpv6 for IPv6"),
    (WEB, DB, "icmpv6:1", "no packet goes from 10.0.1.10 to 10.0.2.1 on icmpv6:1",
     "both need an address of one family; icmp is for IPv4, icmpv6 for IPv6"),
    (WEB, DB, "tcp", "'tcp' is more than one port", "as in 443/tcp, 53/udp, icmp:8 or proto:47"),
    (WEB, DB, "53/any", "'53/any' is more than one port", "as in 443/tcp, 53/udp, icmp:8 or proto:47"),
    (WEB, DB, "443", "'443' names no protocol", "say which protocol: 443/tcp, 443/udp or 443/any"),
    ("::1", "::2", "proto:44", "protocol 44 is an IPv6 extension header", "name the protocol that it carries"),
    ("::ffff:1.2.3.4", "::2", "1/tcp", "'::ffff:1.2.3.4' is an IPv4-mapped IPv6 address",
     "write 1.2.3.4: such packets are malformed on the wire"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "destination", "port", "message", "hint"), REFUSED)
def test_questions_without_an_answer(source: str, destination: str, port: str, message: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        explain_all(compiled(POLICY), source, destination, port)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_too_many_cases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "MAX_TUPLES", 1)
    with pytest.raises(PolicyError) as caught:
        explain_all(compiled(POLICY), WEB, "db", "1/tcp")
    assert caught.value.message == "10.0.1.10 to db are 2 different cases"


@settings(
    max_examples=60, deadline=None, print_blob=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip
@given(policy=policies(), host=hosts(), data=st.data())
def test_explanations_are_what_evaluate_and_the_naive_reader_say(
    policy: dict[str, Any], host: tuple[str, ...], data: st.DataObject
) -> None:
    text = as_yaml(policy)
    engine, naive = compiled(text, *host), NaivePolicy(text, host)
    tuples = data.draw(packets(policy, host))
    for packet, said in zip(tuples, judge_all(engine, tuples), strict=True):
        try:
            found = explain(engine, packet.src, packet.dst, packet.proto, packet.port)
        except PolicyError:
            assert packet.proto == 0 and ":" in packet.src
            continue
        rules = policy["rules"]
        assert {match.rule for match in found.matched} == {r["name"] for r in rules if naive.matches(r, packet)}
        if found.reason == "icmp_unrelated":
            assert not any(match.decides for match in found.matched)
            continue
        assert (found.decision, found.reason, found.rule) == (said.decision, said.reason, said.rule)
        assert (found.src_identity, found.dst_identity, found.report_only) == (
            said.src_identity, said.dst_identity, said.report_only,
        )  # fmt: skip
        assert [match.rule for match in found.matched if match.decides] == [found.rule] * (found.reason == "rule")
