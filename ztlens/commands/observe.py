"""`observe`: verdicts, live and recorded, one syntax."""

from typing import Annotated, Any

import typer

from ztlens import lookup, running
from ztlens.command import installation
from ztlens.config import Settings
from ztlens.errors import BadInput
from ztlens.filters import Filters, predicate
from ztlens.verdicts import FORMATS, Printer, Row, recorded

LAST = 20
"""Verdicts shown when neither a time nor a number was asked for."""

Words = list[str] | None


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "observe")(observe)


def observe(
    settings: Settings,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Live, as they come.")] = False,
    last: Annotated[int | None, typer.Option("--last", "-n", min=0, metavar="N", help="The newest N.")] = None,
    since: Annotated[str, typer.Option(metavar="T", help="From then on: 10m, 2h, RFC 3339 or a date.")] = "",
    until: Annotated[str, typer.Option(metavar="T", help="Before then.")] = "",
    decision: Annotated[Words, typer.Option("--decision", "--verdict", metavar="allow|deny")] = None,
    outcome: Annotated[Words, typer.Option(metavar="passed|dropped")] = None,
    from_ip: Annotated[Words, typer.Option(metavar="CIDR", help="Who opened the flow.")] = None,
    to_ip: Annotated[Words, typer.Option(metavar="CIDR", help="Whom it was opened to.")] = None,
    ip: Annotated[Words, typer.Option(metavar="CIDR", help="Either end.")] = None,
    from_identity: Annotated[Words, typer.Option(metavar="NAME")] = None,
    to_identity: Annotated[Words, typer.Option(metavar="NAME")] = None,
    identity: Annotated[Words, typer.Option(metavar="NAME", help="Either end.")] = None,
    from_label: Annotated[Words, typer.Option(metavar="KEY=VALUE")] = None,
    to_label: Annotated[Words, typer.Option(metavar="KEY=VALUE")] = None,
    port: Annotated[Words, typer.Option(metavar="PORT[/PROTO]", help="443, 443/tcp, 8000-8100.")] = None,
    protocol: Annotated[Words, typer.Option("--protocol", "--proto", metavar="PROTO")] = None,
    rule: Annotated[Words, typer.Option(metavar="NAME")] = None,
    reason: Annotated[Words, typer.Option(metavar="REASON")] = None,
    node: Annotated[Words, typer.Option(metavar="NAME")] = None,
    event: Annotated[Words, typer.Option(metavar="new|sample|change|end")] = None,
    direction: Annotated[Words, typer.Option(metavar="original|reply")] = None,
    where: Annotated[Words, typer.Option(metavar="SQL", help="A predicate over the columns of `verdicts`.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="compact|table|json|dict")] = "compact",
) -> None:
    """Show verdicts, live (-f) and recorded. The same option twice is OR, different options are AND."""
    if output not in FORMATS:
        raise BadInput(f"{output!r} is not an output of `observe`", "one of " + ", ".join(FORMATS))
    if follow and output == "table":
        raise BadInput("a table has an end, -f has none", "use -o compact, json or dict")
    if follow and until:
        raise BadInput("--until and -f exclude each other", "leave one of them out")
    asked = Filters(
        decision=_several(decision), outcome=_several(outcome), event=_several(event), direction=_several(direction),
        reason=_several(reason), rule=tuple(rule or ()), node=tuple(node or ()), from_ip=_several(from_ip),
        to_ip=_several(to_ip), ip=_several(ip), from_identity=tuple(from_identity or ()),
        to_identity=tuple(to_identity or ()), identity=tuple(identity or ()), from_label=tuple(from_label or ()),
        to_label=tuple(to_label or ()), port=_several(port), protocol=_several(protocol), where=tuple(where or ()),
        since=since, until=until,
    )  # fmt: skip
    found = predicate(asked)
    printer = Printer(output)
    if not follow:
        limit = LAST if last is None and not since and not until else last
        printer.write(_recorded(settings, found, limit))
        printer.close()
        return
    import asyncio

    url = running.nats_url(settings)
    asyncio.run(_follow(settings, url, found, last, printer, look_back=last is not None or bool(since)))


def _several(given: Words) -> tuple[str, ...]:
    """Repeated options, each of which may be a list with commas."""
    return tuple(part.strip() for text in given or () for part in text.split(",") if part.strip() or "," not in text)


def _recorded(settings: Settings, found: str, limit: int | None) -> Any:
    return recorded(lookup.history(settings), found, limit)


async def _follow(
    settings: Settings, url: str, found: str, last: int | None, printer: Printer, *, look_back: bool
) -> None:
    """Live verdicts; before them the recorded ones, if asked for. None twice: the subscription is there first."""
    import asyncio
    import signal

    from ztlens.live import follow

    # asyncio's own handler only cancels: that would wait for a write to a reader that is paused.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def before() -> list[Row]:
        if not look_back:
            return []
        return list(await asyncio.to_thread(_recorded, settings, found, last))

    await follow(url, found, printer.write, before)
