"""docs/operating.md quotes messages that the program can really print, and sizes that are the kernel side's."""

import ast
import configparser
import functools
import re
from collections.abc import Iterator

import pytest
import typer

from schemas.structs import KNOBS, PORTS_PER_SLOT, RULE_COUNTER, dtype
from tests.support.docs import DOCS, ROOT
from ztlens.config import SETTINGS
from ztlens.main import app

TEXT = (DOCS / "operating.md").read_text(encoding="utf-8")
TROUBLE = TEXT.partition("## Troubleshooting")[2]
ENOUGH = 8
"""Letters a message must have of its own, so that `{a}: {b}` does not explain everything."""
NOT_OURS = re.compile(
    r"Permission denied|No space left on device|No such file or directory|JetStream failed to store a msg|"
    r"Connection refused",
    re.I,
)
"""The operating system's or nats-server's own words."""


def patterns(node: ast.AST) -> str | None:
    """What a string expression can become, as a regular expression; None for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value.replace("%d", "\0").replace("%s", "\0")).replace("\0", ".+")
    if isinstance(node, ast.JoinedStr):
        return "".join(patterns(part) or ".*" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = patterns(node.left), patterns(node.right)
        return None if left is None and right is None else f"{left or '.*'}{right or '.*'}"
    return None


def messages() -> Iterator[str]:
    """Every string of the program that could be a message."""
    for room in ("ztlens", "collector", "sink", "policy"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                found = patterns(node)
                if found and sum(c.isalpha() for c in found) >= ENOUGH:
                    yield found


QUOTED = [
    cell.removeprefix("error: ")
    for line in TROUBLE.splitlines() if line.startswith("| ") and not line.startswith("| message")
    for cell in re.findall(r"`([^`]+)`", line.split(" | ")[0])
]  # fmt: skip


@functools.cache
def known() -> list[tuple[re.Pattern[str], str]]:
    """Each of them as a pattern and as plain text."""
    return [(re.compile(found, re.DOTALL), re.sub(r"\\(.)", r"\1", found)) for found in set(messages())]


def printable(part: str) -> bool:
    """Whether some message of the program is `part`, or holds it where it has no variable."""
    return any(pattern.fullmatch(part) or part in plain for pattern, plain in known())


def named(part: str) -> bool:
    """The same, with or without the name in front."""
    return printable(part) or printable(part.partition(": ")[2] or part)


@pytest.mark.parametrize("quoted", QUOTED)
def test_message(quoted: str) -> None:
    """`…` stands for anything; what is left must be ours, but for a name in front."""
    if re.fullmatch(r"\S+policy.yaml:\d+:\d+: …", quoted):
        return
    parts = [part for text in quoted.split("…") if len(part := text.strip(" ()")) >= ENOUGH]
    assert parts
    if not named(quoted):
        for part in parts:
            assert named(part) or NOT_OURS.search(part), part


def test_there_are_messages() -> None:
    assert len(QUOTED) > 20


def test_sizes() -> None:
    knobs = {knob.name: knob for knob in KNOBS}
    each = re.search(r"`FLOWS_MAX` × (\d+)", TEXT)
    assert each and f"{each[1]} bytes each" in knobs["FLOWS_MAX"].meaning
    flows = re.search(r"flow table takes (\d+) MiB, the rule vectors (\d+) MiB", TEXT)
    assert flows and int(flows[1]) == knobs["FLOWS_MAX"].default * int(each[1]) >> 20
    vectors = 3 * 2 * knobs["CLASSES_MAX"].default * knobs["RULES_MAX"].default // 8
    assert int(flows[2]) == vectors >> 20
    assert f"{PORTS_PER_SLOT:,}" in TEXT
    assert f"(`RULES_MAX` + 64) × {dtype(RULE_COUNTER).itemsize}" in TEXT


def units() -> list[configparser.ConfigParser]:
    """Those of systemd that it shows."""
    found = []
    for text in re.findall(r"^```ini\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        found.append(unit)
    return found


def test_units_run_every_service_with_the_privilege_it_needs() -> None:
    """All of it as `up`; or collector, sink and page, a unit each."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    privilege = {}
    for unit in units():
        assert unit["Install"]["WantedBy"] == "multi-user.target"
        service = unit["Service"]
        program, command, *options = service["ExecStart"].split()
        assert program == "/opt/ztlens/.venv/bin/ztlens"
        for name in re.findall(r"ztlens@(\w+)", TEXT) if command == "%i" else [command]:
            known = [word for given in commands[name].params for word in (*given.opts, *given.secondary_opts)]
            assert set(options) <= set(known)
            privilege[name] = (service.get("CapabilityBoundingSet"), service.getboolean("NoNewPrivileges", False))
    assert privilege == {
        "up": (None, False), "collector": ("CAP_BPF CAP_NET_ADMIN CAP_PERFMON", False),
        "sink": ("", True), "web": ("", True),
    }  # fmt: skip


def test_settings_it_names_exist() -> None:
    names = {setting.name for setting in SETTINGS}
    for word in re.findall(r"`((?:keep|stream|query)_\w+)`", TEXT):
        assert word in names
