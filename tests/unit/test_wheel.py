"""What `pip wheel .` makes holds the kernel side as an object, so that a host needs no compiler, and the cookbook."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from collector.kernel.loader_core import read_object
from collector.kernel.sources import source_hash
from web import cookbook

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as git has them, without the object: setuptools leaves things behind where it builds."""
    copy = tmp_path_factory.mktemp("wheel") / "ztlens"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().rstrip("\0").split("\0"):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    assert not (copy / "bpf/core.bpf.o").exists()
    return copy


def test_the_wheel_holds_what_no_module_is(copy: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=copy, capture_output=True, check=True)
    (wheel,) = (copy / "out").glob("ztlens-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        assert {f"bpf/{path.name}" for path in (ROOT / "bpf").glob("*.[ch]")} <= names
        assert packed.read("bpf/core.bpf.o") == read_object(), "the same sources and compiler make the same bytes"
        assert packed.read("web/sql.md") == (ROOT / "docs/sql.md").read_bytes() == cookbook.DOCUMENT.read_bytes()


def test_another_source_makes_another_object(copy: Path) -> None:
    """Where it was built does not matter; what it was built from is in it."""
    source = copy / "bpf/core.bpf.c"
    source.write_text(source.read_text() + "/* changed */\n")
    subprocess.run(["make", "-s", "-C", str(copy / "bpf")], capture_output=True, check=True)
    assert source_hash().encode() not in (copy / "bpf/core.bpf.o").read_bytes()
