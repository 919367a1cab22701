"""What the commands that run something hand on."""

from pathlib import Path

import pytest

from ztlens import config
from ztlens.commands.service import program


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"instance": "default", "state": "/var/lib/ztlens"}, []),
        ({"instance": "lab"}, ["--instance", "lab"]),
        ({"state": "/srv/z"}, ["--state", "/srv/z"]),
        ({"instance": "lab", "run_dir": "/r un", "database": "/d"},
         ["--instance", "lab", "--run-dir", "/r un", "--database", "/d"]),
    ],
)  # fmt: skip
def test_a_copied_command_reaches_the_installation(
    options: dict[str, str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it was named; a shell reads the host's own file and no file or environment of ours."""
    host = tmp_path / "host.toml"
    monkeypatch.setattr(config, "DEFAULT_FILE", host)
    monkeypatch.setenv("ZTLENS_STATE", "/not/this")
    ours = tmp_path / "ours.toml"
    ours.write_text("".join(f'{name} = "{value}"\n' for name, value in options.items()))
    for found in (config.load(options, {}, Path("/dev/null")), config.load({}, {}, ours)):
        assert program(found) == ("sudo", "ztlens", *words)
        host.write_text("this is not TOML")
        assert program(found) == ("sudo", "ztlens", *words)
        host.write_text('state = "/host"\n')
        state = ("--state", str(found.state))
        assert state == program(found)[2 + 2 * ("--instance" in words) :][:2]
        host.write_text(ours.read_text())
        assert program(found) == ("sudo", "ztlens")
        host.unlink()
