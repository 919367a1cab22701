"""Links and paths of the documents lead somewhere, and none leaves the repository."""

import re
from pathlib import Path

import pytest

from tests.support.docs import ROOT, documents

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    plain = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.name)
def test_links(file: Path) -> None:
    for target in LINK.findall(file.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.is_relative_to(ROOT), target
        assert there.exists(), target
        if fragment:
            assert fragment in anchors(there), target


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.name)
def test_stands_on_its_own(file: Path) -> None:
    assert "shared/design" not in file.read_text(encoding="utf-8")


def test_the_first_screen_has_both_commands() -> None:
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:24])
    assert "sudo ./scripts/demo.sh" in first
    assert "sudo ./scripts/test.sh" in first


def test_scripts_named_exist() -> None:
    for file in documents():
        for name in re.findall(r"scripts/[a-z]+\.sh", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file.name}: {name}"


def test_documents_named_in_the_code_exist() -> None:
    """Hints and comments send people to documents."""
    for room in ("bpf", "schemas", "policy", "collector", "sink", "ztlens", "scripts", "deploy", "tests"):
        for file in (ROOT / room).rglob("*"):
            if file.suffix in (".py", ".h", ".c", ".sh", ".yaml") and "node_modules" not in file.parts:
                for name in re.findall(r"docs/[a-z-]+\.md", file.read_text(encoding="utf-8")):
                    assert (ROOT / name).exists(), f"{file.relative_to(ROOT)}: {name}"
