"""The kernel side as the collector sees it: load, attach, pin, adopt, drain, sweep, apply.

Nothing outside this package knows BCC, libbpf, pins or netlink. `interface` is what the rest of the collector relies
on; `open_datapath` makes one, `private.private_datapath` one without interfaces, `features.probe` says what a machine
lacks. BCC itself runs only in a child (`compile`), for it is large.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from collector.kernel.interface import Datapath, DatapathSettings, Events, Interface, SweepReport

if TYPE_CHECKING:
    from collector.kernel.loader import Loading

__all__ = ["Datapath", "DatapathSettings", "Events", "Interface", "SweepReport", "open_datapath"]


def open_datapath(
    settings: DatapathSettings, prepare: Callable[[Datapath], None] | None = None, loading: "Loading | None" = None
) -> Datapath:
    """See `collector.kernel.opening.open_datapath`; imported when called, so that the fake needs no libbpf."""
    from collector.kernel.opening import open_datapath as real  # noqa: PLC0415

    return real(settings, prepare, loading)
