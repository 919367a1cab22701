"""From C to descriptors, by one of two loaders that give the same: `core`, an object built once, and `bcc`, which
compiles at every start. `auto` takes core where its object is there, for it needs neither a compiler nor headers.
"""

from dataclasses import dataclass

from collector.errors import KernelError
from collector.kernel import loader_bcc, loader_core
from collector.kernel.layout import Layout
from collector.kernel.loaded import Loaded

LOADERS = {"core": loader_core.load, "bcc": loader_bcc.load}
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """The loader to take (a key of LOADERS), and why in a few words."""

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


def load(layout: Layout, judge: bool = False) -> Loaded:
    """Maps and programs by the layout's loader. `judge`: the clock is a capture's. Raises KernelError."""
    return LOADERS[layout.loader](layout, judge)
