"""What is suggested from a store: which records count, names, orientation, the audit; bounds."""

from typing import Any

import numpy as np
import pytest

from policy.errors import PolicyError
from policy.evaluate import evaluate
from policy.parse import parse
from policy.units import Generality
from schemas.codes import Decision, Flag, Outcome, Reason, RuleId
from sink.client import History
from sink.errors import BusyError, QueryError
from sink.history.audit import Text
from sink.history.suggest import Question, suggested
from sink.store import Commit, Store
from tests.support import batches
from tests.support.naive_audit import raw
from tests.support.policies import compiled
from tests.support.rollups import HOUR, keep, roll_up
from tests.unit.sink.test_audit import DB, DENY, NO_POLICY, OTHER, WEB, append, flow, shop


def asked(store: Store, **question: Any) -> dict[str, Any]:
    return History.on_store(store).suggest(Question(**question))


def rules(document: dict[str, Any]) -> list[tuple[str, str, str, int]]:
    return [(*(", ".join(rule[key]) for key in ("from", "to", "ports")), rule["flows"]) for rule in document["rules"]]


def left_out(document: dict[str, Any]) -> dict[str, int]:
    return {word: sums["packets"] for word, sums in document["left_out"].items() if sums["packets"]}


@pytest.fixture
def told(memory: Store) -> Store:
    """A store that knows SHOP as the running policy."""
    memory.append(Commit(records=[shop().record()]))
    return memory


def test_the_whole_document(told: Store) -> None:
    append(told, flow(1), flow(2, dport=443, **DENY), flow(3))
    document = asked(told)
    audit = document.pop("audit")
    text = document.pop("policy")
    assert (
        text
        == """# Suggested by ztlens, generality service: recorded traffic that was allowed
# 2 flows, 20 packets, 2026-09-21T15:13:20Z – 2026-09-21T15:13:50Z
version: 1
default: deny

identities:
  web: {addresses: [10.0.1.0/24]}
  db: {labels: {app: db}, addresses: [10.0.2.0/24]}

rules:
  # 2 flows, 20 packets, 2026-09-21T15:13:20Z – 2026-09-21T15:13:50Z
  - name: web-to-db
    from: web
    to: db
    ports: [5432/tcp]
    action: allow
"""
    )
    none = {"flows": 0, "packets": 0, "bytes": 0}
    assert document == {
        "generality": "service", "include_denied": False, "names": ["db", "web"], "host": ("10.0.9.9",), "node": None,
        "since": None, "until": None, "tuples": 1,
        "rules": [{
            "name": "web-to-db", "from": ("web",), "to": ("db",), "ports": ("5432/tcp",), "flows": 2, "packets": 20,
            "bytes": 2000, "first_seen": "2026-09-21T15:13:20.000000000Z",
            "last_seen": "2026-09-21T15:13:50.000000000Z",
            "opens": {"sources": 255, "destinations": 255, "tuples": 65535},
        }],
        "left_out": {
            "denied": {"flows": 1, "packets": 10, "bytes": 1000}, "builtin": none, "always_denied": none,
            "unsure": none | {"tuples": []},
        },
    }  # fmt: skip
    assert (audit["flows"], audit["unchanged"]["flows"], audit["newly_denied"], audit["uncertain"]) == (3, 3, [], [])
    assert (audit["identities"], audit["against"]) == ("now", None)


def test_nothing_recorded(told: Store) -> None:
    document = asked(told)
    assert (document["policy"], document["audit"], document["rules"], left_out(document)) == (None, None, [], {})


def test_denied_only_if_asked_for(told: Store) -> None:
    append(told, flow(1), flow(2, dport=443, outcome=Outcome.DROPPED, **DENY))
    assert left_out(asked(told)) == {"denied": 10}
    document = asked(told, include_denied=True)
    assert rules(document) == [("web", "db", "443/tcp, 5432/tcp", 2)]
    assert left_out(document) == {}
    assert (document["audit"]["against"], document["audit"]["unchanged"]["flows"]) == ("everything", 2)


def test_what_every_policy_denies_and_built_in_rules(told: Store) -> None:
    ndp: dict[str, Any] = {"family": 6, "proto": 58, "dport": 135, "src": raw("fe80::1"), "dst": raw("ff02::1")}
    dhcp: dict[str, Any] = {"proto": 17, "dport": 67, "src": raw("0.0.0.0"), "dst": raw("255.255.255.255")}
    built_in = {"decision": Decision.ALLOW, "reason": Reason.BUILTIN}
    append(
        told, flow(1), flow(2, rule=RuleId.BUILTIN_NDP, **built_in, **ndp),
        flow(3, rule=RuleId.BUILTIN_DHCP, **built_in, **dhcp), batches.untracked(),
    )  # fmt: skip
    document = asked(told, include_denied=True)
    assert rules(document) == [("web", "db", "5432/tcp", 1)]
    assert left_out(document) == {"builtin": 20, "always_denied": 1}
    assert document["audit"]["newly_denied"] == []
    names = Text("version: 1\nbuiltins: {dhcp: false}\nrules: []\n")
    document = asked(told, identities=names, generality=Generality.EXACT)
    assert ("0.0.0.0", "255.255.255.255", "67/udp", 1) in rules(document)
    assert left_out(document) == {"builtin": 10, "always_denied": 1}
    assert document["audit"]["newly_denied"] == []


