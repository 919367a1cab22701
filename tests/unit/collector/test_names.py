"""Names of numbers by revision, and the file that carries policies over a restart."""

import stat
from pathlib import Path

import pytest

from collector.memory import KEEP, Kept, Memory
from collector.names import KEEP as KEEP_NAMES
from collector.names import RevisionNames
from policy.compile import compile_policy
from policy.parse import parse

POLICY = """version: 1
default: deny
identities:
  web: {addresses: [10.0.0.0/24]}
rules:
  - {name: first, from: web, to: any, action: allow}
"""


def test_each_revision_has_its_own_names() -> None:
    names = RevisionNames()
    names.remember(0, compile_policy(None))
    names.remember(1, compile_policy(parse(POLICY)))
    names.remember(2, compile_policy(parse(POLICY.replace("first", "second").replace("web", "shop"))))
    assert [names.rule(revision, 64) for revision in range(4)] == [None, "first", "second", None]
    assert [names.identity(revision, 16) for revision in range(4)] == [None, "web", "shop", None]
    assert (names.rule(1, 65), names.identity(1, 17)) == (None, None)
    assert (names.rule(9, 0), names.rule(9, 16), names.identity(9, 0)) == ("default", "builtin:ndp", "world")


def test_the_oldest_revisions_are_forgotten() -> None:
    names, compiled = RevisionNames(), compile_policy(parse(POLICY))
    for revision in range(KEEP_NAMES + 2):
        names.remember(revision, compiled)
    assert [names.rule(revision, 64) for revision in (0, 1, 2)] == [None, None, "first"]


def kept(revision: int, ring: str = "r") -> Kept:
    return Kept(ring, revision, "p.yaml", "h", f"text {revision}", "root(0)")


def test_memory_outlives_its_process(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "run")
    memory.load()
    for revision in (2, 1, 3):
        memory.keep(kept(revision))
    memory.keep(kept(1, "other"))
    heir = Memory(tmp_path / "run")
    heir.load()
    assert heir.of("r") == [kept(1), kept(2), kept(3)]
    assert heir.of("other") == [kept(1, "other")]
    (file,) = (tmp_path / "run").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    heir.forget()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_revision_tried_again_replaces_itself_and_the_file_stays_small(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for _ in range(3):
        memory.keep(kept(1))
    assert memory.of("r") == [kept(1)]
    for revision in range(2, 2 * KEEP):
        memory.keep(kept(revision))
    assert [k.revision for k in memory.of("r")] == list(range(KEEP, 2 * KEEP))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[{"ring": "r"}]', b"\xff"])
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policies.json").write_bytes(content)
    memory = Memory(tmp_path)
    memory.load()
    assert memory.of("r") == []
    memory.keep(kept(1))
    assert memory.of("r") == [kept(1)]
