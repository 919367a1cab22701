"""Asking a running collector: what the `ztlens` command uses."""

import socket
from pathlib import Path
from typing import Any

import msgspec

from collector.errors import CollectorError, RefusedError

SOCKET = "control.sock"


def request(run_dir: Path, op: str, *, timeout: float = 90.0, **args: Any) -> Any:
    """Send `op` to the collector of `run_dir` and return its result (dicts, lists, text, numbers).

    Raises CollectorError (exit status 3) when nobody listens or answers within `timeout` seconds, RefusedError
    (2) when the collector refuses, each with the hint the collector gave.
    """
    path = run_dir / SOCKET
    line = msgspec.json.encode({"op": op, "args": args}) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                answer = answers.readline()
    except PermissionError as error:
        raise CollectorError(f"{path}: permission denied", "run this as root") from error
    except TimeoutError as error:
        raise CollectorError(f"the collector at {path} did not answer in {timeout:g} s", "see its log") from error
    except OSError as error:
        raise CollectorError(
            f"no collector listens at {path}", "start one with `ztlens up` or `ztlens collector`"
        ) from error
    if not answer:
        raise CollectorError(f"the collector at {path} closed the connection", "see its log")
    try:
        reply = msgspec.json.decode(answer)
    except msgspec.DecodeError as error:
        raise CollectorError(f"the collector at {path} gave no JSON: {error}", "see its log") from error
    if reply.get("ok"):
        return reply.get("result")
    message, hint = str(reply.get("error", "refused")), str(reply.get("hint", ""))
    if reply.get("exit") == RefusedError.exit_status:
        raise RefusedError(message, hint)
    raise CollectorError(message, hint)
