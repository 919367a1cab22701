"""What an audit tells: each class with its exact numbers, the identities of the day, several nodes, roll-ups."""

from typing import Any

import numpy as np
import pytest

from policy.errors import PolicyError
from schemas.codes import Decision, EventKind, Flag, Outcome, Reason, RuleId
from schemas.messages import IdentityInfo, RuleInfo
from schemas.verdict import STRIDE
from sink.client import History
from sink.errors import BusyError, QueryError
from sink.history import judges
from sink.history.audit import RUNNING, Question, Text, audit
from sink.store import Commit, Store, prepare
from tests.support import batches
from tests.support.naive_audit import Day, raw
from tests.support.policies import as_yaml
from tests.support.rollups import HOUR, MINUTE, fold, keep, roll_up

SHOP = {
    "version": 1,
    "identities": {
        "web": {"addresses": ["10.0.1.0/24"]}, "db": {"labels": {"app": "db"}, "addresses": ["10.0.2.0/24"]},
    },
    "rules": [
        {"name": "web-to-db", "from": "web", "to": "db", "ports": ["5432/tcp"], "action": "allow"},
        {"name": "ping", "ports": ["icmp:8"], "action": "allow"},
        {"name": "watch", "to": "db", "ports": ["22/tcp"], "action": "deny", "report_only": True},
    ],
}  # fmt: skip
WEB, DB, OTHER = raw("10.0.1.10"), raw("10.0.2.7"), raw("192.0.2.1")
ALLOW = {"rule": 66, "decision": Decision.ALLOW, "reason": Reason.RULE}
DENY: dict[str, Any] = {"rule": RuleId.DEFAULT, "decision": Decision.DENY, "reason": Reason.DEFAULT}
NO_POLICY = {"rule": RuleId.NO_POLICY, "decision": Decision.ALLOW, "reason": Reason.NO_POLICY}
SECOND = 10**9


def shop(*, revision: int = 1, host: tuple[str, ...] = ("10.0.9.9",), time: int = 0, **identities: list[str]) -> Day:
    """SHOP as it was recorded, with other addresses."""
    changed = {name: SHOP["identities"].get(name, {}) | {"addresses": given} for name, given in identities.items()}
    return Day(revision, SHOP | {"identities": SHOP["identities"] | changed}, host, batches.CLOCK + time)


def append(store: Store, *rows: np.ndarray, first: int = 0, **who: str) -> None:
    store.append(Commit(batches=[prepare(batches.batch(np.concatenate(rows), first * STRIDE, **who))]))


def flow(number: int = 1, **fields: Any) -> np.ndarray:
    """A `new` and an `end` 30 s later: 10 packets, 1,000 bytes in all."""
    given = {"flow_id": number, "src": WEB, "dst": DB, "dport": 5432, **ALLOW} | fields
    given = {f"{end}_identity": {WEB: 16, DB: 17}.get(given[end], 0) for end in ("src", "dst")} | given
    new = batches.verdict(**given)
    last = {"time": batches.START + 30 * SECOND, "packets_original": 6, "bytes_original": 600, "packets_reply": 4,
            "bytes_reply": 400, "event": EventKind.END}  # fmt: skip
    return np.concatenate([new, batches.verdict(**(given | last))])


