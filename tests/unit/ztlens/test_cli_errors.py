"""Every command with bad input: the exit status of docs/cli.md, nothing on stdout, exactly two lines on stderr."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ztlens.main import app, main

GOOD_POLICY = "version: 1\ndefault: deny\nrules:\n  - {from: any, to: any, ports: [443/tcp], action: allow}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation of which nothing is there, with files for the tests to name."""
    for name in [name for name in os.environ if name.startswith("ZTLENS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "empty.toml").touch()
    monkeypatch.setenv("ZTLENS_CONFIG", str(tmp_path / "empty.toml"))
    monkeypatch.setenv("ZTLENS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ZTLENS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ZTLENS_INSTANCE", f"test-{os.getpid()}")
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD_POLICY)
    Path("broken.yaml").write_text("version: 1\nrules: [\n")
    Path("wrong.yaml").write_text("version: 1\nrules:\n  - {from: nobody, to: any, action: allow}\n")
    Path("binary.yaml").write_bytes(b"\xff\xfe\0")
    Path("not.pcap").write_text("this is not a capture, whatever its name says")
    Path("empty.pcap").write_bytes(b"")
    Path("empty.sql").write_text("  ;\n")
    Path("broken.toml").write_text("state = \n")


USAGE = 2
MISSING = 3
CASES: list[tuple[str, int]] = [
    ("nonsense", USAGE),
    ("--nonsense", USAGE),
    ("version --nonsense", USAGE),
    ("version extra", USAGE),
    ("version -o xml", USAGE),
    ("--config none.toml version", USAGE),
    ("version --config broken.toml", USAGE),
    ("version --instance a/b", USAGE),
    ("config -o xml", USAGE),
    ("up", USAGE),
    ("up -i", USAGE),
    ("up -i eth0:sideways", USAGE),
    ("up -i lo --mode off", USAGE),
    ("up -i lo -o xml", USAGE),
    ("up -i lo --policy none.yaml", USAGE),
    ("up -i lo --policy broken.yaml", USAGE),
    ("up -i lo --policy wrong.yaml", USAGE),
    ("up -i lo --policy binary.yaml", USAGE),
    ("up -i lo --nats-server not.pcap", USAGE),
    ("up -i lo --nats-port 70000", USAGE),
    ("observe -f --nats nats://127.0.0.1:1", MISSING),
    ("observe -f --nats nats://127.0.0.1:port", USAGE),
    ("observe --replay s", MISSING),
    ("observe --replay s --last 3", USAGE),
    ("export --to x", MISSING),
    ("export --to x --since soon", USAGE),
    ("export --to x -o csv", USAGE),
    ("replay", MISSING),
    ("replay -o json", MISSING),
    ("replay -o table", USAGE),
    ("replay -o json --session s", USAGE),
    ("replay --speed fast", USAGE),
    ("replay --max-pause long", USAGE),
    ("replay --forms maps", USAGE),
    ("replay --since someday", USAGE),
    ("replay --from none -o json", USAGE),
    ("replay --from none --from-stream", USAGE),
    ("replay --from-stream --nats nats://127.0.0.1:1", MISSING),
    ("up -i no-such-thing", USAGE),
    ("up -i eth0 --netns no-such-namespace", USAGE),
    ("collector", MISSING),
    ("collector --nats nats://127.0.0.1:1", USAGE),
    ("collector --nats nats://127.0.0.1:1 -i no-such-thing", USAGE),
    ("collector --nats nats://127.0.0.1:1 -i lo", USAGE),
    ("collector --nats http://127.0.0.1:1 -i lo", USAGE),
    ("collector --nats nats://127.0.0.1:port -i lo", USAGE),
    ("sink", MISSING),
    ("sink --nats http://127.0.0.1:1", USAGE),
    ("sink --nats nats://[::1", USAGE),
    ("sink --nats nats://", USAGE),
    ("up -i lo --policy=", USAGE),
    ("up -i lo --node=", USAGE),
    ("top", MISSING),
    ("top --by nothing", USAGE),
    ("web --web nowhere", USAGE),
    ("status", MISSING),
    ("status -o xml", USAGE),
    ("doctor -o xml", USAGE),
    ("observe", MISSING),
    ("observe -f", MISSING),
    ("observe -f -o table", USAGE),
    ("observe -f --until 1m", USAGE),
    ("observe -o xml", USAGE),
    ("observe --last many", USAGE),
    ("observe --last -1", USAGE),
    ("observe --since soon", USAGE),
    ("observe --decision maybe", USAGE),
    ("observe --verdict maybe", USAGE),
    ("observe --from-ip 10.0.0.300", USAGE),
    ("observe --port http", USAGE),
    ("observe --where (", USAGE),
    ("sql -o xml SELECT", USAGE),
    ("sql --file none.sql", USAGE),
    ("sql --file empty.sql", USAGE),
    ("sql --file empty.sql SELECT", USAGE),
    ("sql --file not.pcap", MISSING),
    ("sql SELECT", MISSING),
    ("violations", MISSING),
    ("violations --by colour", USAGE),
    ("violations --since soon", USAGE),
    ("flows", MISSING),
    ("flows -o xml", USAGE),
    ("audit", USAGE),
    ("audit none.yaml", USAGE),
    ("audit broken.yaml", USAGE),
    ("audit binary.yaml", USAGE),
    ("audit good.yaml", MISSING),
    ("audit good.yaml --from none", USAGE),
    ("audit good.yaml -o csv", USAGE),
    ("audit good.yaml --since soon", USAGE),
    ("audit good.yaml --since 1m --until 2m", USAGE),
    ("audit good.yaml --identities then", USAGE),
    ("audit good.yaml --fail-on new", USAGE),
    ("audit good.yaml --against wrong.yaml", USAGE),
    ("ledger", MISSING),
    ("ledger -o csv", USAGE),
    ("ledger --since soon", USAGE),
    ("policy nonsense", USAGE),
    ("policy check", USAGE),
    ("policy check none.yaml", USAGE),
    ("policy check binary.yaml", 1),
    ("policy check .", USAGE),
    ("policy check -o xml good.yaml", USAGE),
    ("policy check broken.yaml", 1),
    ("policy check wrong.yaml", 1),
    ("policy diff good.yaml", USAGE),
    ("policy diff good.yaml none.yaml", USAGE),
    ("policy diff broken.yaml good.yaml", USAGE),
    ("policy diff -o xml good.yaml good.yaml", USAGE),
    ("policy diff running good.yaml", MISSING),
    ("policy explain good.yaml", USAGE),
    ("policy explain --from any --to any --port 443 good.yaml", USAGE),
    ("policy explain --from nobody --to any --port 443/tcp good.yaml", USAGE),
    ("policy explain --from 10.0.0.1 --to ::1 --port 443/tcp good.yaml", USAGE),
    ("policy explain --from 10.0.0.1 --to 10.0.0.2 --port 443/tcp wrong.yaml", USAGE),
    ("policy explain --from 10.0.0.1 --to 10.0.0.2 --port 443/tcp -o xml good.yaml", USAGE),
    ("policy explain --from 10.0.0.1 --to 10.0.0.2 --port 443/tcp", MISSING),
    ("policy apply broken.yaml", USAGE),
    ("policy apply none.yaml", USAGE),
    ("policy apply good.yaml", MISSING),
    ("policy show", MISSING),
    ("policy show -o xml", USAGE),
    ("mode off", USAGE),
    ("mode", MISSING),
    ("mode enforce", MISSING),
    ("judge", USAGE),
    ("judge not.pcap", USAGE),
    ("judge not.pcap --policy good.yaml", USAGE),
    ("judge empty.pcap --policy good.yaml", USAGE),
    ("judge none.pcap --policy good.yaml", USAGE),
    ("judge . --policy good.yaml", USAGE),
    ("judge not.pcap --policy none.yaml", USAGE),
    ("judge not.pcap --policy broken.yaml", USAGE),
    ("judge not.pcap --policy good.yaml --mode off", USAGE),
    ("demo --duration long", USAGE),
    ("demo -o xml", USAGE),
]


@pytest.mark.parametrize(("line", "status"), CASES, ids=[line for line, _ in CASES])
def test_bad_input(line: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == status
    out, err = capfd.readouterr()
    if status != MISSING or not line.startswith("status"):
        assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ")


def test_every_command_has_a_case() -> None:
    names = {command.name for command in app.registered_commands} | {"policy"}
    # `down` takes no input that could be bad, and being down already is no error.
    assert names - {"down"} <= {line.split()[0] for line, _ in CASES}


def test_a_policy_error_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", "wrong.yaml"]) == 1
    assert capfd.readouterr().err.startswith("error: wrong.yaml:3:")


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", "--since", "soon", "--debug"]) == 2
    err = capfd.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-2].startswith("error: ")


def test_down_twice_is_down(capfd: pytest.CaptureFixture[str]) -> None:
    assert [main(["down"]), main(["down"])] == [0, 0]
    assert capfd.readouterr().out == ""


def test_help_is_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"], ["observe", "--help"], ["policy"], ["policy", "check", "--help"]):
        assert main(arguments) == 0
        out, err = capfd.readouterr()
        assert out.startswith("Usage: ztlens") and err == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m ztlens.main config -o json | true"
    done = subprocess.run(["bash", "-c", command], text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "ztlens.main", "config"], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 2 and "No space left" in done.stderr


def test_version_needs_no_other_room() -> None:
    code = (
        "import sys; from ztlens.main import main; main(['version']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'numpy', 'duckdb', 'pyarrow', 'nats', 'bcc', "
        "'collector', 'sink', 'rich', 'httpx', 'policy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=True)
    assert done.stdout == "ztlens 0.1.0\n[]\n"
