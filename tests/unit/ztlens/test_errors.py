"""Errors: whatever is raised, a person sees one line, one hint, and the exit status of docs/cli.md."""

import errno

import pytest

from collector.errors import ForeignProgram, RefusedError
from schemas.errors import EnvelopeError
from sink.errors import QueryError, SinkError
from ztlens.errors import BadInput, CliError, Missing, explain


class NatsLike(Exception):
    """Stands in for any of nats-py's."""


NatsLike.__module__ = "nats.errors"


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (BadInput("bad", "do this"), 2, "do this"),
        (Missing("gone", "get it"), 3, "get it"),
        (CliError("no", "look", 1), 1, "look"),
        (ForeignProgram("eth0 has a program", "ip link set eth0 xdp off"), 3, "xdp off"),
        (RefusedError("broken policy", "mend it"), 2, "mend it"),
        (SinkError("no sink", "start it"), 3, "start it"),
        (QueryError("no such column", "look at the schema"), 2, "schema"),
        (EnvelopeError("not a batch"), 2, "--debug"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "p.yaml"), 2, "p.yaml"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/tmp"), 2, "/tmp"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 3, "root"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "room"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 3, "doctor"),
        (NatsLike("no servers available"), 3, "status"),
        (ModuleNotFoundError("x", name="bcc"), 3, "setup.sh"),
        (MemoryError(), 3, "--last"),
        (ValueError("two\nlines"), 3, "internal error: ValueError: two lines"),
    ],
)
def test_every_error_has_a_line_a_hint_and_a_status(error: Exception, status: int, says: str) -> None:
    told = explain(error)
    assert told.exit_status == status
    message, hint = str(told).split("\n")
    assert message.startswith("error: ") and hint.startswith("hint: ")
    assert len(message) > len("error: ") and len(hint) > len("hint: ")
    assert says in str(told)
