"""Which SSH session a command comes through: `sudo` drops SSH_CONNECTION, its parents still have it."""

import os
from pathlib import Path

PROC = Path("/proc")
NAME = b"SSH_CONNECTION="


def connection() -> str:
    """SSH_CONNECTION (`client port server port`) of this process or of the nearest ancestor that has it; "": none."""
    found, process = os.environ.get("SSH_CONNECTION", ""), os.getppid()
    while not found and process > 1:
        try:
            variables = (PROC / str(process) / "environ").read_bytes().split(b"\0")
            status = (PROC / str(process) / "stat").read_text()
        except OSError:  # gone, or not ours to read
            return ""
        found = next((v[len(NAME) :].decode(errors="replace") for v in variables if v.startswith(NAME)), "")
        process = int(status.rpartition(")")[2].split()[1])
    return found
