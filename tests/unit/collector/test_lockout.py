"""Who would be cut off, and when that is refused."""

import pytest

from collector.errors import RefusedError
from collector.kernel.interface import Connection
from collector.lockout import MOST, Caution, Session, check, cut, needed, own_session
from policy.compile import Compiled, compile_policy
from policy.parse import parse

POLICY = """version: 1
identities:
  office: {addresses: [203.0.113.0/24, "2001:db8::/64"]}
rules:
  - {name: ssh, from: office, to: host, ports: [22/tcp], action: allow}
  - {name: trial, from: 198.51.100.7, to: host, ports: [22/tcp], action: deny, report_only: true}
  - {name: bus, from: host, to: 192.0.2.4, ports: [4222/tcp], action: allow}
"""
HOST = ("10.0.0.5", "2001:db8:1::5")


@pytest.fixture(scope="module")
def policy() -> Compiled:
    return compile_policy(parse(POLICY), host=HOST)


@pytest.mark.parametrize(
    ("ssh", "session"),
    [
        ("203.0.113.7 51234 10.0.0.5 22", ("203.0.113.7", "10.0.0.5", 22)),
        ("2001:db8::7 51234 2001:db8:1::5 2222", ("2001:db8::7", "2001:db8:1::5", 2222)),
        ("::ffff:203.0.113.7 51234 ::ffff:10.0.0.5 22", ("203.0.113.7", "10.0.0.5", 22)),
        ("203.0.113.7 51234 10.9.9.9 22", None),  # not a host of the watched namespace
        ("", None), ("here there", None), ("203.0.113.7 51234 10.0.0.5", None), ("a b c d", None),
        ("fe80::1%eth0 51234 fe80::2%eth0 22", None),
    ],
)  # fmt: skip
def test_own_session(ssh: str, session: tuple[str, str, int] | None) -> None:
    found = own_session(ssh, HOST)
    assert (found and (found.opener, found.responder, found.port)) == session


def test_what_a_node_needs() -> None:
    connections = [
        Connection("10.0.0.5", 22, "203.0.113.7", 51234), Connection("10.0.0.5", 80, "203.0.113.7", 51235),
        Connection("10.0.0.5", 40000, "192.0.2.4", 4222), Connection("10.0.0.5", 40001, "192.0.2.5", 4222),
    ]  # fmt: skip
    assert [(s.opener, s.responder, s.port) for s in needed(connections, ("192.0.2.4", 4222))] == [
        ("203.0.113.7", "10.0.0.5", 22), ("10.0.0.5", "192.0.2.4", 4222),
    ]  # fmt: skip
    assert len(needed(connections, None)) == 1


def test_each_is_judged_as_the_conversation_it_is(policy: Compiled) -> None:
    sessions = [
        Session("office", "203.0.113.7", HOST[0], 22), Session("office 6", "2001:db8::7", HOST[1], 22),
        Session("stranger", "198.51.100.8", HOST[0], 22), Session("trial", "198.51.100.7", HOST[0], 22),
        Session("nats", HOST[0], "192.0.2.4", 4222), Session("other nats", HOST[0], "192.0.2.5", 4222),
    ]  # fmt: skip
    assert [(s.what, rule) for s, rule in cut(policy, sessions)] == [("stranger", "default"), ("other nats", "default")]
    assert cut(policy, []) == []


def test_only_ones_own_session_is_a_reason_to_refuse(policy: Compiled) -> None:
    own, other = Session("yours", "198.51.100.8", HOST[0], 22), Session("theirs", "198.51.100.9", HOST[0], 22)
    same = Session("the SSH session from 198.51.100.8", own.opener, own.responder, 22)
    with pytest.raises(RefusedError, match=r"yours would be cut \(rule default\)") as caught:
        check(policy, own, [same, other], Caution())
    assert "--confirm-within" in caught.value.hint and "--force" in caught.value.hint
    lines = ["yours would be cut (rule default)", "theirs would be cut (rule default)"]
    for caution in (Caution(confirm_within=60), Caution(force=True)):
        assert check(policy, own, [same, other], caution) == lines
    assert check(policy, None, [other], Caution()) == lines[1:]
    assert check(policy, Session("yours", "203.0.113.7", HOST[0], 22), [], Caution()) == []


def test_many_are_told_as_a_number(policy: Compiled) -> None:
    many = [Session(f"s{i}", f"198.51.100.{100 + i}", HOST[0], 22) for i in range(20)]
    lines = check(policy, None, many, Caution())
    assert (len(lines), lines[-1]) == (MOST, f"and {20 - MOST + 1} more would be cut")
