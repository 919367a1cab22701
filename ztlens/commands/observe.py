"""`observe`: verdicts, live and recorded, one syntax."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from schemas.filters import Filters, predicate
from ztlens import lookup, running
from ztlens.command import installation
from ztlens.commands.filtering import filtered
from ztlens.config import Settings
from ztlens.errors import BadInput
from ztlens.verdicts import FORMATS, Printer, Row, recorded

LAST = 20
"""Verdicts shown when neither a time nor a number was asked for."""


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "observe")(filtered(observe))


def observe(
    settings: Settings,
    asked: Filters,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Live, as they come.")] = False,
    last: Annotated[int | None, typer.Option("--last", "-n", min=0, metavar="N", help="The newest N.")] = None,
    replay: Annotated[str, typer.Option(metavar="SESSION", help="What `ztlens replay` sends, until its end.")] = "",
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Recorded verdicts of an export, not of the sink.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="compact|table|json|dict")] = "compact",
) -> None:
    """Show verdicts, live (-f) and recorded. The same option twice is OR, different options are AND."""
    if output not in FORMATS:
        raise BadInput(f"{output!r} is not an output of `observe`", "one of " + ", ".join(FORMATS))
    if follow and output == "table":
        raise BadInput("a table has an end, -f has none", "use -o compact, json or dict")
    if follow and asked.until:
        raise BadInput("--until and -f exclude each other", "leave one of them out")
    if follow and source is not None:
        raise BadInput("--from and -f exclude each other", "an export has an end: leave one of them out")
    if replay and (follow or last is not None):
        raise BadInput("--replay excludes -f and --last", "leave them out: a replay is followed to its end")
    now = datetime.now(UTC)
    found = predicate(asked, now)
    printer = Printer(output)

    def stored(limit: int | None) -> Iterator[Row]:
        return recorded(lookup.history(settings, source), asked, limit, now)

    if not follow and not replay:
        printer.write(stored(LAST if last is None and not asked.since and not asked.until else last))
        printer.close()
        return
    import asyncio
    import signal

    from schemas import subjects
    from ztlens import live

    async def before() -> list[Row]:
        if last is None and not asked.since:
            return []
        return await asyncio.to_thread(lambda: list(stored(last)))

    async def shown(url: str) -> None:
        # asyncio's own handler only cancels: that would wait for a write to a reader that is paused.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if replay:
            await live.follow(url, found, printer.write, wanted=[subjects.replay_whole(replay)])
        else:  # none twice: the subscription is there before what is recorded is asked for
            await live.follow(url, found, printer.write, before)

    asyncio.run(shown(running.nats_url(settings)))
    printer.close()
