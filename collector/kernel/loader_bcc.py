"""The loader `bcc`: runs the compiling child, makes the maps, loads the programs. Needs BCC and kernel headers here.

Bytecode can be kept: with ZTLENS_BYTECODE_CACHE set to a directory a start takes a second instead of five. Tests
set it; a service does not, for it starts seldom and should leave no files.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collector.errors import KernelError
from collector.kernel import libbpf
from collector.kernel.compile import INSTRUCTION, map_references
from collector.kernel.loaded import Loaded, of_maps
from collector.kernel.sources import BPF_DIR, MAPS, PROGRAMS, source_hash
from schemas.maps import MAPS as DESCRIBED

MAIN = "bcc.c"
CACHE = "ZTLENS_BYTECODE_CACHE"
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
class Bytecode:
    """What the child makes: sizes of each map, instructions of each program."""

    maps: dict[str, tuple[int, int, int, int, int]]  # type, key size, value size, entries, flags
    programs: dict[str, np.ndarray]  # dtype compile.INSTRUCTION; references to maps are places in `maps`


def load(room: Mapping[str, int]) -> Loaded:
    """Compile today's sources, make maps of these sizes (sources.constants), load the programs.

    Raises VerifierError, KernelError.
    """
    defines = (f"-D{name}={value}" for name, value in room.items())
    room_of = {one.name: (one.entries(room), one.width(room)) for one in DESCRIBED}
    loaded = load_source(BPF_DIR / MAIN, PROGRAMS, [f"-I{BPF_DIR}", *defines, "-w"], source_hash(), room_of)
    for name in set(loaded.maps) - set(MAPS):
        os.close(loaded.maps.pop(name))  # the programs hold on to it
    return loaded


def load_source(
    main: Path,
    programs: Mapping[str, str],
    cflags: list[str],
    version: str,
    room: Mapping[str, tuple[int, int]] | None = None,
) -> Loaded:
    """Compile and load `main`; `programs`: function → `xdp` or `tc`; `version` tells sources apart for the cache.

    `room`: map → (entries, values of the declared type in each), where these are not what the source says.
    """
    bytecode = _compile([str(main), ",".join(programs)], cflags, version)
    loaded = Loaded({}, {})
    try:
        for name, (kind, key, value, entries, flags) in bytecode.maps.items():
            entries, width = (room or {}).get(name, (entries, 1))  # noqa: PLW2901
            try:
                loaded.maps[name] = libbpf.map_create(name, kind, key, value * width, entries=entries, flags=flags)
            except KernelError as error:
                raise of_maps(error) from error
        for name, instructions in bytecode.programs.items():
            loaded.programs[name] = _load_program(name, programs[name], instructions, list(loaded.maps.values()))
    except KernelError:
        loaded.close()
        raise
    return loaded


def _load_program(name: str, kind: str, instructions: np.ndarray, maps: list[int]) -> int:
    patched = instructions.copy()
    at = map_references(patched)
    patched["immediate"][at] = np.array(maps, np.int32)[patched["immediate"][at]]
    return libbpf.program_load(libbpf.PROGRAM_TYPES[kind], name, patched.tobytes())


def _compile(what: list[str], cflags: list[str], version: str) -> Bytecode:
    """The bytecode, from the cache if there is one: a directory named by ZTLENS_BYTECODE_CACHE, owned by us alone."""
    cache = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "out.json"
        if cache:
            stat = Path(cache).stat()
            if stat.st_uid != os.geteuid() or stat.st_mode & 0o022:
                raise KernelError(
                    f"{cache} is writable by others", f"unset {CACHE}, or make it yours alone (chmod 700)"
                )
            key = hashlib.sha256("\0".join([version, *what, *cflags]).encode()).hexdigest()
            output = Path(cache) / f"{key}.json"
        if not output.exists():
            partial = output.with_suffix(f".{os.getpid()}")
            _run([*what, str(partial), *cflags])
            partial.rename(output)
        raw = json.loads(output.read_text())
    maps = {name: tuple(sizes) for name, sizes in raw["maps"].items()}
    programs = {name: np.frombuffer(bytes.fromhex(code), INSTRUCTION) for name, code in raw["programs"].items()}
    return Bytecode(maps, programs)


def _run(arguments: list[str]) -> None:
    """Run the child; its complaint becomes a KernelError."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "collector.kernel.compile", *arguments]
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                timeout=COMPILE_TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"compiling the kernel side took more than {COMPILE_TIMEOUT} s", "try again") from error
        if done.returncode != 0:
            output.seek(0)
            raise explain(output.read().decode(errors="replace"), done.returncode)


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
