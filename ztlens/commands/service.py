"""`up`, `down`, `collector`, `sink`, `web`: what runs."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas import times
from ztlens import checks, config, show
from ztlens.command import LOADING, installation, with_options
from ztlens.config import Settings
from ztlens.errors import BadInput, Missing

if TYPE_CHECKING:
    from ztlens.up import Up

WATCHING = {
    "interfaces": Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--interface",
            metavar="IFACE[:ingress|egress|both]",
            help="What to watch; repeat for more. A pattern in quotes ('veth*') takes in what comes later.",
        ),
    ],
    "policy": Annotated[str | None, typer.Option(metavar="FILE", help="policy.yaml to start with.")],
    "netns": Annotated[str | None, typer.Option(metavar="NAME", help="Network namespace of the interfaces.")],
    "mode": Annotated[str | None, typer.Option(metavar="monitor|enforce", help="Judge only, or judge and drop.")],
    "node": Annotated[str | None, typer.Option(metavar="NAME", help="Name of this host in verdicts.")],
}
"""Options of what watches interfaces, by the name of their setting."""
METRICS = {
    "metrics": Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where Prometheus may ask.")],
}
"""An option of either service."""
KEEPING = {
    "archive": Annotated[
        str | None, typer.Option(metavar="DIR", help="Export verdicts there before they are deleted.")
    ],
}
"""Options of what keeps history."""
SHOWING = {
    "web": Annotated[str | None, typer.Option(metavar="HOST:PORT|off", help="Where the page listens.")],
    "web_names": Annotated[
        str | None, typer.Option(metavar="NAMES", help="By what names else browsers reach the page, with commas.")
    ],
}
"""Options of the page."""


def add(app: typer.Typer) -> None:
    """Register the commands."""
    installation(app, "up", WATCHING | LOADING | METRICS | SHOWING)(up)
    installation(app, "down")(down)
    installation(app, "collector", WATCHING | LOADING | METRICS)(collector)
    installation(app, "sink", KEEPING | METRICS)(sink)
    installation(app, "web", SHOWING)(web)


def up(
    settings: Settings,
    *,
    nats_server: Annotated[str | None, typer.Option(metavar="PROGRAM", help="nats-server to start.")] = None,
    nats_port: Annotated[str | None, typer.Option(metavar="PORT", help="Port of the bundled NATS.")] = None,
    observe: Annotated[
        bool | None, typer.Option("--observe/--quiet", help="Show live verdicts (default: if a terminal looks on).")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="Live verdicts as compact, json or dict.")] = "compact",
) -> None:
    """Run everything on this host: NATS, collector, sink and the page. Ctrl-C takes it down."""
    import asyncio

    from ztlens.up import Up

    settings = with_options(settings, nats_server=nats_server, nats_port=nats_port)
    if output not in ("compact", "json", "dict"):
        raise BadInput(f"{output!r} is not an output of `up`", "one of compact, json, dict")
    look = show.on_terminal() if observe is None else observe

    async def live(running: "Up", ready: asyncio.Event) -> None:
        from ztlens.live import follow
        from ztlens.screen import Screen
        from ztlens.verdicts import Printer, Row

        async def before() -> list[Row]:
            ready.set()
            return []

        await follow(running.url, "TRUE", Printer(output, Screen()).write, before)

    one = Up(settings)

    async def tell(running: "Up") -> None:
        for line in await asyncio.to_thread(_started, running):
            show.say(line)

    asyncio.run(one.run(tell, live if look else None))
    if one.ledger is not None:
        if one.closed is None:
            account = "the ring was not closed, its last events are not accounted for"
        elif not one.settled:
            account = "the ledger is not complete, the stream keeps the rest until the next start"
        else:
            account = "the ledger is balanced" if one.ledger["balanced"] else "the ledger does not balance"
        show.say(f"down; {account}; history stays in {settings.database}")


def _started(running: "Up") -> list[str]:
    """What is on, and what to try next."""
    from collector.interfaces import few
    from ztlens.lookup import collector_request

    settings = running.settings
    status: dict[str, Any] = collector_request(settings.run_dir, "status")
    interfaces = status.get("interfaces") or {}
    watched = few([f"{name} ({how})" for name, how in interfaces.items()]) or "nothing yet"
    known = status.get("policy") or {}
    has_policy = bool(status.get("policy_hash") or (isinstance(known, dict) and known.get("hash")))
    suffix = "" if settings.instance == "default" else f" --instance {settings.instance}"
    lines = [
        f"watching {watched} as node {settings.node}, mode {status['mode']}, revision {status['revision']}",
        f"history in {settings.database}, NATS at {_address(running.url)}",
    ]
    if running.metrics:
        lines.append("metrics at " + ", ".join(f"http://{at}/metrics ({name})" for name, at in running.metrics.items()))
    if not has_policy:
        lines.append(f"no policy yet: everything is allowed; next: `ztlens policy apply FILE{suffix}`")
    lines.append(
        f"try `ztlens observe -f{suffix}`, `ztlens violations{suffix}`, `ztlens status{suffix}`; Ctrl-C ends it"
    )
    return lines


def _address(url: str) -> str:
    from ztlens.nats import masked

    return masked(url).replace("***@", "")


def down(settings: Settings) -> None:
    """Stop what runs here and take the programs off the interfaces."""
    from ztlens import down as taking

    if not taking.down(settings, show.say):
        show.say(f"instance {settings.instance} is down already")


def collector(settings: Settings) -> None:
    """Run the collector alone: load, attach, judge, publish."""
    from collector.kernel.interface import Interface
    from collector.settings import CollectorSettings
    from schemas.codes import Mode as NodeMode

    nats_url = _nats(settings)
    checks.place(settings, "collector")
    _log()
    chosen = CollectorSettings(
        node=settings.node,
        interfaces=tuple(Interface(*config.split_interface(text)) for text in settings["interfaces"]),
        instance=settings.instance,
        nats_url=nats_url,
        netns=settings["netns"],
        policy_file=settings["policy"],
        mode=NodeMode[settings["mode"].upper()] if settings["mode"] else None,
        run_dir=settings.run_dir,
        pins=settings.pins,
        loader=settings["loader"],
        knobs=settings["knobs"],
        timeouts=settings["timeouts"],
        metrics=settings["metrics"],
        debug=_debug(),
        **settings.owned("collector"),
    )
    from collector.first import kernel_side_first

    open_datapath = kernel_side_first(chosen, adopting=checks.pinned(settings))
    import asyncio

    from collector.service import run

    asyncio.run(run(chosen, open_datapath=open_datapath))


def sink(
    settings: Settings,
    *,
    compact: Annotated[
        bool, typer.Option("--compact", help="Rewrite the database so that it shrinks, and end.")
    ] = False,
) -> None:
    """Run the sink alone: store what is published, answer questions."""
    import asyncio

    from sink.service import run
    from sink.settings import SinkSettings

    if compact:
        _compact(settings)
        return
    nats_url = _nats(settings)
    _log()
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    asyncio.run(
        run(
            SinkSettings(
                database=settings.database,
                nats_url=nats_url,
                run_dir=settings.run_dir,
                metrics=settings["metrics"],
                **settings.owned("sink"),
            )
        )
    )


def web(settings: Settings) -> None:
    """Run the page alone: it asks the sink of this installation, and prints the link that opens it."""
    import asyncio

    from web.service import run
    from web.settings import WebSettings

    if settings["web"] in ("off", ""):
        raise BadInput("the page is off", "say where it listens: `ztlens web --web 127.0.0.1:7420`")
    _log()
    asyncio.run(
        run(
            WebSettings(
                socket=settings.run_dir / "sink.sock",
                run_dir=settings.run_dir,
                state=settings.state,
                listen=settings["web"],
                names=settings["web_names"],
                program=program(settings),
            )
        )
    )


def program(settings: Settings) -> tuple[str, ...]:
    """The command `ztlens` as any shell of this host is to give it: with what it would take otherwise by itself."""
    words, given = ["sudo", "ztlens"], dict[str, object]()
    for name in ("instance", "state", "run_dir", "database"):
        if _plain(given)[name] != settings[name]:
            given[name] = str(settings[name])
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    return tuple(words)


def _plain(options: dict[str, object]) -> Settings:
    """Settings of a shell that has none of ours."""
    try:
        return config.load(options, {})
    except BadInput:  # that of the host is broken: it is another's
        return config.load(options, {}, Path(os.devnull))


def _compact(settings: Settings) -> None:
    from sink.store.compaction import compact

    done = compact(settings.database, said=show.progress)
    print(
        f"{settings.database}: {done.verdicts:,} verdicts, {times.amount(done.before)} before,"
        f" {times.amount(done.after)} now"
    )


def _nats(settings: Settings) -> str:
    """The server's URL. Raises Missing, BadInput."""
    from ztlens.nats import refuse_url

    if not settings.nats:
        raise Missing("no NATS server was named", "give --nats URL or ZTLENS_NATS, or use `ztlens up`")
    refuse_url(settings.nats)
    return settings.nats


def _debug() -> bool:
    return "--debug" in sys.argv


def _log() -> None:
    """Services tell what they do on stderr, a line each; the journal adds the time."""
    logging.basicConfig(level=logging.DEBUG if _debug() else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("nats", "asyncio", "uvicorn", "uvicorn.access", "uvicorn.error", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
