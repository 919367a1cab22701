"""Filters as people type them, and what they take away."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from policy.parse import parse
from schemas import times
from schemas.codes import EventKind
from schemas.filters import Filters
from schemas.messages import RuleInfo
from schemas.verdict import STRIDE
from sink.store import Commit, memory_store, prepare, rollup
from tests.support import batches, served
from web import words
from web.errors import WebError
from web.page import WORDS
from web.settings import WebSettings
from web.span import CHOICES, Span

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
FLOW = {
    "src": "10.0.1.10", "sport": 40000, "dst": "10.0.2.5", "dport": 5432, "proto": "tcp", "src_identity": "frontend",
    "dst_identity": "database", "ring": "r1", "flow": "1-7", "decision": "deny", "reason": "default", "rule": "default",
}  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("", {}),
        ("deny", {"decision": ["deny"]}),
        ("dropped 10.0.0.0/8", {"outcome": ["dropped"], "ip": ["10.0.0.0/8"]}),
        ("443 8000-8100/tcp", {"port": ["443", "8000-8100/tcp"]}),
        ("fd00::1 frontend", {"ip": ["fd00::1"], "identity": ["frontend"]}),
        ("tcp icmpv6 my-db.2 identity:17", {"protocol": ["tcp", "icmpv6"], "identity": ["my-db.2", "identity:17"]}),
        ("decision=deny decision=allow", {"decision": ["deny", "allow"]}),
        ("--decision deny --to-identity 'my db' --port=443/tcp", {
            "decision": ["deny"], "to_identity": ["my db"], "port": ["443/tcp"]}),
        ('where="packets > 10 AND dport < 1024"', {"where": ["packets > 10 AND dport < 1024"]}),
        ("verdict=deny proto=udp to-ip=10.0.0.1", {"decision": ["deny"], "protocol": ["udp"], "to_ip": ["10.0.0.1"]}),
        ("from_label=app=web", {"from_label": ["app=web"]}),
    ],
)  # fmt: skip
def test_parsed(typed: str, given: dict[str, list[str]]) -> None:
    assert words.parsed(typed) == given


@pytest.mark.parametrize(
    ("typed", "said", "hint"),
    [
        ('where="x', "The filter is not closed: No closing quotation", 'Write where="packets > 10".'),
        ("desision=deny", "There is no filter 'desision'", "Did you mean decision?"),
        ("-x", "There is no filter '-x'", ", ".join(WORDS)),
        ("deny --since 1h", "There is no filter 'since'", ", ".join(WORDS)),
        ("deny --where", "The filter where has no value", "Write where=…"),
        ("--to-identity --port 443", "The filter to_identity has no value", "Write to_identity=…"),
        ("port=", "The filter port has no value", "Write port=…"),
        *(
            (word, f"{word!r} is not an address or prefix", "write 10.0.1.10, 10.0.0.0/8 or fd00::/64")
            for word in ("8.8.8.8/33", "8.8.8.300", "fd00::/129", "fd00:::1", "", "1234567")
        ),
    ],
)
def test_not_understood(typed: str, said: str, hint: str) -> None:
    with pytest.raises(WebError) as error:
        words.parsed(typed or '""')
    assert (str(error.value), error.value.hint) == (said, hint)


def test_the_words_are_those_of_observe() -> None:
    known = set(Filters.__dataclass_fields__)
    assert set(WORDS) == known - {"event", "direction", "since", "until"}


def test_observe() -> None:
    settings = WebSettings(Path("s"), Path("r"), Path("t"))
    given = {"to_identity": ["it's"], "port": ["443/tcp", "80"]}
    assert words.observe(settings, given, Span("1h")) == (
        "sudo ztlens observe --to-identity 'it'\"'\"'s' --port 443/tcp --port 80 --since 1h"
    )
    span = Span("2026-11-22T05:00:00Z", "2026-11-22T05:10:00Z")
    lab = dataclasses.replace(settings, program=("sudo", "ztlens", "--state", "/my lab"))
    assert words.observe(lab, {}, span) == (
        "sudo ztlens --state '/my lab' observe --since 2026-11-22T05:00:00Z --until 2026-11-22T05:10:00Z"
    )


def as_the_kernel_numbers(rows: np.ndarray) -> np.ndarray:
    """The same flows, whose numbers rise on each CPU with the moments they began."""
    new = rows[rows["event"] == EventKind.NEW]
    numbers = {}
    for cpu in np.unique(new["flow_id"] >> 48):
        mine = new[new["flow_id"] >> 48 == cpu]
        numbers |= dict(zip(mine["flow_id"][np.argsort(mine["time"])], np.sort(mine["flow_id"]), strict=True))
    out = rows.copy()
    out["flow_id"] = [numbers[number] for number in rows["flow_id"]]
    return out


async def test_sql_has_the_rows_of_the_table() -> None:
    """Of spans with and without ends, of a store that is rolled up in part, whose flows are open and ended."""
    traffic, cut = as_the_kernel_numbers(batches.traffic(1500, seed=7).rows), 900
    store = memory_store()
    for rows, first in ((traffic[:cut], 0), (traffic[cut:1200], cut)):
        records = [batches.policy_record()] if not first else []
        store.append(Commit(batches=[prepare(batches.batch(rows, first * STRIDE))], records=records))
        while not first and rollup.step(store):
            pass
    begin, end = (times.rfc3339(batches.CLOCK + int(t), digits=6) for t in np.quantile(traffic["time"], [0.3, 0.5]))
    denied = {"decision": ["deny"], "protocol": ["tcp"]}
    found = []
    async with served.asking(store) as asker:
        for span, given in (
            (Span("all"), {}), (Span(begin), {}), (Span("all", end), {}), (Span(begin, end), {}), (Span(begin), denied),
        ):  # fmt: skip
            table = await asker.pages("flows", "flows", **span.query, **given, limit=500)
            asked = await asker.post("sql", sql=words.sql(given, span), format="json")
            assert sorted((one["ring"], one["flow_id"]) for one in asked) == sorted(
                (one["ring"], int(one["flow"].partition("-")[2])) for one in table
            ), span
            found.append(len(table))
    assert found == [403, 256, 252, 105, 31]
    store.close()


@pytest.mark.parametrize(
    ("given", "span", "said"),
    [
        ({"decision": ["perhaps"]}, Span(), "'perhaps' is not a decision"),
        ({}, Span("1h", "2h"), "--until is not later than --since"),
    ],
)
def test_no_sql_of_what_cannot_be_understood(given: dict[str, list[str]], span: Span, said: str) -> None:
    with pytest.raises(WebError, match=said):
        words.sql(given, span)


def written(name: str, source: str, target: str, port: str) -> dict[str, Any]:
    return {"name": name, "from": source, "to": target, "ports": [port], "action": "allow"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, written("frontend-to-database-5432-tcp", "frontend", "database", "5432/tcp")),
        ({"dport": 53, "proto": "udp"}, written("frontend-to-database-53-udp", "frontend", "database", "53/udp")),
        ({"src_identity": "world"}, written("10-0-1-10-to-database-5432-tcp", "10.0.1.10", "database", "5432/tcp")),
        (
            {"src_identity": "identity:99", "src": "fd00::1"},
            written("fd00-1-to-database-5432-tcp", "fd00::1", "database", "5432/tcp"),
        ),
        ({"src_identity": "host", "src": None}, written("host-to-database-5432-tcp", "host", "database", "5432/tcp")),
        ({"proto": "icmp", "dport": 8}, written("frontend-to-database-icmp-8", "frontend", "database", "icmp:8")),
        ({"proto": "47", "dport": 0}, written("frontend-to-database-proto-47", "frontend", "database", "proto:47")),
    ],
)
def test_rule(change: dict[str, Any], rule: dict[str, Any]) -> None:
    """It stands in a policy as it is, and is taken; its name is one that is free."""
    line = words.rule(FLOW | change)
    again = words.rule(FLOW | change, {rule["name"]})
    third = words.rule(FLOW | change, {rule["name"], rule["name"] + "-2"})
    assert yaml.safe_load(line) == [rule]
    assert [yaml.safe_load(one)[0]["name"] for one in (again, third)] == [rule["name"] + "-2", rule["name"] + "-3"]
    parsed_by_the_engine(line, again, third)


def parsed_by_the_engine(*lines: str) -> None:
    names = "\n".join(f"  {name}: {{addresses: [192.0.2.{i}]}}" for i, name in enumerate(("frontend", "database"), 1))
    rules = "".join(f"  {line}\n" for line in lines)
    parse(f"version: 1\ndefault: deny\nidentities:\n{names}\nrules:\n{rules}", "policy.yaml")


def test_a_rule_of_what_a_rule_denies_says_so() -> None:
    line = words.rule(FLOW | {"reason": "rule", "rule": "no-shortcut-to-database"})
    assert line == (
        "- {name: frontend-to-database-5432-tcp, from: frontend, to: database, ports: [5432/tcp], action: allow}"
        "  # rule no-shortcut-to-database denies this; deny beats allow: change that rule"
    )
    parsed_by_the_engine(line, words.rule(FLOW | {"dport": 1, "reason": "rule", "rule": "a\n- {b: #"}))
    assert "#" not in words.rule(FLOW | {"reason": "rule", "rule": "web-to-db", "decision": "allow"})


def test_a_rule_of_long_names() -> None:
    line = words.rule(FLOW | {"src_identity": "a" * 63, "dst_identity": "b" * 63})
    name = yaml.safe_load(line)[0]["name"]
    assert name == "a" * 63 + "-to-" + "b" * 33 + "-5432-tcp"


@pytest.mark.parametrize(
    "change",
    [
        {"proto": ""}, {"dport": 0}, {"proto": "300"}, {"src_identity": "world", "src": None},
        {"dst_identity": "identity:7", "dst": None}, {"reason": "malformed"}, {"reason": "headless_fragment"},
        {"reason": "icmp_unrelated"},
    ],
)  # fmt: skip
def test_no_rule_of_what_none_can_say(change: dict[str, Any]) -> None:
    assert words.rule(FLOW | change) == ""


async def test_names_of_the_rules_that_run() -> None:
    """Of that node, of its newest revision alone."""
    told = [("n1", 1, "start", "old"), ("n1", 2, "revision", "new"), ("n2", 3, "start", "elsewhere")]
    store = memory_store()
    for time, (node, number, kind, name) in enumerate(told):
        one = RuleInfo(id=64, name=name, action="allow", text="")
        store.append(
            Commit(records=[batches.policy_record(
                kind, node=node, ring=f"ring-{node}", revision=number, rules=[one], time=batches.CLOCK + time,
            )])
        )  # fmt: skip
    async with served.asking(store) as asker:
        for node, known in (("n1", ["new"]), ("n2", ["elsewhere"]), ("n3", [])):
            asked = await asker.post("sql", sql=words.RULE_NAMES, parameters={"node": node}, format="json")
            assert [one["name"] for one in asked] == known
    store.close()


@pytest.mark.parametrize("name", ['a"b', "a: b", "{x}", "a\nb", "[1]", "é", "- a", "#"])
def test_a_hostile_name_stays_one_text(name: str) -> None:
    assert yaml.safe_load(words.rule(FLOW | {"src_identity": name}))[0]["from"] == name


def test_spans() -> None:
    assert Span("15m").live and not Span("1h", "5m").live
    assert Span("all").query == {} and Span("15m").query == {"since": "15m"}
    fixed = Span("2026-11-22T05:00:00Z", "2026-11-22T05:10:00Z")
    assert fixed.around(NOW) == Span("2026-11-22T04:50:00Z", "2026-11-22T05:20:00Z")
    assert Span("15m").around(NOW) == Span("2026-11-22T05:15:00Z", "")
    assert fixed.moved(1, NOW) == Span("2026-11-22T05:10:00Z", "2026-11-22T05:20:00Z")
    assert fixed.moved(-1, NOW) == Span("2026-11-22T04:50:00Z", "2026-11-22T05:00:00Z")
    assert Span("2026-11-22T05:55:00Z", "2026-11-22T05:59:00Z").moved(1, NOW) == Span(
        "2026-11-22T05:56:00Z", "2026-11-22T06:00:00Z"
    )
    assert fixed.wider(NOW) == Span("2026-11-22T04:50:00Z", "2026-11-22T05:20:00Z")
    assert Span("15m").wider(NOW) == Span("1h") and Span("30d").wider(NOW) == Span("all")


@pytest.mark.parametrize("span", [Span("nonsense"), Span("all"), Span("1h", "nonsense"), Span("99999999999w")])
def test_what_is_no_time_is_left_to_the_sink_to_refuse(span: Span) -> None:
    for moved in (span.around(NOW), span.moved(-1, NOW), span.wider(NOW)):
        assert moved == span


def test_choices_are_spans() -> None:
    assert all(choice == "all" or Span(choice).bounds(NOW) for choice in CHOICES)
