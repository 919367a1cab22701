"""The kernel side before the service: importing NATS, the policy compiler and the rest takes longer than loading it.

What is to be loaded is loaded by a thread while Python imports; and where nothing has to be prepared before the first
packet (no policy, no mode: everything passes either way) the datapath is attached before the service is imported.
Nothing imported here takes long: tests/unit/test_imports.py.
"""

from collections.abc import Callable
from functools import partial

from collector import kernel
from collector.kernel.interface import Datapath, DatapathSettings
from collector.kernel.loader import Loading, choose
from collector.settings import CollectorSettings

OpenDatapath = Callable[[DatapathSettings, Callable[[Datapath], None]], Datapath]
"""Settings, and what to do with a new datapath before it is attached → the running datapath."""


def kernel_side_first(settings: CollectorSettings, *, adopting: bool) -> OpenDatapath:
    """What collector.service.run opens the datapath with: the rest of it, or nothing. Raises KernelError.

    With `adopting`, or a compiler to run, nothing is done in advance.
    """
    if adopting or choose(settings.loader).name != "core":
        return kernel.open_datapath
    loading = Loading(settings.loader, settings.knobs)
    if settings.policy_file is not None or settings.mode is not None:
        return partial(kernel.open_datapath, loading=loading)
    datapath = kernel.open_datapath(settings.datapath(), loading=loading)

    def opened(_: DatapathSettings, prepare: Callable[[Datapath], None]) -> Datapath:
        try:
            if not datapath.adopted:
                prepare(datapath)
        except BaseException:
            datapath.detach()
            datapath.unpin()
            datapath.close()
            raise
        return datapath

    return opened
