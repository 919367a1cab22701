"""Verdicts as words: every code, every address form, names and what stands in for unknown ones."""

import ipaddress

import numpy as np
import pytest

from schemas.codes import Decision, EventKind, Flag, Outcome, Reason, RuleId
from schemas.present import NoNames, address_text, present, reserved_rule
from tests.support.fake_datapath import make_rows


class Called:
    def rule(self, revision: int, number: int) -> str | None:
        return f"rule-{revision}-{number}" if revision else None

    def identity(self, revision: int, number: int) -> str | None:
        return f"identity-{revision}-{number}" if revision else None


def test_a_row_in_words() -> None:
    rows = make_rows(
        1, time=1_500_000_001, event=EventKind.END, decision=Decision.DENY, outcome=Outcome.DROPPED, reason=Reason.RULE,
        rule=70, revision=3, src_identity=17, dst_identity=0, packets_reply=2, bytes_reply=200, flags=Flag.EGRESS | 4,
        tcp_flags_original=0x12, flow_id=9,
    )  # fmt: skip
    (row,) = present(rows, Called(), 10**9, node="n1")
    assert row == {
        "node": "n1", "time": "1970-01-01T00:00:02.500000001Z", "time_ns": 2_500_000_001, "event": "end",
        "decision": "deny", "outcome": "dropped", "reason": "rule", "rule": "rule-3-70", "src": "10.0.0.1",
        "sport": 1025, "dst": "10.0.2.20", "dport": 5432, "proto": "tcp", "src_identity": "identity-3-17",
        "dst_identity": "identity-3-0", "direction": "original", "packets": 3, "bytes": 260, "packets_original": 1,
        "bytes_original": 60, "packets_reply": 2, "bytes_reply": 200, "tcp_flags_original": 0x12,
        "tcp_flags_reply": 0, "revision": 3, "family": 4, "ifindex": 2, "flow_id": 9, "egress": True,
        "midstream": False, "report_only": True, "untracked": False, "aggregated": False, "reversed": False,
    }  # fmt: skip


def test_unknown_numbers_stay_numbers() -> None:
    (row,) = present(
        make_rows(1, rule=99, src_identity=40, dst_identity=1, proto=47, reason=200, direction=0), NoNames(), 0
    )
    assert (row["rule"], row["src_identity"], row["dst_identity"]) == ("rule:99", "identity:40", "host")
    assert (row["proto"], row["reason"], row["direction"]) == ("47", "200", "0")


def test_names_follow_each_rows_revision() -> None:
    rows = make_rows(3, rule=64, revision=[1, 2, 0])
    assert [r["rule"] for r in present(rows, Called(), 0)] == ["rule-1-64", "rule-2-64", "rule:64"]


@pytest.mark.parametrize(
    ("text", "family", "shown"),
    [
        ("2001:db8::1", 6, "2001:db8::1"),
        ("2001:db8:0:0:1:0:0:1", 6, "2001:db8::1:0:0:1"),
        ("2001:db8:0:1:1:1:1:1", 6, "2001:db8:0:1:1:1:1:1"),
        ("::", 6, "::"),
        ("FE80::ABCD", 6, "fe80::abcd"),
        ("::10.0.0.1", 4, "10.0.0.1"),
        ("::", 0, None),
    ],
)
def test_addresses(text: str, family: int, shown: str | None) -> None:
    assert address_text(ipaddress.IPv6Address(text).packed, family) == shown


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (RuleId.DEFAULT, "default"), (RuleId.NO_POLICY, "no_policy"), (RuleId.HEADLESS_FRAGMENT, "headless_fragment"),
        (RuleId.BUILTIN_DHCPV6, "builtin:dhcpv6"), (15, None), (RuleId.FIRST, None),
    ],
)  # fmt: skip
def test_reserved_rules(number: int, name: str | None) -> None:
    assert reserved_rule(int(number)) == name


def test_no_rows() -> None:
    assert present(make_rows(5)[:0], NoNames(), 0) == []


def test_order_and_count_are_those_of_the_rows() -> None:
    rows = make_rows(1000)[np.random.default_rng(1).permutation(1000)]
    assert [r["flow_id"] for r in present(rows, NoNames(), 0)] == rows["flow_id"].tolist()
