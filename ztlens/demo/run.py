"""One run of the demo: network, then everything that `up` starts, then traffic; and all of it away again.

The order makes the account exact: the datapath listens before the first machine's link comes up, and it is detached
after the last machine has fallen silent.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztlens import config, show
from ztlens.command import with_options
from ztlens.demo import leftovers
from ztlens.demo.live import Highlights
from ztlens.demo.network import DemoNetwork
from ztlens.demo.summary import summarise
from ztlens.demo.traffic import Traffic
from ztlens.errors import BadInput, Missing, one_line
from ztlens.up import Up

POLICY = Path(__file__).with_name("policy.yaml")
KNOBS = {"FLOWS_MAX": 32_768, "RING_BYTES": 16 << 20}
"""A tenth of the default memory: the demo has a few hundred flows a second."""


@dataclass(frozen=True)
class Options:
    """`state` None: a temporary directory, removed unless `keep`. `live`: verdicts as lines on stdout."""

    duration: float = 30.0  # seconds of traffic
    keep: bool = False
    enforce: bool = False
    live: bool = True
    state: Path | None = None
    web: str = "off"  # where the page listens
    loader: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """`summary` as in summary.py; `state` None when it is gone."""

    summary: dict[str, Any]
    state: Path | None


def settings_of(
    name: str, network: DemoNetwork, state: Path, *, enforce: bool, web: str = "off", loader: str = "auto"
) -> config.Settings:
    """An installation of its own: nothing of the machine's settings, environment or directories enters."""
    return with_options(
        config.load({}, {}, Path(os.devnull)),
        instance=name, node="demo", state=str(state), run_dir=str(config.RUN / name), pins=str(config.PINS / name),
        database=str(state / "ztlens.duckdb"), netns=network.router, policy=str(POLICY), knobs=KNOBS,
        interfaces=[f"{interface}:ingress" for interface in network.interfaces],
        mode="enforce" if enforce else "monitor", web=web, loader=loader,
    )  # fmt: skip


def state_directory(given: Path | None) -> Path:
    """An empty directory. Raises BadInput if the given one holds something: its history would be summed up too."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="ztlens-demo-"))
    if given.exists() and (not given.is_dir() or any(given.iterdir())):
        raise BadInput(f"{given} is not an empty directory", "give the demo a --state directory of its own")
    return given


async def run(options: Options) -> Outcome:
    """The whole demo. Raises CliError and the errors of the rooms; whatever happens, nothing stays behind."""
    if os.geteuid() != 0:
        raise Missing("ztlens demo needs root: it makes namespaces and loads programs", "run it with sudo")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):  # until the process ends: nothing may cut the clean-up short
        loop.add_signal_handler(number, stopping.set)
    for name in await asyncio.to_thread(leftovers.reclaim):
        show.say(f"took away what {name}, which was killed, left behind")
    name, network = f"demo-{os.getpid()}", DemoNetwork()
    state = state_directory(options.state)
    settings = settings_of(name, network, state, enforce=options.enforce, web=options.web, loader=options.loader)
    own_state = [] if options.keep or options.state else [state]
    record = leftovers.Record(name, network.namespaces, settings.pins, [settings.run_dir, *own_state])
    one = Up(settings)
    one.stopping = stopping
    unwanted: list[Path] = [] if options.state else [state]
    try:
        await _run(options, network, one)
        summary = await asyncio.to_thread(_summary, settings)
        unwanted = own_state
    finally:
        try:
            await asyncio.to_thread(network.delete)
        finally:
            leftovers.remove_paths([settings.run_dir, *unwanted])
            record.close()
    return Outcome(summary, None if own_state else state)


async def _run(options: Options, network: DemoNetwork, one: Up) -> None:
    """From the first namespace to the orderly end of `up`."""
    traffic = Traffic(network)
    highlights = Highlights()
    watching: asyncio.Task[None] | None = None
    try:
        show.say(f"building {len(network.interfaces)} machines around {network.router}")
        await asyncio.to_thread(network.create)
        show.say("starting NATS, sink and collector (the program is loaded into the kernel)")
        await one.start()
        show.say(f"watching {', '.join(network.interfaces)} under {POLICY.name}, mode {one.settings['mode']}")
        if options.live:
            watching = asyncio.create_task(_watch(one, highlights))
        await asyncio.to_thread(network.boot)
        await _or_stopped(one, traffic.start())
        show.say(f"traffic for {options.duration:g} s; Ctrl-C ends it sooner")
        traffic.go()
        await _or_stopped(one, asyncio.sleep(options.duration))
        await _or_stopped(one, traffic.wait_rounds(1))  # on a slow machine the duration may be too short for it
    finally:
        try:
            await traffic.stop()
            if watching:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                print(f"… and {highlights.held_back:,} more", flush=True)
            show.say("draining, storing, detaching")
        finally:  # also when nobody reads our output any more
            await one.stop()


async def _or_stopped(one: Up, step: Awaitable[None]) -> None:
    """`step`, or what is done of it when somebody asks to stop."""
    task, stop = asyncio.ensure_future(step), asyncio.ensure_future(one.stopping.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _watch(one: Up, highlights: Highlights) -> None:
    from ztlens.live import follow

    try:
        await follow(one.url, "TRUE", highlights.write)
    except BrokenPipeError:
        pass  # nobody reads any more
    except Exception as error:  # people miss lines; the history does not
        show.say(f"live verdicts: {one_line(str(error)) or type(error).__name__}")


def _summary(settings: config.Settings) -> dict[str, Any]:
    from sink.client import History

    return summarise(History.on_file(settings.database))
