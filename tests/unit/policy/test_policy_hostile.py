"""Files made to hurt: each is accepted or a PolicyError with its line, in bounded time and memory, and nothing else."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.document import MAX_BYTES, MAX_NODES
from policy.errors import PolicyError
from policy.parse import parse
from tests.support.policies import compiled

FUZZ = settings(max_examples=200, deadline=None, print_blob=True, database=None)
GOOD = """version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10]}
  database: {labels: {app: db}, addresses: [10.0.2.0/24]}
rules:
  - {name: x, from: [web, 10.0.0.0/8], to: {app: db}, ports: [1-2/tcp, 'icmp:8'], action: deny}
"""
HOSTILE = {
    "billion laughs": "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghi")),
    "merge bomb": "version: 1\n<<: {a: b}\n",
    "deep flow": "version: 1\nrules: " + "[" * 1_000_000,
    "deep block": "".join(" " * i + "a:\n" for i in range(2000)),
    "deep keys": "? " * 100_000,
    "deep dashes": "- " * 100_000,
    "long string": f"version: 1\nrules: [{{name: {'n' * 1_000_000}, action: deny}}]",
    "long key": f"version: 1\n{'k' * 1_000_000}: 1",
    "long selector": f"version: 1\nrules: [{{from: {'s' * 1_000_000}, action: deny}}]",
    "long digits": f"version: 1\nrules: [{{dst_port: {'9' * 1_000_000}, action: deny}}]",
    "long length": f"version: 1\nrules: [{{from: 10.0.0.0/{'9' * 1_000_000}, action: deny}}]",
    "long version": f"version: {'1' * 1_000_000}",
    "long port": f"version: 1\nrules: [{{ports: {'1-' * 500_000}1/tcp, action: deny}}]",
    "long spaces": f"version: 1\nrules: [{{ports: '{' ' * 1_000_000}/tcp', action: deny}}]",
    "many values": "version: 1\nrules: [" + "a," * (MAX_NODES + 10) + "]",
    "many directives": "%TAG ! tag:\n" * 100_000,
    "many documents": "--- a\n" * 100_000,
    "too large": "#" * (MAX_BYTES + 1),
    "too large in bytes": "version: 1 #" + "€" * (MAX_BYTES // 2),
    "nul": "version: 1\n\0",
    "other digits": "version: 1\nrules: [{dst_port: ٣, action: deny}]",
    "other digits in an address": "version: 1\nrules: [{from: ١٠.0.0.1, action: deny}]",
    "other spaces": "version:\u00a01\n",
    "binary tag": "version: !!binary MQ==\n",
    "set": "version: 1\nrules: !!set {a}\n",
    "null bytes in quotes": 'version: 1\nrules: [{from: "10.0.0.1\\0", action: deny}]',
    "surrogates in quotes": 'version: 1\nrules: [{name: "\\ud800", action: deny}]',
    "all nulls": "version: ~\nidentities: ~\nrules: ~\nbuiltins: ~\ndefault: ~\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(HOSTILE[name])
    assert caught.value.line > 0
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


SCALARS = [
    "", "~", "1", "0", "-1", "1.5", ".inf", "0x10", "1e9", "99999999999999999999", "true", "no", "2001-01-01", "'q'",
    "any", "world", "host", "a", "allow", "deny", "10.0.0.1", "10.0.0.1/0", "'::1'", "'::/0'", "80/tcp", "53/any",
    "1-2-3/udp", "'icmp:8'", "é", "'\\0'", '"\\x00"', "'😀'", "|\n  text\n", "!!int 3", "&x y", "*x", "<<", "=",
    "- a", "a: b", "tcp", "255",
]  # fmt: skip
KEYS = [
    "version", "default", "identities", "rules", "builtins", "name", "from", "from_except", "to", "to_except", "ports",
    "src_ip", "dst_ip", "dst_port", "proto", "action", "report_only", "sample", "labels", "addresses", "a", "ndp",
    "1", "''", "~", "<<",
]  # fmt: skip
VALUES = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs.items()) + "}"
        ),
    ),
    max_leaves=8,
)


def accepted_or_refused(text: str) -> None:
    """Anything but a PolicyError with a line is a failure."""
    try:
        compiled(text)
    except PolicyError as error:
        assert error.line > 0, error
        assert error.message
        assert str(error).isprintable()


@FUZZ
@given(rules=st.lists(VALUES, max_size=3), identities=VALUES, other=st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_wrong_types_anywhere(rules: list[str], identities: str, other: dict[str, str]) -> None:
    lines = ["version: 1", f"identities: {identities}", "rules:", *(f"  - {rule}" for rule in rules)]
    lines += [f"{key}: {value}" for key, value in other.items()]
    accepted_or_refused("\n".join(lines))


@FUZZ
@given(text=st.text(max_size=200))
def test_any_text(text: str) -> None:
    accepted_or_refused(text)
    accepted_or_refused(f"version: 1\nrules:\n  - name: {text}\n    action: deny\n")


@FUZZ
@given(seed=st.integers(0, 2**32))
def test_a_good_file_with_slips_of_the_finger(seed: int) -> None:
    chance = random.Random(seed)
    text = list(GOOD)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(text))
        text[place : place + chance.randrange(3)] = chance.choice(
            ["", "\t", ":", "{", "]", "-", "\n", "'", "0", "&", "*"]
        )
    accepted_or_refused("".join(text))
