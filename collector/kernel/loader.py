"""Runs the compiling child and turns what comes back, or its complaints, into something readable."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from collector.errors import KernelError
from collector.kernel.layout import BPF_DIR, MAIN, MAPS, PROGRAMS, Layout

COMPILE_TIMEOUT = 120  # seconds; 2–4 are usual
_SETUP = "scripts/setup.sh installs them"
_CAUSES = (  # what the child says → (our line, hint); the first that is found
    (r"No module named 'bcc'", "BCC is not installed", "scripts/setup.sh installs it (Debian's python3-bpfcc)"),
    (r"[Uu]nable to find kernel headers|chdir\(.*/lib/modules|/lib/modules/\S+: No such file",
     f"kernel headers for {os.uname().release} are missing", _SETUP),
    (r"Operation not permitted|need CAP_", "the kernel refused to load the programs", "run as root"),
    (r"Cannot allocate memory", "not enough memory for the maps", "lower the knobs FLOWS_MAX or RING_BYTES"),
    (r"could not open bpf map: (\S+), error: Invalid argument", "the kernel does not know a map type or flag we need",
     "ring buffers need Linux 5.8 or later"),
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Descriptors by name, owned by whoever holds this."""

    maps: dict[str, int]
    programs: dict[str, int]

    def close(self) -> None:
        for fd in (*self.maps.values(), *self.programs.values()):
            os.close(fd)


def load(layout: Layout, defines: tuple[str, ...] = (), source: Path | None = None) -> Loaded:
    """Compile and load today's sources with the layout's knobs. Raises KernelError."""
    cflags = [f"-I{BPF_DIR}", *(f"-D{name}={value}" for name, value in layout.knobs.items()), *defines, *_QUIET]
    names, fds = _run(source or BPF_DIR / MAIN, cflags)
    by_name = dict(zip(names, fds, strict=True))
    return Loaded({n: by_name[n] for n in MAPS}, {n: by_name[n] for n in PROGRAMS})


_QUIET = ("-Wno-unknown-warning-option", "-w")


def _run(source: Path, cflags: list[str]) -> tuple[list[str], list[int]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    root = str(Path(__file__).resolve().parent.parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "collector.kernel.compile", str(source), str(theirs.fileno()), *cflags]
    with ours, tempfile.TemporaryFile() as output:
        try:
            with theirs:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[theirs.fileno()],
                    env=environment, timeout=COMPILE_TIMEOUT, check=False,
                )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"compiling the kernel side took more than {COMPILE_TIMEOUT} s", "try again") from error
        if done.returncode != 0:
            output.seek(0)
            raise explain(output.read().decode(errors="replace"), done.returncode)
        data, fds, _, _ = socket.recv_fds(ours, 65536, 64)
    return json.loads(data), list(fds)


def explain(output: str, status: int) -> KernelError:
    """The child's complaint as an error of one line and a hint; the whole of it is a note, which --debug shows."""
    for pattern, message, hint in _CAUSES:
        if re.search(pattern, output):
            error = KernelError(message, hint)
            break
    else:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        wrong = [line for line in lines if "error:" in line or "Error" in line] or lines[-1:]
        cause = wrong[0] if wrong else f"the compiler ended with status {status}"
        error = KernelError(
            f"the kernel side could not be loaded: {cause}", "`ztlens doctor` says what this machine lacks"
        )
    error.add_note(output)
    return error
