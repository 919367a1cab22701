"""The views: words and names, flows by their last event, violations, what is not known."""

import ipaddress
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from schemas import present
from schemas.codes import Decision, Direction, EventKind, Flag, IdentityId, Outcome, Reason, RuleId, words
from schemas.envelope import Envelope
from schemas.verdict import STRIDE
from sink.store import Commit, Store, prepare
from tests.support import batches

Rows = Callable[[Store, str], list[dict[str, Any]]]


def store_rows(store: Store, *rows: np.ndarray, first: int = 0, **where: Any) -> None:
    """Consecutive rows of a ring, from row `first` on."""
    store.append(Commit(batches=[prepare(batches.batch(np.concatenate(rows), first * STRIDE, **where))]))


def v4(text: str) -> bytes:
    return bytes(12) + ipaddress.IPv4Address(text).packed


def test_a_verdict_in_words(memory: Store, rows: Rows) -> None:
    memory.append(Commit(records=[batches.policy_record()]))
    store_rows(
        memory,
        batches.verdict(
            src=v4("10.0.1.10"), dst=v4("10.0.2.7"), event=EventKind.SAMPLE, packets_original=3, packets_reply=2,
            bytes_original=300, bytes_reply=200, flags=Flag.EGRESS | Flag.REPORT_ONLY, direction=Direction.REPLY,
            tcp_flags_original=2, tcp_flags_reply=18, flow_id=77, ifindex=4,
        ),
    )  # fmt: skip
    (found,) = rows(memory, "SELECT *, epoch_ns(time) AS ns FROM verdicts")
    assert found.pop("ns") == batches.START + batches.CLOCK
    del found["time"]
    assert found == {
        "node": "n1", "ring": "r1", "position": 0, "event": "sample", "decision": "allow", "outcome": "passed",
        "reason": "rule", "rule": "web-to-db", "revision": 1, "src": "10.0.1.10", "sport": 40000, "dst": "10.0.2.7",
        "dport": 443, "proto": "tcp", "family": 4, "src_identity": "frontend", "dst_identity": "database",
        "direction": "reply", "packets": 5, "bytes": 500, "packets_original": 3, "bytes_original": 300,
        "packets_reply": 2, "bytes_reply": 200, "tcp_flags_original": 2, "tcp_flags_reply": 18, "egress": True,
        "midstream": False, "report_only": True, "untracked": False, "aggregated": False, "reversed": False,
        "ifindex": 4, "flow_id": 77, "src_addr": str(int(ipaddress.ip_address("10.0.1.10"))),
        "dst_addr": str(int(ipaddress.ip_address("10.0.2.7"))),
    }  # fmt: skip


def batch_of(kind: str, values: list[int]) -> np.ndarray:
    return np.concatenate([batches.verdict(**{kind: value}) for value in values])


@pytest.mark.parametrize(
    ("column", "kind"),
    [("event", EventKind), ("decision", Decision), ("outcome", Outcome), ("reason", Reason), ("direction", Direction)],
)
def test_every_code_has_its_word_and_an_unknown_one_its_number(
    memory: Store, rows: Rows, column: str, kind: Any
) -> None:
    store_rows(memory, batch_of(column, [*kind, 200]))
    found = [row[column] for row in rows(memory, f"SELECT {column} FROM verdicts ORDER BY position")]
    assert found == [*words(kind).values(), "200"]


def test_reserved_numbers_have_names_and_unknown_ones_say_so(memory: Store, rows: Rows) -> None:
    reserved = [number for number in RuleId if number < RuleId.FIRST]
    store_rows(memory, batch_of("rule", [*reserved, 64, 99]))
    store_rows(memory, batch_of("src_identity", [IdentityId.WORLD, IdentityId.HOST, 16]), first=100)
    found = [row["rule"] for row in rows(memory, "SELECT rule FROM verdicts WHERE position < 12000 ORDER BY position")]
    assert found == [*(present.reserved_rule(number) for number in reserved), "rule:64", "rule:99"]
    found = [
        row["s"]
        for row in rows(memory, "SELECT src_identity s FROM verdicts WHERE position >= 12000 ORDER BY position")
    ]
    assert found == ["world", "host", "identity:16"]


def test_names_are_those_of_the_ring_and_the_revision(memory: Store, rows: Rows) -> None:
    renamed = [type(rule)(rule.id, rule.name + "-2", rule.action) for rule in batches.RULES]
    memory.append(
        Commit(
            records=[
                batches.policy_record(revision=1), batches.policy_record(revision=2, rules=renamed),
                batches.policy_record(ring="r2", revision=1, rules=renamed),
            ]
        )
    )  # fmt: skip
    for ring in ("r1", "r2"):
        store_rows(memory, batch_of("revision", [1, 2]), ring=ring)
    found = rows(memory, "SELECT ring, revision, rule FROM verdicts ORDER BY ring, revision")
    assert [row["rule"] for row in found] == ["web-to-db", "web-to-db-2", "web-to-db-2", "rule:64"]


def test_the_same_words_as_the_live_subjects(memory: Store, rows: Rows) -> None:
    given = batches.traffic(600).rows
    store_rows(memory, given, batches.untracked(family=0))
    live = present.present(np.concatenate([given, batches.untracked(family=0)]), present.NoNames(), batches.CLOCK)
    stored = rows(memory, "SELECT * FROM verdicts ORDER BY position")
    shared = set(live[0]) & set(stored[0]) - {"time", "rule", "src_identity", "dst_identity"}
    assert len(shared) > 25
    assert [{key: row[key] for key in shared} for row in stored] == [{key: row[key] for key in shared} for row in live]