def test_who_began_is_where_the_lower_port_is_not(told: Store) -> None:
    """Midstream: as recorded; turned; not to be told; without events any more."""
    midstream = {"flags": int(Flag.MIDSTREAM)}
    append(
        told, flow(1, sport=40000, dport=5432, **midstream),
        flow(2, src=DB, dst=WEB, sport=6379, dport=40000, **midstream),
        flow(3, sport=50000, dport=50001, **midstream),
        flow(4, dport=0, proto=47, **midstream),
    )  # fmt: skip
    document = asked(told)
    assert rules(document) == [("web", "db", "5432/tcp, 6379/tcp, proto:47", 3)]
    assert document["left_out"]["unsure"] == {
        "flows": 1, "packets": 10, "bytes": 1000,
        "tuples": [{"src": "10.0.1.10", "dst": "10.0.2.7", "proto": "tcp", "port": 50001}],
    }  # fmt: skip
    assert {entry["cause"] for entry in document["audit"]["uncertain"]} == {"midstream"}
    keep(told, keep_age=1.0)
    document = asked(told)
    assert rules(document) == [("web", "db", "5432/tcp, proto:47", 2)]
    assert [item["port"] for item in document["left_out"]["unsure"]["tuples"]] == [40000, 50001]


def test_only_unsure(told: Store) -> None:
    append(told, flow(1, sport=50000, dport=50001, flags=int(Flag.MIDSTREAM)))
    document = asked(told)
    assert (document["policy"], left_out(document)) == (None, {"unsure": 10})


def test_a_span_and_roll_ups(told: Store) -> None:
    append(told, flow(1), flow(2, dport=22))
    later = batches.START + 2 * HOUR
    append(told, batches.verdict(flow_id=3, src=WEB, dst=DB, dport=80, time=later), first=4)
    for _ in range(2):
        since = batches.CLOCK + batches.START + HOUR
        assert rules(asked(told, since=since)) == [("web", "db", "80/tcp", 1)]
        assert rules(asked(told, until=since)) == [("web", "db", "22/tcp, 5432/tcp", 2)]
        assert asked(told, since=since)["audit"]["flows"] == 1
        roll_up(told)


def test_several_nodes(told: Store) -> None:
    """Names that mean the same everywhere; no `host`."""
    other = shop(db=["10.0.3.0/24"]).record(node="n2", ring="r2")
    told.append(Commit(records=[other]))
    append(told, flow(1, src=raw("10.0.9.9")))
    append(told, flow(1, dport=80), node="n2", ring="r2")
    document = asked(told)
    assert (document["names"], document["host"]) == (["web"], ())
    assert rules(document) == [("web", "10.0.2.7", "80/tcp", 1), ("10.0.9.9", "10.0.2.7", "5432/tcp", 1)]
    document = asked(told, node="n1")
    assert rules(document) == [("host", "db", "5432/tcp", 1)]
    assert (document["host"], document["audit"]["newly_denied"], document["audit"]["uncertain"]) == (
        ("10.0.9.9",), [], [],
    )  # fmt: skip
    with pytest.raises(QueryError, match="no node is called 'n3'"):
        asked(told, node="n3")


def test_names_of_a_file(told: Store) -> None:
    append(told, flow(1, src=OTHER))
    names = Text("version: 1\nidentities: {visitor: {addresses: [192.0.2.0/24]}}\nrules: []\n", "names.yaml")
    assert rules(asked(told, identities=names)) == [("visitor", "10.0.2.7", "5432/tcp", 1)]


def test_without_a_policy(memory: Store) -> None:
    append(memory, flow(1, revision=0, **NO_POLICY))
    document = asked(memory)
    assert rules(document) == [("10.0.1.10", "10.0.2.7", "5432/tcp", 1)]
    assert document["audit"]["unchanged"]["flows"] == 1


def test_the_exact_policy_besides(told: Store) -> None:
    append(told, flow(1))
    assert "from: 10.0.1.10\n" in asked(told, exact=True)["exact"]
    assert "exact" not in asked(told)


@pytest.mark.parametrize("generality", [*Generality])
def test_traffic(memory: Store, generality: Generality) -> None:
    """Of 2,000 events a third of which are flows: all that was allowed is, by the audit and by evaluation."""
    rows = batches.traffic(2000).rows
    append(memory, rows)
    document = asked(memory, generality=generality)
    assert document["audit"]["newly_denied"] == []
    assert document["audit"]["flows"] == len(np.unique(rows["flow_id"]))
    allowed = rows[rows["decision"] == Decision.ALLOW]
    found = evaluate(
        compiled(document["policy"]), *(np.ascontiguousarray(allowed[c]) for c in ("src", "dst")),
        allowed["family"], allowed["proto"], allowed["dport"],
    )  # fmt: skip
    assert (found["decision"] == Decision.ALLOW).all()
    assert sum(rule["flows"] for rule in document["rules"]) == len(np.unique(allowed["flow_id"]))
    assert len(parse(document["policy"]).rules) == len(document["rules"])


def test_more_than_it_looks_at(told: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sink.history.suggest.MAX_TUPLES", 2)
    append(told, *(flow(port, dport=port) for port in (1, 2)))
    assert len(asked(told)["rules"]) == 1
    append(told, flow(3, dport=3), first=4)
    with pytest.raises(QueryError, match="more than 2 distinct sources") as raised:
        asked(told)
    assert raised.value.hint == "ask for less of it: --since, --until, --node"


def test_it_takes_its_time_and_no_more(told: Store) -> None:
    append(told, batches.traffic(30_000).rows)
    with pytest.raises(BusyError, match="took longer than 0 s"):
        suggested(told.connection.cursor(), Question(), 0)


def test_too_large_a_policy(told: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise PolicyError("what was recorded makes too large a policy: larger than 8 MiB", "a shorter span")

    monkeypatch.setattr("sink.history.suggest.apart", too_large)
    append(told, flow(1))
    with pytest.raises(QueryError, match=r"^what was recorded makes too large a policy: larger than 8 MiB$") as raised:
        asked(told)
    assert raised.value.hint == "a shorter span"
