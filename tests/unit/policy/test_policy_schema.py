"""`schemas/policy.schema.json`, which editors use: it takes what the parser takes and knows the same words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

import schemas
from policy.builtin import BUILTINS
from policy.errors import PolicyError
from policy.parse import MAX_RULES, parse
from tests.support.hostile_policies import hostile
from tests.support.policies import as_yaml, policies

SCHEMA = json.loads((Path(schemas.__file__).parent / "policy.schema.json").read_text())
SHIPPED = Path(schemas.__file__).parents[1] / "policy.yaml"
TYPES = {"object": dict, "array": list, "string": str, "null": type(None)}
EXAMPLE = """
version: 1
default: deny
builtins: {ndp: true, mld: false, dhcp: true, dhcpv6: true}
identities:
  frontend: {labels: {app: frontend, env: prod}, addresses: [10.0.1.10, 10.0.1.11]}
  database: {labels: {app: db, env: prod}, addresses: [10.0.2.0/24, "fd00:2::/64"]}
  one: {addresses: 10.0.3.1}
rules:
  - name: web-to-db
    from: frontend
    to: {app: db}
    ports: [5432/tcp, 8000-8100/tcp, 53/any, "icmp:8", any]
    action: allow
    report_only: false
    sample: 100
  - src_ip: 192.168.86.250
    dst_ip: 1.1.1.1
    dst_port: 80
    proto: tcp
    action: allow
  - {from: [world, host, 10.0.0.0/8, {env: prod}], to: any, to_except: [one], ports: "proto:47", action: deny}
"""


def problems(schema: dict[str, Any], value: Any, at: str = "") -> list[str]:
    """The part of JSON Schema 2020-12 that the file uses: where `value` does not fit, in words."""
    schema = dict(schema)
    for ignored in ("$schema", "$id", "title", "description", "default", "$defs"):
        schema.pop(ignored, None)
    found: list[str] = []
    for key, wanted in schema.items():
        match key:
            case "$ref":
                found += problems(SCHEMA["$defs"][wanted.removeprefix("#/$defs/")], value, at)
            case "type":
                kinds = wanted if isinstance(wanted, list) else [wanted]
                found += [] if any(is_a(kind, value) for kind in kinds) else [f"{at}: not {wanted}"]
            case "const" | "enum":
                valid = [wanted] if key == "const" else wanted
                found += [] if any(type(v) is type(value) and v == value for v in valid) else [f"{at}: not {valid}"]
            case "required":
                found += [f"{at}: no {name}" for name in wanted if isinstance(value, dict) and name not in value]
            case "properties":
                found += [
                    p for k, s in wanted.items() if k in as_dict(value) for p in problems(s, value[k], f"{at}.{k}")
                ]
            case "additionalProperties":
                for name in as_dict(value).keys() - schema.get("properties", {}).keys():
                    found += problems(wanted, value[name], f"{at}.{name}") if wanted else [f"{at}: has {name}"]
            case "propertyNames":
                found += [p for name in as_dict(value) for p in problems(wanted, name, f"{at} key")]
            case "items":
                items = value if isinstance(value, list) else []
                found += [p for i, item in enumerate(items) for p in problems(wanted, item, f"{at}[{i}]")]
            case "anyOf":
                found += [] if any(not problems(s, value, at) for s in wanted) else [f"{at}: fits none"]
            case "allOf":
                found += [p for s in wanted for p in problems(s, value, at)]
            case "pattern":
                found += [f"{at}: not /{wanted}/"] if isinstance(value, str) and not re.search(wanted, value) else []
            case "minItems" | "minProperties" | "minLength":
                kind = {"minItems": list, "minProperties": dict, "minLength": str}[key]
                found += [f"{at}: too few"] if isinstance(value, kind) and len(value) < wanted else []
            case "maxItems" | "maxLength":
                found += [f"{at}: too many"] if isinstance(value, list | str) and len(value) > wanted else []
            case "minimum":
                found += [f"{at}: too low"] if is_a("number", value) and value < wanted else []
            case "maximum":
                found += [f"{at}: too high"] if is_a("number", value) and value > wanted else []
            case _:
                raise AssertionError(f"this test does not know {key}")
    return found


def is_a(kind: str, value: Any) -> bool:
    if kind in TYPES:
        return isinstance(value, TYPES[kind])
    if kind == "boolean":
        return isinstance(value, bool)
    return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def test_the_words_are_the_parsers() -> None:
    assert list(SCHEMA["properties"]["builtins"]["properties"]) == list(BUILTINS)
    assert SCHEMA["properties"]["rules"]["maxItems"] == MAX_RULES


@pytest.mark.parametrize("text", [EXAMPLE, SHIPPED.read_text()], ids=["every key", "shipped"])
def test_examples_fit(text: str) -> None:
    parse(text)
    assert problems(SCHEMA, yaml.safe_load(text)) == []


@settings(max_examples=60, deadline=None, print_blob=True, database=None)
@given(policy=policies())
def test_what_the_parser_takes_fits(policy: dict[str, Any]) -> None:
    parse(as_yaml(policy))
    assert problems(SCHEMA, policy) == []


MISTAKES = [
    "{}",
    "{version: 2}",
    "{version: true}",
    "{version: 1, mode: enforce}",
    "{version: 1, default: drop}",
    "{version: 1, builtins: {x: true}}",
    "{version: 1, identities: {any: {addresses: []}}}",
    "{version: 1, identities: {a: {}}}",
    "{version: 1, rules: [{}]}",
    "{version: 1, rules: [{action: drop}]}",
    "{version: 1, rules: [{action: deny, from: []}]}",
    "{version: 1, rules: [{action: deny, from: {}}]}",
    "{version: 1, rules: [{action: deny, ports: 80}]}",
    "{version: 1, rules: [{action: deny, ports: [80/tpc]}]}",
    "{version: 1, rules: [{action: deny, proto: 256}]}",
    "{version: 1, rules: [{action: deny, from: any, src_ip: any}]}",
    "{version: 1, rules: [{action: deny, sample: 0}]}",
]


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_do_not(text: str) -> None:
    assert problems(SCHEMA, yaml.safe_load(text)) != []


CONTENT = re.compile("|".join([
    "is not an address or CIDR", "has bits set behind its length", "IPv4-mapped", "expected a length from",
    "no identity", "is given twice", "is not a name", "is reserved", "is not a label",
    "is not a port", "expected a (port|type) ",
    "the range ends before", "has no ports", "`report_only` is for rules that deny", "expected a protocol number",
    "is not a protocol", "not valid YAML", "is not allowed", "`sample`: expected",
]))  # fmt: skip
"""What the parser may say of a file that fits the schema: it is about words, never about what stands where."""


def test_parser_and_schema_agree_on_structure() -> None:
    """Of files as JSON, whose types nobody can take for others."""
    seen = {"taken": 0, "structure": 0, "content": 0}
    for index in range(1000):
        file = hostile(11, index)
        if len(file.raw) > 20_000:
            continue
        try:
            value = json.loads(file.raw)
        except ValueError:
            continue
        found = problems(SCHEMA, value)
        try:
            parse(file.raw.decode())
        except PolicyError as error:
            seen["structure" if found else "content"] += 1
            assert found or CONTENT.search(error.message), (file.family, str(error), file.raw)
        else:
            seen["taken"] += 1
            assert found == [], (file.family, found, file.raw)
    assert min(seen.values()) > 25, seen
