"""The shipped policy.yaml under the engine: who may talk to whom in the demo, tuple by tuple."""

import ipaddress

import numpy as np
import pytest

from policy.compile import compile_policy
from policy.evaluate import evaluate
from policy.parse import parse
from schemas.codes import Decision, Reason
from ztlens.demo.network import MACHINES
from ztlens.demo.run import POLICY

COMPILED = compile_policy(parse(POLICY.read_text(), str(POLICY)))
PROTOCOL = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
Case = tuple[str, str, str, int, str]
ALLOWED: list[Case] = [
    ("visitor", "frontend", "tcp", 80, "web-to-all"),
    ("intruder", "frontend", "tcp", 80, "web-to-all"),
    ("frontend", "api", "tcp", 8080, "frontend-to-api"),
    ("frontend", "dns", "udp", 53, "names"),
    ("api", "dns", "tcp", 53, "names"),
    ("api", "cache", "tcp", 6379, "api-to-cache"),
    ("api", "database", "tcp", 5432, "api-to-database"),
]
DENIED: list[Case] = [
    ("frontend", "database", "tcp", 5432, "no-shortcut-to-database"),
    ("frontend", "database", "udp", 9, "no-shortcut-to-database"),
    ("intruder", "database", "tcp", 5432, "default"),
    ("intruder", "cache", "tcp", 6379, "default"),
    ("intruder", "dns", "udp", 53, "default"),
    ("visitor", "frontend", "tcp", 443, "default"),
    ("visitor", "frontend", "udp", 80, "default"),
    ("database", "api", "tcp", 8080, "default"),
]


def judge(source: str, target: str, proto: str, port: int, family: int) -> tuple[str, int, int]:
    """Rule, decision, reason of a first packet."""
    packed = [
        np.frombuffer(ipaddress.ip_address(MACHINES[name].address(family)).packed.rjust(16, b"\0"), "V16")
        for name in (source, target)
    ]
    columns = (np.array([value], kind) for value, kind in ((family, "u1"), (PROTOCOL[proto], "u1"), (port, "u2")))
    answer = evaluate(COMPILED, packed[0], packed[1], *columns)
    return COMPILED.rule_name(int(answer["rule"][0])), int(answer["decision"][0]), int(answer["reason"][0])


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", ALLOWED)
def test_what_the_application_needs_is_allowed(case: Case, family: int) -> None:
    *flow, rule = case
    assert judge(*flow, family) == (rule, Decision.ALLOW, Reason.RULE)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", DENIED)
def test_everything_else_is_denied(case: Case, family: int) -> None:
    *flow, rule = case
    reason = Reason.DEFAULT if rule == "default" else Reason.RULE
    assert judge(*flow, family) == (rule, Decision.DENY, reason)


@pytest.mark.parametrize(("family", "proto", "kind"), [(4, "icmp", 8), (6, "icmpv6", 128)])
def test_ping_is_for_the_frontend_alone(family: int, proto: str, kind: int) -> None:
    assert judge("visitor", "frontend", proto, kind, family) == ("ping-frontend", Decision.ALLOW, Reason.RULE)
    assert judge("intruder", "database", proto, kind, family) == ("default", Decision.DENY, Reason.DEFAULT)


def test_the_flat_rule_is_ipv4_only() -> None:
    assert judge("cache", "api", "udp", 8125, 4) == ("cache-metrics", Decision.ALLOW, Reason.RULE)
    assert judge("cache", "api", "udp", 8125, 6) == ("default", Decision.DENY, Reason.DEFAULT)