def asked(store: Store, candidate: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    text = candidate if isinstance(candidate, str) else as_yaml(candidate)
    return History.on_store(store).audit(Question(candidate=Text(text, "new.yaml"), **more))


def brief(document: dict[str, Any]) -> dict[str, list[tuple]]:
    """Each list with what tells its entries apart, flows and packets."""
    keys = ("src_identity", "dst_identity", "proto", "dport", "rule_before", "rule_after", "flows", "packets")
    return {
        name: [tuple(entry[key] for key in keys) for entry in document[name]]
        for name in ("newly_denied", "newly_allowed", "uncertain") if document[name]
    }  # fmt: skip


def without(*names: str) -> dict[str, Any]:
    """SHOP without some of its rules."""
    return SHOP | {"rules": [rule for rule in SHOP["rules"] if rule["name"] not in names]}


def stamp(seconds: float) -> str:
    """RFC 3339 of so many seconds after the traffic began, which was at 15:13:20."""
    return f"2026-09-21T15:13:{20 + seconds:02.0f}.000000000Z"


def test_the_whole_document(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, flow(1), flow(2, dport=443, outcome=Outcome.DROPPED, **DENY), flow(3))
    candidate = without("web-to-db")
    candidate["rules"] = [*candidate["rules"], {"name": "tls", "to": "db", "ports": ["443/tcp"], "action": "allow"}]
    document = asked(memory, candidate)
    times = {"first_seen": stamp(0), "last_seen": stamp(30)}
    pair = {"src_identity": "web", "dst_identity": "db", "proto": "tcp", "crossing": 0, "report_only_after": False}
    candidate_hash = document["candidate"].pop("hash")
    assert len(candidate_hash) == 64
    assert document == {
        "flows": 3, "packets": 30, "bytes": 3000,
        "unchanged": {"flows": 0, "packets": 0, "bytes": 0, "crossing": 0, "first_seen": None, "last_seen": None},
        "newly_denied": [
            pair | times | {
                "dport": 5432, "rule_before": "web-to-db", "rule_after": "default", "flows": 2, "packets": 20,
                "bytes": 2000, "lower_bound": False, "decision_before": "allow", "decision_after": "deny",
            }
        ],
        "newly_allowed": [
            pair | times | {
                "dport": 443, "rule_before": "default", "rule_after": "tls", "flows": 1, "packets": 10, "bytes": 1000,
                "lower_bound": True, "decision_before": "deny", "decision_after": "allow",
            }
        ],
        "uncertain": [], "crossing": 0, **times, "since": None, "until": None, "node": None,
        "candidate": {"file": "new.yaml"}, "against": None, "identities": "day",
    }  # fmt: skip


def test_nothing_recorded(memory: Store) -> None:
    document = asked(memory, SHOP)
    assert (document["flows"], document["first_seen"], document["unchanged"]["flows"]) == (0, None, 0)


def test_the_policy_that_decided_changes_nothing(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, flow(1), flow(2, dport=443, **DENY), flow(3, dport=22, **DENY | {"rule": 64, "reason": Reason.RULE}))
    document = asked(memory, SHOP)
    assert brief(document) == {}
    assert document["unchanged"]["packets"] == document["packets"] == 30


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"flags": Flag.MIDSTREAM}, "midstream"),
        ({"flow_id": 0, "flags": Flag.UNTRACKED, **DENY, "reason": Reason.HEADLESS_FRAGMENT,
          "rule": RuleId.HEADLESS_FRAGMENT, "dport": 0}, "headless_fragment"),
        ({"flow_id": 0, "flags": Flag.UNTRACKED, **DENY, "reason": Reason.ICMP_UNRELATED,
          "rule": RuleId.ICMP_UNRELATED, "proto": 1, "dport": 8}, "icmp_unrelated"),
    ],
)  # fmt: skip
def test_what_cannot_be_told(memory: Store, fields: dict[str, Any], cause: str) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, batches.verdict(**{"src": WEB, "dst": DB, "dport": 5432} | ALLOW | fields))
    document = asked(memory, "version: 1\ndefault: allow\n")
    assert [(entry["cause"], entry["packets"]) for entry in document["uncertain"]] == [(cause, 1)]
    assert document["uncertain"][0]["lower_bound"] == (cause != "midstream")
    assert (document["newly_allowed"], document["unchanged"]["packets"]) == ([], 0)


def test_malformed_packets_stay_denied(memory: Store) -> None:
    append(memory, batches.untracked(family=0))
    document = asked(memory, "version: 1\ndefault: allow\n")
    assert (brief(document), document["unchanged"]["packets"], document["flows"]) == ({}, 1, 0)