def test_flows_take_totals_and_verdict_from_the_last_event(memory: Store, rows: Rows) -> None:
    new = batches.verdict(flow_id=5, packets_original=1, time=batches.START)
    change = batches.verdict(flow_id=5, packets_original=4, event=EventKind.CHANGE, decision=Decision.DENY,
                             reason=Reason.DEFAULT, rule=0, revision=2, time=batches.START + 10)  # fmt: skip
    end = batches.verdict(flow_id=5, packets_original=9, packets_reply=6, event=EventKind.END, decision=Decision.DENY,
                          reason=Reason.DEFAULT, rule=0, revision=2, time=batches.START + 90)  # fmt: skip
    live = batches.verdict(flow_id=6, packets_original=2)
    sql = (
        "SELECT flow_id, decision, rule, revision, packets_original AS o, packets_reply AS r, packets, ended, events,"
        " epoch_ns(last_seen) - epoch_ns(first_seen) AS lasted FROM flows ORDER BY flow_id"
    )
    store_rows(memory, end, live, first=2)  # the end arrives before the beginning
    assert [row["packets"] for row in rows(memory, sql)] == [15, 2]
    store_rows(memory, new, change, first=0)
    assert rows(memory, sql) == [
        {"flow_id": 5, "decision": "deny", "rule": "default", "revision": 2, "o": 9, "r": 6, "packets": 15,
         "ended": True, "events": 3, "lasted": 90},
        {"flow_id": 6, "decision": "allow", "rule": "rule:64", "revision": 1, "o": 2, "r": 0, "packets": 2,
         "ended": False, "events": 1, "lasted": 0},
    ]  # fmt: skip


def test_totals_of_all_flows_are_exact(memory: Store, rows: Rows) -> None:
    given = batches.traffic(9000)
    order = np.random.default_rng(3).permutation(30)
    for i in order:
        store_rows(memory, given.rows[i * 300 : (i + 1) * 300], first=int(i) * 300)
    store_rows(memory, given.rows, ring="r2")  # the same flow ids in another ring are other flows
    found = rows(
        memory, "SELECT ring, count(*) AS n, sum(packets) AS p, sum(bytes) AS b FROM flows GROUP BY 1 ORDER BY 1"
    )
    assert found == [{"ring": ring, "n": given.flows, "p": given.packets, "b": given.bytes} for ring in ("r1", "r2")]


def test_violations_are_denied_flows_and_denied_packets_without_a_flow(memory: Store, rows: Rows) -> None:
    store_rows(
        memory,
        batches.verdict(flow_id=1, decision=Decision.DENY, packets_original=1),
        batches.verdict(flow_id=1, decision=Decision.DENY, packets_original=1237, event=EventKind.END),
        batches.verdict(flow_id=2),
        batches.verdict(flow_id=3, decision=Decision.DENY),
        batches.verdict(flow_id=3, decision=Decision.ALLOW, event=EventKind.CHANGE),  # allowed in the end
        batches.untracked(bytes_original=60), batches.untracked(bytes_original=61),
        batches.untracked(decision=Decision.ALLOW, reason=Reason.DEFAULT),
    )  # fmt: skip
    found = rows(
        memory, "SELECT flow_id, packets, bytes, reason, untracked, ended FROM violations ORDER BY flow_id, bytes"
    )
    assert found == [
        {"flow_id": 0, "packets": 1, "bytes": 60, "reason": "malformed", "untracked": True, "ended": True},
        {"flow_id": 0, "packets": 1, "bytes": 61, "reason": "malformed", "untracked": True, "ended": True},
        {"flow_id": 1, "packets": 1237, "bytes": 74, "reason": "rule", "untracked": False, "ended": True},
    ]
    columns = [set(rows(memory, f"SELECT * FROM {view} LIMIT 1")[0]) for view in ("flows", "violations")]
    assert columns[0] == columns[1]


def test_changes_and_revisions(memory: Store, rows: Rows) -> None:
    memory.append(
        Commit(
            records=[
                batches.policy_record("start", revision=0, hash="", yaml="", default="", rules=[], identities=[]),
                batches.policy_record("revision", revision=1, time=batches.CLOCK + 1, from_hash=""),
                batches.policy_record("mode", revision=1, time=batches.CLOCK + 2, mode="enforce", from_mode="monitor",
                                      from_revision=1),
            ]
        )
    )  # fmt: skip
    found = rows(memory, "SELECT kind, from_revision, to_revision, from_mode, to_mode, who FROM changes ORDER BY time")
    who = "root(0) control.sock"
    assert [tuple(row.values()) for row in found] == [
        ("start", 0, 0, "", "monitor", who), ("revision", 0, 1, "", "monitor", who),
        ("mode", 1, 1, "monitor", "enforce", who),
    ]  # fmt: skip
    found = rows(memory, 'SELECT revision, hash, yaml, "default" AS d FROM policy_revisions ORDER BY revision')
    assert [tuple(row.values()) for row in found] == [(0, "", "", ""), (1, f"{1:064x}", "version: 1", "deny")]


def test_a_text_that_looks_like_sql_is_text(memory: Store, rows: Rows) -> None:
    name = "'; DROP TABLE store.verdicts; --"
    rules = [type(batches.RULES[0])(64, name, "allow")]
    memory.append(Commit(records=[batches.policy_record(rules=rules, node=name, ring=name)]))
    store_rows(memory, batches.verdict(), node=name, ring=name)
    assert rows(memory, "SELECT node, ring, rule FROM verdicts") == [{"node": name, "ring": name, "rule": name}]


def test_an_envelope_is_what_the_contract_says() -> None:
    assert isinstance(batches.batch(batches.verdict()), Envelope)
