"""docs/policy.md: its policies mean what it says, its mistakes are refused as it shows; all documents' YAML parses."""

import ipaddress
import re
from pathlib import Path

import numpy as np
import pytest

from policy import words
from policy.builtin import BUILTINS
from policy.check import KINDS
from policy.compile import Compiled, compile_policy
from policy.errors import PolicyError
from policy.evaluate import evaluate
from policy.model import Policy
from policy.parse import parse
from schemas.codes import PROTOCOLS, Decision
from tests.support.docs import DOCS, Block, blocks, documents, marked
from ztlens.errors import explain
from ztlens.main import main

DOCUMENT = DOCS / "policy.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
POLICIES = marked(DOCUMENT, "policy")
JUDGED = marked(DOCUMENT, "judged")
BROKEN = marked(DOCUMENT, "broken")
SAYS = marked(DOCUMENT, "says")
DIFFS = marked(DOCUMENT, "diff")
WARNS = marked(DOCUMENT, "warns")
NUMBERS = {word: number for number, word in PROTOCOLS.items()}


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def first_column(title: str) -> list[str]:
    """Every `word` in the first column of the tables below a heading."""
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_every_yaml_block_has_its_use() -> None:
    yaml = [block for block in blocks(DOCUMENT) if block.language == "yaml"]
    assert {block.key for block in yaml} == {"policy", "broken"}
    assert len(yaml) == len(POLICIES) + len(BROKEN)
    assert set(SAYS) == set(BROKEN)
    assert set(JUDGED) <= set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_policies(name: str) -> None:
    assert compile_policy(parse(POLICIES[name].text)).policy is not None


@pytest.mark.parametrize("name", BROKEN)
def test_mistakes(name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        compile_policy(parse(BROKEN[name].text))
    assert f"{explain(caught.value)}\n" == SAYS[name].text


def packed(text: str) -> tuple[int, np.void]:
    address = ipaddress.ip_address(text)
    return address.version, np.void(address.packed.rjust(16, b"\0"))


def judged(compiled: Compiled, line: str) -> tuple[str, str]:
    """(decision, because) of the tuple that a line begins with."""
    source, destination, port, *_ = line.split()
    family, src = packed(source)
    _, dst = packed(destination)
    number, _, protocol = port.partition("/") if "/" in port else port.partition(":")[::-1]
    answer = evaluate(
        compiled, np.array([src], "V16"), np.array([dst], "V16"), np.array([family], "u1"),
        np.array([NUMBERS[protocol]], "u1"), np.array([int(number)], "<u2"),
    )  # fmt: skip
    decision = Decision(int(answer["decision"][0])).name.lower()
    return decision, compiled.rule_name(int(answer["rule"][0]))


@pytest.mark.parametrize("name", JUDGED)
def test_meaning(name: str) -> None:
    compiled = compile_policy(parse(POLICIES[name].text))
    for line in JUDGED[name].text.splitlines()[1:]:
        *_, decision, because = line.split(maxsplit=4)
        assert judged(compiled, line) == (decision, because), line


@pytest.mark.parametrize("pair", DIFFS)
def test_differences(pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name in pair.split():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(POLICIES[name].text)
    assert main(["policy", "diff", *map(str, files)]) == 1
    assert capsys.readouterr().out == DIFFS[pair].text


@pytest.mark.parametrize("name", WARNS)
def test_warnings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICIES[name].text)
    assert main(["policy", "check", "policy.yaml"]) == 0
    assert capsys.readouterr().out == WARNS[name].text


def test_kinds_of_warnings() -> None:
    assert first_column("Warnings") == list(KINDS)


def test_port_entries() -> None:
    for entry in first_column("Ports"):
        assert words.port_spans(entry), entry


def test_keys_are_those_of_the_language() -> None:
    for key in first_column("Keys"):
        known = f"version: 1\nrules:\n  - {{{key}: }}\n", f"{key}: \n"
        assert not all("has no key" in refused(text) for text in known), key
    shown = refused("version: 1\nrules:\n  - {zzzzzzzz: 1}\n")
    missing = set(re.findall(r"[a-z_]+", shown.partition("expected ")[2])) - set(first_column("Keys"))
    assert missing == set()


def refused(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return f"{caught.value} {caught.value.hint}"


def test_builtins() -> None:
    assert first_column("Built-in rules") == [f"builtin:{name}" for name in BUILTINS]


def _others() -> list[Block]:
    return [b for file in documents() if file != DOCUMENT for b in blocks(file) if b.language == "yaml" and not b.key]


def test_policies_of_other_documents() -> None:
    """YAML that is no policy bears a mark of its own."""
    for block in _others():
        policy = parse(block.text, str(block))
        assert isinstance(policy, Policy)
        compile_policy(policy)


def test_example_policy_is_the_shipped_one() -> None:
    root = Path(__file__).parents[2]
    assert (root / "policy.yaml").resolve() == root / "ztlens/demo/policy.yaml"
    compile_policy(parse((root / "policy.yaml").read_text(encoding="utf-8")))
