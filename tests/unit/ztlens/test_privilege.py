"""What the parts of `up` are left of root's privilege."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from ztlens import config, privilege
from ztlens.config import Settings
from ztlens.privilege import kept, without


def settings(tmp_path: Path, **values: str) -> Settings:
    where = {"state": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")}
    return config.load(where | values, {}, Path(os.devnull))


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A directory of another user."""
    made = tmp_path / "home"
    made.mkdir(0o700)
    os.chown(made, 65534, 65534)
    return made


def test_none_where_all_is_roots(tmp_path: Path) -> None:
    assert kept(settings(tmp_path), "/bin/true") == set()


@pytest.mark.parametrize("name", ["state", "run_dir", "database", "archive"])
def test_files_below_what_is_anothers(name: str, tmp_path: Path, strange: Path) -> None:
    (tmp_path / "link").symlink_to(strange)
    assert kept(settings(tmp_path, **{name: str(tmp_path / "link/not/yet")}), "/bin/true") == {"dac_override"}


def test_programs_of_another(tmp_path: Path, strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nats-server, Python's environment, a clone."""
    assert kept(settings(tmp_path), str(strange / "nats-server")) == {"dac_override"}
    with monkeypatch.context() as patch:
        patch.setattr("sys.prefix", str(strange / ".venv"))
        assert kept(settings(tmp_path), "/bin/true") == {"dac_override"}
    monkeypatch.setattr(privilege, "__file__", str(strange / "ztlens/privilege.py"))
    assert kept(settings(tmp_path), "/bin/true") == {"dac_override"}


@pytest.mark.parametrize(
    ("web", "needed"),
    [("127.0.0.1:80", {"net_bind_service"}), ("[::1]:1023", {"net_bind_service"}), ("127.0.0.1:1024", set()),
     ("127.0.0.1:0", set()), ("off", set())],
)  # fmt: skip
def test_ports_below_1024(web: str, needed: set[str], tmp_path: Path) -> None:
    assert kept(settings(tmp_path, web=web), "/bin/true") == needed


@pytest.mark.parametrize(("left", "bits"), [([], 0), (["dac_override", "net_bind_service"], 1 << 1 | 1 << 10)])
def test_the_kernel_takes_it(left: list[str], bits: int) -> None:
    """Of a program that a program starts, too."""
    command = ["setpriv", *without(left), "--", "sh", "-c", "exec env cat /proc/self/status"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sets = dict(re.findall(r"^(Cap\w+|NoNewPrivs):\s+(\w+)$", found, re.MULTILINE))
    assert {name: int(value, 16) for name, value in sets.items()} == {
        "CapInh": 0, "CapPrm": bits, "CapEff": bits, "CapBnd": bits, "CapAmb": 0, "NoNewPrivs": 1,
    }  # fmt: skip
