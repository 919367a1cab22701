"""From C to descriptors, by one of two loaders that give the same: `core`, an object built once, and `bcc`, which
compiles at every start. `auto` takes core where its object is there and the verifier takes it, for it needs neither a
compiler nor headers.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from collector.errors import KernelError, VerifierError
from collector.kernel import loader_core
from collector.kernel.loaded import Loaded
from collector.kernel.sources import constants

LOADERS = ("core", "bcc")
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """The loader to take (one of LOADERS), and why in a few words."""

    name: str
    why: str


def choose(wanted: str = AUTO) -> Choice:
    """The loader for this machine. Raises KernelError if `wanted` is none or cannot work here."""
    if wanted not in (AUTO, *LOADERS):
        raise KernelError(f"there is no loader {wanted}", "loaders are: " + ", ".join((AUTO, *LOADERS)))
    if wanted == "bcc":
        return Choice("bcc", "asked for")
    try:
        loader_core.read_object()
    except KernelError as error:
        if wanted == "core":
            raise
        return Choice("bcc", f"no core: {error}")
    return Choice("core", "asked for" if wanted == "core" else "its object is there")


def load(wanted: str, knobs: Mapping[str, int], judge: bool = False) -> tuple[Choice, Loaded]:
    """Maps and programs, and by which loader. `judge`: the clock is a capture's. Raises VerifierError, KernelError."""
    choice, room = choose(wanted), constants(knobs, judge)
    if choice.name == "core":
        try:
            return choice, loader_core.load(room)
        except VerifierError as error:
            if wanted != AUTO:
                raise
            choice = Choice("bcc", f"no core: {error}")
    from collector.kernel import loader_bcc  # noqa: PLC0415 - all that it takes to run a compiler

    try:
        return choice, loader_bcc.load(room)
    except KernelError as error:
        if wanted != AUTO:
            raise
        raise KernelError(f"{error} ({choice.why})", error.hint) from error


class Loading:
    """A load in a thread of its own: while the verifier works, libbpf lets Python go on. `take` it or `drop` it."""

    def __init__(self, wanted: str, knobs: Mapping[str, int]) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loading")
        self._loaded = self._thread.submit(load, wanted, knobs)

    def take(self) -> tuple[Choice, Loaded]:
        """Wait for it; as `load`."""
        self._thread.shutdown()
        return self._loaded.result()

    def drop(self) -> None:
        """It is not needed."""
        self._thread.shutdown()
        if self._loaded.exception() is None:
            self._loaded.result()[1].close()
