"""What a person sees when something goes wrong: one line, one hint, an exit status.

    CliError            root; `hint` is the next step
    ├── BadInput        2: an option, file, expression or name that cannot be used
    └── Missing         3: something needed is not there or not reachable

Errors of the other rooms carry `hint` and mostly `exit_status` themselves; `explain` turns any exception into the
three things, so that no traceback reaches a user (`--debug` shows it) but that of a fault of ztlens.
"""

import errno
from dataclasses import dataclass

NO = 1
BAD_INPUT = 2
MISSING = 3
INTERRUPTED = 130

_ROOMS = {"policy": BAD_INPUT, "schemas": BAD_INPUT, "collector": MISSING, "sink": MISSING, "web": MISSING}
_HINTS = {"policy": "docs/policy.md says what may stand there"}
"""For errors that say all there is to say."""
_FILE_ERRNOS = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EEXIST}


class CliError(Exception):
    """Root. `hint`: one line, what to do next."""

    exit_status = BAD_INPUT

    def __init__(self, message: str, hint: str, exit_status: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if exit_status is not None:
            self.exit_status = exit_status


class BadInput(CliError):
    """The command cannot be done as it was asked."""


class Missing(CliError):
    """Something needed is not there: a privilege, a kernel feature, a running part, room on the disk."""

    exit_status = MISSING


@dataclass(frozen=True)
class Explanation:
    """Two lines for stderr and the exit status of docs/cli.md."""

    message: str
    hint: str
    exit_status: int
    unforeseen: bool = False
    """A fault of ztlens: where it comes from is worth more than a short answer, and may not come again."""

    def __str__(self) -> str:
        return f"error: {one_line(self.message)}\nhint: {one_line(self.hint)}"


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(str(text).split())


def explain(error: BaseException) -> Explanation:
    """What to tell about `error`; an exception nobody foresaw is named as such."""
    if isinstance(error, CliError):
        return Explanation(str(error), error.hint, error.exit_status)
    room = type(error).__module__.partition(".")[0]
    if room in _ROOMS:
        hint = getattr(error, "hint", "") or _HINTS.get(room, "run it again with --debug to see where this comes from")
        return Explanation(str(error), hint, getattr(error, "exit_status", _ROOMS[room]))
    if room == "typer":
        return _usage(error)
    if room in ("duckdb", "_duckdb"):
        return Explanation(str(error), "`DESCRIBE verdicts` in `ztlens sql` shows what there is to ask", BAD_INPUT)
    if room == "nats":
        return Explanation(f"NATS: {error or type(error).__name__}", "is it running? see `ztlens status`", MISSING)
    if isinstance(error, OSError):
        return _os_error(error)
    if isinstance(error, ModuleNotFoundError):
        return Explanation(f"a Python package is missing: {error.name}", "run scripts/setup.sh", MISSING)
    if isinstance(error, MemoryError):
        return Explanation("out of memory", "ask for less at a time: --last, --since, LIMIT", MISSING)
    return Explanation(
        f"internal error: {type(error).__name__}: {error}", "please report it with all that stands above", MISSING, True
    )


def _usage(error: BaseException) -> Explanation:
    """Errors of the option parser, which are of a class per case but share `format_message`."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ztlens"
    return Explanation(message or "aborted", f"see `{path} --help`", BAD_INPUT)


def _os_error(error: OSError) -> Explanation:
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if isinstance(error, PermissionError):
        return Explanation(what, "run it as root, or as the user who owns it", MISSING)
    if error.errno == errno.ENOSPC:
        return Explanation(what, "free some room, or choose another --state directory", MISSING)
    if error.errno in _FILE_ERRNOS:
        return Explanation(what, "check the name", BAD_INPUT)
    return Explanation(what, "`ztlens doctor` checks what this machine lacks", MISSING)
