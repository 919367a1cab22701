"""Warnings: examples, and the properties that what is said of rules is so: looked up tuple by tuple."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings

from policy import check as checking
from policy.check import KINDS, check
from policy.compile import Compiled, compile_policy
from policy.evaluate import evaluate
from tests.support.naive_policy import NaivePolicy, Tuple
from tests.support.policies import address_pools, as_yaml, columns, compiled, every_port, hosts, policies

HEAD = """version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10, "fd00:1::10"]}
  db: {labels: {app: db}, addresses: [10.0.2.0/24]}
  none: {labels: {app: none}, addresses: []}
rules:
  - {name: 0-used, from: [web, none], to: db, ports: 1/sctp, action: deny}
"""


def warned(*rules: str, head: str = HEAD, host: tuple[str, ...] = ()) -> list[tuple[str, str, int, int]]:
    text = head + "".join(f"  - {{name: {rule}}}\n" for rule in rules)
    return [(w.kind, w.subject, w.line, w.column) for w in check(compiled(text, *host))]


RULES: list[tuple[list[str], list[tuple[str, str]]]] = [
    (["a, from: web, to: db, action: allow"], []),
    # Shadowed: by one, by several together, by the same said twice; not by what comes behind or leaves a port.
    (["a, from: web, to: db, action: allow", "n, to: 10.0.0.0/8, action: deny"], [("shadowed", "a")]),
    (["a, from: web, to: db, action: allow", "b, from: 10.0.1.10, to: db, action: allow"], [("shadowed", "b")]),
    (["b, from: [web, 10.0.9.9], to: db, action: allow", "a, from: 10.0.1.10, to: db, action: allow"], []),
    (["a, from: web, to: db, action: allow", "m, to: 10.0.2.0/25, action: deny", "n, to: 10.0.2.128/25, action: deny"],
     [("shadowed", "a")]),
    (["a, from: web, to: db, action: allow", "m, to: 10.0.2.0/25, action: deny", "n, to: 10.0.2.129, action: deny"],
     []),
    (["a, from: web, to: db, ports: 1-9/tcp, action: allow", "m, to: db, ports: 1-5/tcp, action: deny",
      "n, from: web, ports: 6-9/tcp, action: deny"], [("shadowed", "a")]),
    (["a, from: web, to: db, ports: 1-9/tcp, action: allow", "m, to: db, ports: 1-5/tcp, action: deny",
      "n, from: web, ports: 7-9/tcp, action: deny"], []),
    (["d, from: web, action: deny, report_only: true", "n, from: web, action: deny"], [("shadowed", "d")]),
    (["d, from: web, action: deny, report_only: true", "a, from: web, action: allow"], [("shadowed", "a")]),
    # Never matches.
    (["a, from: none, action: deny"], [("never_matches", "a")]),
    (["a, from: web, from_except: {app: web}, action: allow"], [("never_matches", "a")]),
    (["a, from: 10.0.0.1, to: '::1', action: allow"], [("never_matches", "a")]),
    (["a, from: web, to: db, ports: 'icmpv6:1-255', action: deny"], [("never_matches", "a")]),
    (["a, from: web, to: db, ports: icmpv6, action: deny"], []),  # protocol 58 over IPv4, whatever it is
    (["a, from: 10.0.0.1, to: [db, '::1'], action: allow"], []),
    # The world.
    (["a, to: db, action: allow"], [("world_open", "a")]),
    (["a, from: world, to: web, ports: 80/tcp, action: allow"], [("world_open", "a")]),
    (["a, from: 0.0.0.0/0, action: allow"], [("world_open", "a")]),
    (["a, from: '::/0', to: web, action: allow"], [("world_open", "a")]),
    (["a, from: '::/0', to: db, action: allow"], [("never_matches", "a")]),
    (["a, from: [0.0.0.0/1, 128.0.0.0/1], from_except: web, action: allow"], [("world_open", "a")]),
    (["a, from: [0.0.0.0/1, 128.0.0.0/2], action: allow"], []),
    (["a, from: any, action: deny"], []),
    # What depends on the node's addresses is left alone.
    (["a, from: host, action: allow", "b, from: any, to_except: host, action: allow", "c, to: host, action: deny"], []),
    (["a, from: any, from_except: [world, web, db], action: allow"], []),
    (["a, from: 192.0.2.1, to: db, action: allow", "n, from: world, action: deny"], []),
    (["a, from: world, to: db, action: allow", "n, from: world, action: deny"], [("shadowed", "a")]),
    (["a, from: 192.0.2.1, to: db, action: allow", "n, from_except: host, to: db, action: deny"], []),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "expected"), RULES, ids=[" · ".join(rules) for rules, _ in RULES])
def test_rules(rules: list[str], expected: list[tuple[str, str]]) -> None:
    assert [(kind, subject) for kind, subject, _, _ in warned(*rules)] == expected


def test_with_the_nodes_addresses_rules_of_the_host_are_judged() -> None:
    rules = ["a, from: host, action: allow", "n, from: 192.0.2.1, action: deny"]
    assert warned(*rules, host=("192.0.2.1",)) == [("shadowed", "a", 8, 5)]
    assert warned(*rules, host=("192.0.2.1", "192.0.2.2")) == []


def test_places() -> None:
    text = 'version: 1\ndefault:   allow\nidentities:\n  b: {addresses: 10.0.0.1}\n  "a": {addresses: 10.0.0.0/8}\n'
    found = [(w.kind, w.subject, w.line, w.column) for w in check(compiled(text))]
    assert found == [
        ("default_allow", "", 2, 12), ("unused", "b", 4, 3), ("unused", "a", 5, 3), ("overlap", "a", 5, 3),
    ]  # fmt: skip
    assert warned("x, from: 10.0.0.1, to: '::1', action: deny") == [("never_matches", "x", 8, 5)]


def test_overlaps_name_whom_and_where() -> None:
    names = "\n".join(f"  i{n}: {{addresses: 10.0.0.{n}}}" for n in range(6))
    text = f"version: 1\nidentities:\n{names}\n  all: {{addresses: [10.0.0.0/8, 10.0.0.3]}}\nrules: []\n"
    (found,) = [w for w in check(compiled(text)) if w.kind == "overlap"]
    assert found.subject == "all"
    assert "'i0' (10.0.0.0), 'i1' (10.0.0.1), 'i2' (10.0.0.2) and 3 more" in found.message


def test_labels_use_identities_and_labels_that_nobody_selects_do_not() -> None:
    head = HEAD.replace("none: {labels: {app: none}", "none: {labels: {app: none, env: x}")
    rules = ["a, from: {app: none}, to_except: {env: x}, action: deny", "b, to: web, action: deny"]
    assert [w for w in warned(*rules, head=head) if w[0] == "unused"] == []
    lone = head.replace("[web, none]", "web")
    assert [w[:2] for w in warned(head=lone) if w[0] == "unused"] == [("unused", "none")]


def test_no_policy_has_no_warnings() -> None:
    assert check(compile_policy(None)) == []


def test_what_cannot_be_told_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MAX_TRIPLES", 1)
    rules = ["a, from: web, to: db, action: allow", "m, to: 10.0.2.0/25, action: deny",
             "n, to: 10.0.2.128/25, action: deny"]  # fmt: skip
    assert [w[:2] for w in warned(*rules)] == [("not_checked", "a")]


# ---- properties


def grid(pools: dict[int, list[str]]) -> list[np.ndarray]:
    """Columns of every source × destination × port: all that a policy of these edges can tell apart."""
    ports = np.array(every_port())
    parts = []
    for family, pool in pools.items():
        addresses = columns([Tuple(address, address, 6, 1) for address in pool])[0]
        n, p = len(pool), len(ports)
        src, dst = np.repeat(addresses, n * p), np.tile(np.repeat(addresses, p), n)
        proto, port = (np.tile(ports[:, i], n * n) for i in (0, 1))
        parts.append([src, dst, np.full(n * n * p, family, "u1"), proto.astype("u1"), port.astype("<u2")])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def credited(policy: Compiled, tuples: list[np.ndarray]) -> np.ndarray:
    """The name of the rule that decides each."""
    names = np.array([policy.rule_name(n) for n in range(64 + len(policy.order))])
    return names[evaluate(policy, *tuples)["rule"]]


@settings(
    max_examples=60, deadline=None, print_blob=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip
@given(policy=policies(), host=hosts())
def test_what_is_said_of_rules_is_so(policy: dict[str, Any], host: tuple[str, ...]) -> None:
    policy["rules"] = [rule for rule in policy["rules"] if not rule["name"].startswith("p")]
    text = as_yaml(policy)
    note(text)
    whole = compiled(text, *host)
    said: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for warning in check(whole):
        said[warning.kind].add(warning.subject)
    pools = address_pools(policy, host=host)
    tuples = grid(pools)
    credit = credited(whole, tuples)
    naive = NaivePolicy(text, host)
    for rule in policy["rules"]:
        name = rule["name"]
        excepted = [rule.get(f"{end}_except", []) for end in ("from", "to")]
        if not host and ("host" in str(rule) or "world" in str(excepted)):
            assert not any(name in subjects for subjects in said.values())
            continue
        alone = compiled(as_yaml(policy | {"rules": [rule]}), *host)
        matches = credited(alone, tuples) == name
        assert (name in said["never_matches"]) == (not matches.any())
        shadowed = matches.any() and name not in credit
        # Without the node's addresses less is said: see the next test.
        assert shadowed if name in said["shadowed"] else not (shadowed and host)
        if name in said["shadowed"]:
            others = policy | {"rules": [other for other in policy["rules"] if other is not rule]}
            assert (credited(compiled(as_yaml(others), *host), tuples) == credit).all()
        side, spared = rule.get("from", rule.get("src_ip", "any")), rule.get("from_except", [])
        opened = [
            (matches & (tuples[2] == family)).any() and bool(world) and all(
                naive.selects(side, address) and not naive.selects(spared, address) for address in world
            )
            for family, world in ((f, [a for a in pool if naive.shown(a) == "world"]) for f, pool in pools.items())
        ]  # fmt: skip
        assert (name in said["world_open"]) == (rule["action"] == "allow" and any(opened) and name in credit)


@settings(max_examples=60, deadline=None, print_blob=True, database=None, suppress_health_check=[*HealthCheck])
@given(policy=policies(), host=hosts())
def test_what_is_said_of_a_file_holds_on_every_node(policy: dict[str, Any], host: tuple[str, ...]) -> None:
    text = as_yaml(policy)
    note(text)
    credit = credited(compiled(text, *host), grid(address_pools(policy, host=host)))
    decides_nowhere = {w.subject for w in check(compiled(text)) if w.kind in ("shadowed", "never_matches")}
    assert not decides_nowhere & {*credit}
