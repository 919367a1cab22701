"""The token: made once, kept in the state directory, so that a browser that knows it needs no new link."""

import contextlib
import os
import secrets
from pathlib import Path

from web.errors import WebError

NAME = "web.token"
_LONG = 32


def token(state: Path) -> str:
    """The token of this installation. Raises WebError."""
    path = state / NAME
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        known = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WebError(
            f"{path}: the page's token cannot be kept: {error}", "check the directory, or give --state DIR"
        ) from error
    if len(known) < _LONG:
        raise WebError(f"{path} holds no token", "delete it: a new one is made")
    return known


def _make(path: Path) -> None:
    """Whole or not at all, and never over one that is there. Raises OSError."""
    draft = path.with_name(f".{NAME}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(_LONG))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
