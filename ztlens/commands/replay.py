"""`replay`: recorded verdicts stream again."""

from __future__ import annotations

import asyncio
import gc
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas import times
from schemas.filters import Filters, predicate
from ztlens import lookup, nats, running, show
from ztlens.command import installation
from ztlens.commands.filtering import filtered
from ztlens.config import Settings
from ztlens.errors import BadInput

if TYPE_CHECKING:
    from nats.aio.client import Client

    from ztlens.replay.run import Replay
    from ztlens.replay.windows import Window

OUTPUTS = ("compact", "json", "dict")


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "replay")(filtered(replay_))


@dataclass(frozen=True)
class _Asked:
    """What to replay, and from where."""

    predicate: str
    since: int | None
    until: int | None
    source: Path | None
    from_stream: bool
    soon: bool
    """It will not take long."""


def replay_(
    settings: Settings,
    asked: Filters,
    *,
    speed: Annotated[str, typer.Option(metavar="1x|10x|max", help="How much faster than it was recorded.")] = "1x",
    longest: Annotated[str, typer.Option("--max-pause", metavar="TIME", help="Wait no longer than this.")] = "",
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="An exported directory.")] = None,
    from_stream: Annotated[bool, typer.Option("--from-stream", help="JetStream's verdicts, not the store's.")] = False,
    session: Annotated[str, typer.Option(metavar="NAME", help="Name in the subjects and in every message.")] = "",
    forms: Annotated[str, typer.Option(metavar="batches,live", help="What to publish; at max batches alone.")] = "",
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="compact|json|dict", help="Print; publish nothing.")
    ] = "",
) -> None:
    """Recorded verdicts stream again, onto subjects of their own."""
    from ztlens.replay import publish, schedule
    from ztlens.replay.run import Replay

    if output and output not in OUTPUTS:
        raise BadInput(f"{output!r} is not an output of `replay`", "one of " + ", ".join(OUTPUTS))
    if output and session:
        raise BadInput("-o prints and publishes nothing, so there is no session", "leave -o or --session out")
    if source is not None and from_stream:
        raise BadInput("--from and --from-stream exclude each other", "leave one of them out")
    factor = schedule.speed(speed)
    forms = forms or ("batches" if factor == schedule.MAX else "batches,live")
    chosen = tuple(dict.fromkeys(form.strip() for form in forms.split(",")))
    if not set(chosen) <= set(publish.FORMS):
        raise BadInput(f"{forms!r} are not forms of a replay", "some of " + ", ".join(publish.FORMS))
    what = _Asked(
        predicate(replace(asked, since="", until="")), *times.span_ns(asked.since, asked.until), source, from_stream,
        soon=factor == schedule.MAX,
    )  # fmt: skip
    plan = schedule.Schedule(factor, round(times.duration(longest) * 1e9) if longest else None)
    session = session or f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    url = "" if output and not from_stream else running.nats_url(settings)
    one = Replay(session, plan)
    try:
        asyncio.run(_print(one, settings, what, url, output) if output else _publish(one, settings, what, url, chosen))
    except Exception:
        if one.totals.verdicts:
            show.say(one.summary())
        raise
    except KeyboardInterrupt:
        show.say(one.summary())
        raise
    show.say(one.summary())


async def _publish(one: Replay, settings: Settings, what: _Asked, url: str, forms: tuple[str, ...]) -> None:
    from collector.settings import CollectorSettings
    from ztlens.replay.publish import Publisher

    await nats.check(url)
    async with AsyncExitStack() as stack:
        client = await _connected(stack, url)
        cap = settings["live_cap"] if settings.given("live_cap") else CollectorSettings.live_cap
        publisher = Publisher(client, one.session, settings.node, forms, cap)
        windows = await _windows(stack, settings, what, url)
        line = f"session {one.session}; to see it: ztlens observe --replay {shlex.quote(one.session)}"
        await one.publish(_begun(windows, line), publisher)


async def _print(one: Replay, settings: Settings, what: _Asked, url: str, output: str) -> None:
    from ztlens.replay.publish import Shown
    from ztlens.verdicts import Printer

    # asyncio's own handler only cancels: that would wait for a write to a reader that is paused.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    async with AsyncExitStack() as stack:
        await one.run(await _windows(stack, settings, what, url), Shown(Printer(output)))


async def _windows(stack: AsyncExitStack, settings: Settings, what: _Asked, url: str) -> AsyncIterator[Window]:
    """What was asked for; `stack` closes what it is read from."""
    from ztlens.replay.run import threaded
    from ztlens.replay.stream import StreamWindows
    from ztlens.replay.windows import Reader

    if what.from_stream:
        client = await _connected(stack, url)
        return StreamWindows(client, what.predicate, what.since, what.until).windows()
    if what.source or what.soon:
        kept = stack.enter_context(await asyncio.to_thread(lookup.history, settings, what.source))
        reader = Reader(lambda: nullcontext(kept), what.predicate)
    else:  # a replay of hours must not keep a sink from its file
        reader = Reader(lambda: lookup.history(settings), what.predicate)
    return threaded(reader.windows(what.since, what.until))


async def _begun(windows: AsyncIterator[Window], line: str) -> AsyncIterator[Window]:
    """The same; before the first `line` is said, and what is imported by then leaves the garbage collector's sight."""
    first = True
    async for window in windows:
        if first:
            show.say(line)
            gc.collect()
            gc.freeze()  # or it would be looked at now and then, 35 ms each time
            first = False
        yield window


async def _connected(stack: AsyncExitStack, url: str) -> Client:
    """For good: what is sent while NATS is away would be lost, so its going away ends a replay."""
    import nats as library

    async def quiet(error: Exception) -> None:
        """Whoever uses the connection gets an error, too."""

    client: Client = await library.connect(url, name="ztlens replay", allow_reconnect=False, error_cb=quiet)
    stack.push_async_callback(client.close)
    return client
