"""From settings to a running datapath: adopt the one that is there, replace one of another layout, or load anew."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from collector.kernel import attach, libbpf, libc, pins, probes
from collector.kernel.datapath import PinnedDatapath
from collector.kernel.handle import Handle
from collector.kernel.interface import Datapath, DatapathSettings
from collector.kernel.layout import new_layout
from collector.kernel.loader import Loading, choose, load
from collector.kernel.netns import inside
from collector.kernel.watching import Watch
from schemas.codes import Mode
from schemas.structs import TIMEOUTS


def open_datapath(
    settings: DatapathSettings, prepare: Callable[[Datapath], None] | None = None, loading: Loading | None = None
) -> PinnedDatapath:
    """The instance's datapath, attached to its interfaces.

    Adopts the one that is pinned if it comes from the same sources and knobs; else loads a new one, and what was
    there becomes its `predecessor`, to be drained. `prepare` is called with a new datapath before it is attached (to
    apply the policy, so that not one packet is judged without it), never with an adopted one. A new datapath starts
    in its predecessor's mode. `loading`: a load of these settings that has begun already.

    Raises KernelError, ForeignProgram. Blocks for seconds when it has to compile.
    """
    pins.require_privilege()
    probes.require()
    pins.ensure_bpffs(settings.pins)
    lock = pins.Lock(settings.pins)
    datapath: PinnedDatapath | None = None
    chain: list[PinnedDatapath] = []
    watch: Watch | None = None
    try:
        pins.settle(settings.pins)
        choose(settings.loader)
        layout = new_layout(settings.knobs)
        chain = _pinned(settings)
        watch = Watch(settings)
        if watch.absent and not chain:  # with something to adopt no reason to fail: what else it watches must go on
            raise attach.no_interface(watch.absent[0], watch.there)
        inside(settings.netns, lambda: attach.check_foreign(watch.named, _program_ids(chain)))
        if chain and chain[0].handle.layout.same_program(layout):
            datapath = chain[0]
            if loading is not None:
                loading.drop()
            datapath.adopted = True
            datapath._lock = lock
            datapath.notices.append(
                f"adopted the running datapath: ring {datapath.ring_id}, revision {datapath.revision}"
                f", loaded by {datapath.loader}"
            )
            libc.membarrier()  # the last owner may have died between a switch and its grace period
            _configure(datapath, settings)
        else:
            choice, loaded = loading.take() if loading is not None else load(settings.loader, settings.knobs)
            handle = Handle.create(loaded, replace(layout, loader=choice.name))
            datapath = _new(settings, handle, chain, lock, prepare)
            datapath.notices.append(f"loaded by {choice.name}: {choice.why}")
        datapath.notices += [f"there is no interface {name}: it is watched once it comes" for name in watch.absent]
        datapath.notices += [f"no interface is {name} yet: those that come are watched" for name in watch.waiting]
        try:
            watch.begin(datapath)
        except BaseException:
            if not datapath.adopted and datapath.predecessor is None:
                datapath.detach()
                datapath.unpin()
            raise
        datapath.watch = watch
        return datapath
    except BaseException:
        if watch is not None:
            watch.close()
        for one in [datapath, *chain]:
            if one is not None:
                one.close()
        lock.release()
        raise


def _pinned(settings: DatapathSettings) -> list[PinnedDatapath]:
    """The instance's datapath, if there is one, and its predecessors, each linked to the next."""
    out = []
    for directory in [settings.pins, *pins.old_paths(settings.pins)]:
        if directory.exists():
            out.append(PinnedDatapath(Handle.open(directory), directory, settings.netns))
    for newer, older in pairwise(out):
        newer.predecessor = older
    return out


def _program_ids(chain: list[PinnedDatapath]) -> list[int]:
    return [libbpf.program_info(fd).id for one in chain for fd in one.handle.programs.values()]


def _new(
    settings: DatapathSettings,
    handle: Handle,
    chain: list[PinnedDatapath],
    lock: pins.Lock,
    prepare: Callable[[Datapath], None] | None,
) -> PinnedDatapath:
    datapath = PinnedDatapath(handle, settings.pins, settings.netns, lock)
    try:
        if chain:
            datapath.predecessor = chain[0]
            datapath.notices.append(
                f"the running datapath (ring {chain[0].ring_id}) is of another version or size: replaced by ring "
                f"{datapath.ring_id}, and drained"
            )
        handle.initialise(_mode_to_inherit(chain[0]) if chain else Mode.MONITOR, settings.midstream_seconds)
        _configure(datapath, settings)
        if prepare is not None:
            prepare(datapath)
        pins.write(pins.new_path(settings.pins), handle.objects())
        pins.take_over(settings.pins)
    except BaseException:
        datapath.close()
        pins.remove(pins.new_path(settings.pins))
        raise
    for old, directory in zip(chain, pins.old_paths(settings.pins), strict=True):
        old.directory = directory
    return datapath


def _mode_to_inherit(old: PinnedDatapath) -> Mode:
    """What nobody has confirmed does not outlive the datapath that would have taken it back."""
    return old.unconfirmed.from_mode if old.unconfirmed is not None else old.mode


def _configure(datapath: PinnedDatapath, settings: DatapathSettings) -> None:
    timeouts = TIMEOUTS | settings.timeouts
    datapath.handle.configure(sample=settings.sample, budget=settings.budget, timeouts=timeouts)
