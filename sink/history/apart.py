"""Work in a process of its own: long work in Python would hold up the sink's writer, and could not be stopped."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, ParamSpec, TypeVar

from policy.errors import PolicyError
from sink.errors import BusyError, SinkError

P = ParamSpec("P")
T = TypeVar("T")
_LOOKS = 0.5  # seconds between looks at who asked


def apart(
    timeout: float, progress: Callable[[int], None], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What `work`, a function of a module, gives for arguments that can be pickled, as can its answer.

    `progress` is called now and then, and may raise to end it. Raises PolicyError as `work` does; BusyError: it took
    longer than `timeout` seconds; SinkError: the process failed.
    """
    until = time.monotonic() + timeout
    # From a file: what a pipe has not taken when the first look times out, `communicate` never writes.
    with (
        _file((work, args, kwargs)) as given,
        subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    answer, errors = process.communicate(timeout=_LOOKS)
                    break
                progress(0)
                if time.monotonic() > until:
                    raise BusyError(f"the question took longer than {timeout:g} s", "narrow it: a time range")
        finally:
            process.kill()
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise SinkError(f"a helper process failed: {last or f'signal {-process.returncode}'}", "narrow the question")
    value, refused = pickle.loads(answer)
    if refused is not None:
        raise PolicyError(*refused)
    out: T = value
    return out


def _file(given: object) -> IO[bytes]:
    """A file in memory with `given` in it, to be read from its beginning."""
    file = os.fdopen(os.memfd_create("apart"), "w+b")
    pickle.dump(given, file, pickle.HIGHEST_PROTOCOL)
    file.seek(0)
    return file


def main() -> None:
    """Be the process: work from stdin, its answer to stdout."""
    work, args, kwargs = pickle.load(sys.stdin.buffer)
    answer: tuple[object, tuple[str, str] | None]
    try:
        answer = work(*args, **kwargs), None
    except PolicyError as error:
        answer = None, (error.message, error.hint)
    pickle.dump(answer, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    main()
