"""From a policy file to arrays: its text, and what that compiles to. Whatever is wrong carries the file's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from policy.compile import Compiled, compile_policy
from policy.document import MAX_BYTES, refuse_too_large
from policy.errors import PolicyError
from policy.parse import parse


def read_text(path: Path) -> str:
    """The text of the policy file `path`, for `compile_text`. Raises OSError, and PolicyError for what is not text."""
    with path.open("rb") as file:
        return decode(file.read(MAX_BYTES + 1), str(path))


def decode(raw: bytes, file: str) -> str:
    """The text of a policy's bytes, of which those behind MAX_BYTES + 1 are not needed. Raises PolicyError."""
    try:
        if len(raw) > MAX_BYTES:
            refuse_too_large()
        return raw.decode()
    except UnicodeDecodeError as error:
        line_start = raw.rfind(b"\n", 0, error.start) + 1
        line, column = raw.count(b"\n", 0, error.start) + 1, len(raw[line_start : error.start].decode()) + 1
        raise PolicyError("not UTF-8 text", "save it as UTF-8", file, line, column) from None
    except PolicyError as error:
        error.file = file
        raise


def compile_text(text: str, file: str, *, host: Sequence[str] = (), knobs: Mapping[str, int] | None = None) -> Compiled:
    """The policy that `text` of `file` describes. `host`: the node's addresses; `knobs`: refuse it, too, if it is too
    large for kernel tables of these sizes. Raises PolicyError."""
    try:
        compiled = compile_policy(parse(text, file), host=host)
        if knobs is not None:
            compiled.check_capacity(knobs)
    except PolicyError as error:
        error.file = file
        raise
    return compiled
