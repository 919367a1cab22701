"""The SSH session a command comes through, with and without sudo in between."""

import os
from pathlib import Path

import pytest

from ztlens import ssh

SESSION = "203.0.113.7 51234 10.0.0.5 22"


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our parent is sudo (800), its parent a shell (700), its parent sshd (600)."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(ssh, "PROC", tmp_path)
    monkeypatch.setattr(os, "getppid", lambda: 800)
    for process, parent, environment in ((800, 700, b"PATH=/bin"), (700, 600, b"A=1"), (600, 1, b"")):
        (tmp_path / str(process)).mkdir()
        (tmp_path / str(process) / "environ").write_bytes(environment)
        (tmp_path / str(process) / "stat").write_text(f"{process} (a ) b) S {parent} 1 1")
    return tmp_path


def test_from_the_environment(processes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", SESSION)
    assert ssh.connection() == SESSION


def test_of_an_ancestor(processes: Path) -> None:
    (processes / "700" / "environ").write_bytes(b"A=1\0SSH_CONNECTION=" + SESSION.encode() + b"\0B=2\0")
    assert ssh.connection() == SESSION


def test_no_session(processes: Path) -> None:
    assert ssh.connection() == ""
    (processes / "700" / "environ").unlink()
    assert ssh.connection() == ""
