"""Counters by rule: exact over revisions, never falling, bounded."""

import numpy as np

from collector.tally import PacketTally, RuleSums, VerdictTally
from schemas.codes import Decision, Direction, Reason
from schemas.metrics import OTHER, RULES_MOST
from tests.support.fake_datapath import make_rows

RULES = {1: ["a", "b"], 2: ["b", "c"], 3: ["a"], 4: ["c"]}


def name(revision: int, number: int) -> str | None:
    if number == 0:
        return "default"
    rules = RULES.get(revision, [])
    return rules[number - 64] if 0 <= number - 64 < len(rules) else None


def test_verdicts_are_counted_by_what_they_say() -> None:
    tally = VerdictTally()
    tally.sums.keep(RULES[2])
    old, now = make_rows(3, rule=65), make_rows(4, first_flow=9, rule=64)
    denied = make_rows(2, first_flow=20, rule=0, decision=Decision.DENY)
    old["revision"], now["revision"], denied["revision"] = 1, 2, 2
    gone = make_rows(5, first_flow=30, rule=64)  # `a`, which was gone before this tally began
    gone["revision"] = 1
    old["reason"] = now["reason"] = gone["reason"] = Reason.RULE
    denied["reason"], denied["direction"] = Reason.DEFAULT, Direction.REPLY
    for rows in (old, np.concatenate((now, denied)), gone):
        tally.count(rows)
    assert dict(tally.sums.items()) == {}
    tally.name(name)
    assert dict(tally.sums.items()) == {
        ("b", "allow", "rule", "original"): 7, ("default", "deny", "default", "reply"): 2,
        (OTHER, "allow", "rule", "original"): 5,
    }  # fmt: skip


def test_no_more_rules_than_is_said() -> None:
    sums = RuleSums()
    sums.keep([f"r{n}" for n in range(RULES_MOST + 50)])
    for n in range(RULES_MOST + 50):
        sums.add(f"r{n}", (), 1)
    found = dict(sums.items())
    assert len(found) == RULES_MOST + 1
    assert found[OTHER,] == 50
    assert found[f"r{RULES_MOST - 1}",] == 1


def test_rules_that_left_keep_their_sums_while_there_is_room_and_all_sums_together_never_fall() -> None:
    sums = RuleSums()
    sums.keep(["gone", "first", "both"])
    for rule, n in (("gone", 1), ("first", 2), ("both", 4), ("default", 8)):
        sums.add(rule, ("passed",), n)
    sums.keep(["both", *(f"r{n}" for n in range(RULES_MOST - 3))])  # room for two of the three that were
    assert dict(sums.items()) == {
        ("gone", "passed"): 1, ("first", "passed"): 2, ("both", "passed"): 4, ("default", "passed"): 8,
    }  # fmt: skip
    sums.keep(["new", "both", *(f"r{n}" for n in range(RULES_MOST - 3))])
    expected = {("gone", "passed"): 1, (OTHER, "passed"): 2, ("both", "passed"): 4, ("default", "passed"): 8}
    assert dict(sums.items()) == expected
    sums.add("first", ("passed",), 16)  # judged before the switch
    sums.keep(["first"])  # it is back, and what it had stays where it went
    sums.add("first", ("passed",), 32)
    assert dict(sums.items()) == {
        (OTHER, "passed"): 19, ("first", "passed"): 32, ("both", "passed"): 4, ("default", "passed"): 8,
    }  # fmt: skip


class Datapath:
    """Two slots of rule counters and their baselines."""

    def __init__(self) -> None:
        kind = [("packets_passed", "u8"), ("bytes_passed", "u8"), ("packets_dropped", "u8"), ("bytes_dropped", "u8")]
        self.tables = [np.zeros(70, kind) for _ in (0, 1)]
        self.baselines = [table.copy() for table in self.tables]
        self.revision = 1

    def rule_baseline(self, slot: int) -> np.ndarray:
        return self.baselines[slot].copy()

    def hit(self, slot: int, number: int, packets: int, dropped: int = 0) -> None:
        row = self.tables[slot][number : number + 1]
        row["packets_passed"] += packets
        row["bytes_passed"] += 100 * packets
        row["packets_dropped"] += dropped

    def apply(self, revision: int) -> None:
        self.baselines[revision & 1] = self.tables[revision & 1].copy()
        self.revision = revision


def test_packets_belong_to_the_rule_that_had_the_number_then() -> None:
    datapath = Datapath()
    tally = PacketTally(datapath, name, lambda revision: RULES[revision])  # type: ignore[arg-type]

    def look() -> dict[str, int]:
        tally.look([table.copy() for table in datapath.tables])
        return {rule: n for (rule, outcome), n in tally.packets.items() if outcome == "passed" and n}

    datapath.hit(1, 64, 5)
    assert look() == {"a": 5}
    datapath.hit(1, 65, 2, dropped=3)
    datapath.apply(2)
    datapath.hit(0, 64, 10)  # `b` by its new number
    datapath.hit(1, 64, 1)  # a packet that was judged before the switch
    found = look()
    assert found == {"b": 12, "a": 6}
    datapath.hit(1, 65, 4)
    datapath.apply(3)  # before anybody looked: these four were still b's, which is gone now
    datapath.hit(1, 64, 7)
    assert look() == {"b": 16, "a": 13}
    assert dict(tally.packets.items())["b", "dropped"] == 3
    assert dict(tally.bytes.items())["a", "passed"] == 1300


def test_rules_are_there_before_their_first_packet() -> None:
    datapath = Datapath()
    tally = PacketTally(datapath, name, lambda revision: RULES[revision])  # type: ignore[arg-type]
    tally.look(datapath.tables)
    assert {rule for (rule, _), n in tally.packets.items() if not n} >= {"a", "b", "default", "builtin:ndp"}
    assert OTHER not in {rule for (rule, _), _ in tally.packets.items()}


def test_what_an_adopted_datapath_counted_before_is_begun_with() -> None:
    datapath = Datapath()
    datapath.hit(1, 64, 5)
    datapath.hit(0, 64, 9)  # of a revision this collector never knew
    tally = PacketTally(datapath, name, lambda revision: RULES[revision])  # type: ignore[arg-type]
    tally.look([table.copy() for table in datapath.tables])
    assert {rule: n for (rule, outcome), n in tally.packets.items() if n and outcome == "passed"} == {"a": 5}
