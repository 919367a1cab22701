"""The loader `core` where there is no compiler, no kernel headers, no BCC: hidden in a mount namespace."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import Installation
from tests.support.kernel import udp_frame
from tests.support.netns import wait_for

TOOLS = ("clang", "llc", "llvm-strip", "gcc", "cc")


@pytest.fixture
def bare() -> tuple[str, ...]:
    """What stands before a command that shall find none of these."""
    where = subprocess.run(
        ["/usr/bin/python3", "-c", "import bcc; print(bcc.__path__[0])"], capture_output=True, text=True, check=True
    )
    bcc = where.stdout.strip()
    empty = [Path("/lib/modules"), Path("/usr/src"), Path(bcc), *Path("/usr/lib").glob("llvm-*")]
    steps = [f"mount -t tmpfs none {path.resolve()}" for path in empty if path.exists()]
    steps.append(f"""echo "raise ModuleNotFoundError(\\"No module named 'bcc'\\")" >{bcc}/__init__.py""")
    programs = {Path(found).resolve() for tool in TOOLS if (found := shutil.which(tool))}
    steps += [f"mount --bind /dev/null {path}" for path in programs if not str(path).startswith("/usr/lib/llvm")]
    return ("unshare", "--mount", "sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh")


def test_nothing_to_compile_with_is_there(bare: tuple[str, ...]) -> None:
    for tool in ("clang", "llc", "gcc"):
        assert subprocess.run([*bare, tool, "--version"], capture_output=True, check=False).returncode != 0, tool
    done = subprocess.run([*bare, sys.executable, "-c", "import bcc"], capture_output=True, text=True, check=False)
    assert "No module named 'bcc'" in done.stderr
    listed = subprocess.run([*bare, "ls", "/lib/modules"], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


@pytest.mark.parametrize("loader", ["core", "auto"])
def test_up_without_compiler_and_headers(
    one: Installation, wired: tuple[str, socket.socket], bare: tuple[str, ...], loader: str
) -> None:
    _, wire = wired
    up = one.start("up", "--loader", loader, prefix=bare)
    up.until_said("Ctrl-C ends it")
    for port in range(1000, 1005):
        wire.send(udp_frame("10.0.0.1", port, "10.0.0.2", 53, bytes(18)))
    wait_for(lambda: one.value("SELECT count(*) FROM verdicts") == 5, "verdicts")
    status = one.status()
    assert status["loader"] == "core"
    why = "asked for" if loader == "core" else "its object is there"
    assert f"loaded by core: {why}" in status["notices"]
    one.down(up)
    assert one.leftovers() == []


def test_doctor_finds_nothing_missing(one: Installation, bare: tuple[str, ...]) -> None:
    told = one.run("doctor", "-o", "json", prefix=bare, status=None).stdout
    features = {feature["name"]: feature for feature in json.loads(told)["features"]}
    assert features["loader"]["detail"] == "core: its object is there"
    for name in ("headers", "bcc"):
        assert features[name]["ok"] and features[name]["detail"].endswith("; needed by --loader bcc alone")


def test_bcc_says_what_it_lacks(one: Installation, bare: tuple[str, ...], tmp_path: Path) -> None:
    nowhere = tmp_path / "bytecode"
    nowhere.mkdir(mode=0o700)
    done = one.run("up", "--loader", "bcc", prefix=bare, status=3, ZTLENS_BYTECODE_CACHE=os.fspath(nowhere))
    assert "error: BCC is not installed" in done.stderr
    assert "hint: scripts/setup.sh installs it (Debian's python3-bpfcc)" in done.stderr