def test_untracked_packets_are_a_lower_bound(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, batches.untracked(src=WEB, dst=DB, dport=5432, event=EventKind.SAMPLE, **ALLOW))
    (entry,) = asked(memory, "version: 1\n")["newly_denied"]
    assert (entry["flows"], entry["packets"], entry["lower_bound"]) == (0, 1, True)


def test_a_packet_without_a_flow_may_be_a_reply(memory: Store) -> None:
    """The kernel judges it both ways, and of the other way its port is not in the record."""
    memory.append(Commit(records=[shop().record()]))
    append(memory, batches.untracked(src=WEB, dst=DB, proto=17, dport=53, event=EventKind.SAMPLE, **ALLOW))
    document = asked(memory, "version: 1\n")
    (entry,) = document["uncertain"]
    assert (entry["cause"], entry["packets"], document["newly_denied"]) == ("untracked", 1, [])
    assert asked(memory, "version: 1\ndefault: allow\n")["unchanged"]["packets"] == 1


def test_report_only_is_a_denial_by_decision(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(
        memory, flow(1, dport=22, **ALLOW), flow(2, dport=22, **DENY), flow(3, dport=22, **DENY, flags=Flag.REPORT_ONLY)
    )
    document = asked(memory, SHOP)
    (entry,) = document["newly_denied"]
    assert (entry["rule_after"], entry["report_only_after"], entry["flows"]) == ("watch", True, 1)
    assert document["unchanged"]["flows"] == 2


def test_without_a_policy_all_was_allowed(memory: Store) -> None:
    start = batches.policy_record("start", revision=0, hash="", yaml="", default="", rules=[], identities=[])
    memory.append(Commit(records=[start]))
    append(memory, flow(1, revision=0, **NO_POLICY), flow(2, revision=0, dport=443, **NO_POLICY))
    document = asked(memory, SHOP)
    assert brief(document) == {"newly_denied": [("web", "db", "tcp", 443, "no_policy", "default", 1, 10)]}
    assert document["unchanged"]["flows"] == 1
    assert asked(memory, "version: 1\n", against=RUNNING)["newly_denied"][0]["rule_before"] == "no_policy"


DHCP = {"src": OTHER, "dst": WEB, "proto": 17, "dport": 68}
BY_DHCP = DHCP | {"rule": RuleId.BUILTIN_DHCP, "decision": Decision.ALLOW, "reason": Reason.BUILTIN}
OFF = SHOP | {"builtins": {"dhcp": False}}


def test_built_in_rules_decide_again_while_they_are_on(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, flow(1, **BY_DHCP))
    assert brief(asked(memory, SHOP)) == {}
    assert brief(asked(memory, OFF)) == {
        "newly_denied": [("world", "web", "udp", 68, "builtin:dhcp", "default", 1, 10)]
    }


def test_a_built_in_rule_that_was_off_may_have_allowed(memory: Store) -> None:
    memory.append(Commit(records=[Day(1, OFF, ("10.0.9.9",)).record()]))
    append(memory, flow(1, **DHCP, **DENY), flow(2, **DHCP | {"dport": 69}, **DENY))
    document = asked(memory, SHOP)
    assert [(entry["cause"], entry["dport"]) for entry in document["uncertain"]] == [("builtin", 68)]
    assert document["unchanged"]["flows"] == 1
    assert asked(memory, SHOP | {"default": "allow"})["uncertain"] == []


# ---- whose identities


def test_identities_are_those_of_the_day(memory: Store) -> None:
    memory.append(Commit(records=[shop(db=["10.0.7.0/24"]).record(), shop(revision=2, time=1).record()]))
    append(memory, flow(1, dst=raw("10.0.7.7")), flow(2, revision=2), flow(3, revision=2, dst=raw("10.0.7.7"), **DENY))
    assert brief(asked(memory, SHOP)) == {}
    moved = brief(asked(memory, SHOP, identities="now"))
    assert moved == {"newly_denied": [("web", "world", "tcp", 5432, "web-to-db", "default", 1, 10)]}


def test_names_the_day_did_not_have_are_the_candidates_own(memory: Store) -> None:
    memory.append(Commit(records=[shop(web=["10.0.5.0/24"]).record()]))
    append(memory, flow(1, src=OTHER, **DENY), flow(2, src=raw("10.0.5.1")))
    candidate = SHOP | {
        "identities": SHOP["identities"] | {"partner": {"addresses": ["192.0.2.0/24"]}},
        "rules": [*SHOP["rules"], {"name": "partners", "from": "partner", "to": {"app": "db"}, "action": "allow"}],
    }  # fmt: skip
    assert brief(asked(memory, candidate)) == {
        "newly_allowed": [("partner", "db", "tcp", 5432, "default", "partners", 1, 10)]
    }


TO_HOST = {"version": 1, "rules": [{"name": "ssh", "to": "host", "ports": ["22/tcp"], "action": "allow"}]}


def test_host_is_where_the_node_was(memory: Store) -> None:
    """Of a revision without addresses those before it; `now`: the last."""
    bare = Day(3, SHOP, (), batches.CLOCK + 3)
    days = [shop(host=("10.0.0.1",)), shop(revision=2, host=("10.0.0.2",), time=2), bare]
    memory.append(Commit(records=[day.record() for day in days]))
    for number, (revision, address) in enumerate([(1, "10.0.0.1"), (2, "10.0.0.1"), (3, "10.0.0.2")], 1):
        rows = flow(number, revision=revision, dst=raw(address), dport=22, **NO_POLICY)
        append(memory, rows, first=2 * number - 2)
    found = asked(memory, TO_HOST)
    assert brief(found) == {"newly_denied": [("web", "world", "tcp", 22, "no_policy", "default", 1, 10)]}
    found = asked(memory, TO_HOST, identities="now")
    assert (found["newly_denied"][0]["flows"], found["unchanged"]["flows"]) == (2, 1)


def test_host_that_was_never_recorded_is_told(memory: Store) -> None:
    memory.append(Commit(records=[shop(host=()).record()]))
    append(memory, flow(1))
    (entry,) = asked(memory, TO_HOST)["uncertain"]
    assert (entry["cause"], entry["flows"]) == ("host_unknown", 1)
    assert asked(memory, SHOP)["uncertain"] == []


def test_a_revision_nobody_recorded(memory: Store) -> None:
    append(memory, flow(1, revision=9, rule=77))
    assert brief(asked(memory, "version: 1\n")) == {
        "newly_denied": [("world", "world", "tcp", 5432, "rule:77", "default", 1, 10)]
    }


def test_a_policy_recorded_without_addresses(memory: Store) -> None:
    """Too large for a message: its names are not known, so the candidate's own count."""
    slim = batches.policy_record(
        yaml="", rules=[RuleInfo(66, "web-to-db", "allow")], identities=[IdentityInfo(16, "web")]
    )
    memory.append(Commit(records=[slim]))
    append(memory, flow(1))
    assert brief(asked(memory, SHOP)) == {}
    with pytest.raises(QueryError, match="the text of the policy of n1 was not recorded"):
        asked(memory, SHOP, against=RUNNING)


# ---- against what


def test_against_the_running_policy_and_a_file(memory: Store) -> None:
    """What was decided is set aside: the day's rules are not those of the last revision."""
    strict = Day(2, without("web-to-db"), ("10.0.9.9",), batches.CLOCK + 5)
    memory.append(Commit(records=[shop().record(), strict.record()]))
    append(memory, flow(1), flow(2, dport=443, **NO_POLICY))
    assert brief(asked(memory, SHOP)) == {"newly_denied": [("web", "db", "tcp", 443, "no_policy", "default", 1, 10)]}
    assert brief(asked(memory, SHOP, against=RUNNING)) == {
        "newly_allowed": [("web", "db", "tcp", 5432, "default", "web-to-db", 1, 10)]
    }
    document = asked(memory, "version: 1\n", against=Text("version: 1\ndefault: allow\n", "old.yaml"))
    assert [entry["rule_before"] for entry in document["newly_denied"]] == ["default", "default"]
    assert document["against"] == "old.yaml"


def test_a_node_whose_running_policy_is_not_known(memory: Store) -> None:
    append(memory, flow(1))
    with pytest.raises(QueryError, match="the running policy of n1 was not recorded"):
        asked(memory, SHOP, against=RUNNING)


# ---- spans, nodes, roll-ups


def test_flows_across_since_count_by_their_difference(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, flow(1), flow(2, time=batches.START + 20 * SECOND))
    begin = batches.CLOCK + batches.START
    (entry,) = asked(memory, "version: 1\n", since=begin + 10 * SECOND)["newly_denied"]
    assert [entry[name] for name in ("flows", "packets", "bytes", "crossing")] == [1, 19, 1926, 1]
    assert (entry["first_seen"], entry["last_seen"]) == (stamp(20), stamp(30))
    (entry,) = asked(memory, "version: 1\n", until=begin + 10 * SECOND)["newly_denied"]
    assert [entry[name] for name in ("flows", "packets", "bytes", "crossing")] == [1, 1, 74, 0]


def test_what_two_nodes_saw_counts_once(memory: Store) -> None:
    memory.append(Commit(records=[shop().record(node=node) for node in ("n1", "n2")]))
    append(memory, flow(1), node="n1")
    append(memory, flow(9), flow(10, dport=443, **NO_POLICY), node="n2")
    roll_up(memory)
    assert asked(memory, SHOP)["flows"] == 2
    assert [asked(memory, SHOP, node=node)["flows"] for node in ("n1", "n2")] == [1, 2]
    with pytest.raises(QueryError, match="no node is called 'n3'") as caught:
        asked(memory, SHOP, node="n3")
    assert caught.value.hint == "recorded are: n1, n2"


def test_of_an_hour_without_its_detail_nothing_is_certain(memory: Store) -> None:
    memory.append(Commit(records=[shop().record()]))
    append(memory, flow(1), flow(2, time=batches.START + 10))
    roll_up(memory)
    fold(memory)
    keep(memory, keep_age=1.0, keep_minutes=1.0)
    assert asked(memory, "version: 1\n")["newly_denied"][0]["packets"] == 20
    since = (batches.CLOCK + batches.START) // HOUR * HOUR + MINUTE
    document = asked(memory, "version: 1\n", since=since)
    assert [(entry["cause"], entry["packets"]) for entry in document["uncertain"]] == [("rolled_up", 20)]
    assert document["newly_denied"] == []


def test_many_revisions_need_few_compiled_policies(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sets of addresses than are kept compiled, each in its turn."""
    monkeypatch.setattr(judges, "KEPT_BYTES", 10 << 20)
    memory.append(Commit(records=[shop(revision=n, time=n, db=[f"10.1.{n}.0/24"]).record() for n in range(1, 80)]))
    for n in range(1, 80):
        append(memory, flow(n, revision=n, dst=raw(f"10.1.{n}.1")), first=2 * n - 2)
    document = asked(memory, SHOP)
    assert (brief(document), document["unchanged"]["flows"]) == ({}, 79)
    assert asked(memory, SHOP, identities="now")["newly_denied"][0]["flows"] == 79


# ---- what goes wrong


def test_a_candidate_that_is_wrong(memory: Store) -> None:
    with pytest.raises(PolicyError, match=r"new\.yaml:2:8: "):
        asked(memory, "version: 1\nrules: 5\n")


def test_who_hears_the_progress_may_end_it(memory: Store) -> None:
    append(memory, flow(1), flow(2, dport=443))

    def stop(rows: int) -> None:
        raise BusyError(f"enough after {rows}")

    with pytest.raises(BusyError, match="enough after 2"):
        audit(memory.cursor(), Question(candidate=Text("version: 1\n")), progress=stop)
