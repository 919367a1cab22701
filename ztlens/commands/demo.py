"""`demo`: a small network of namespaces with real traffic, watched, stored and summed up."""

import asyncio
from typing import Annotated

import typer

from schemas import times
from ztlens import config, show
from ztlens.command import LOADING, installation
from ztlens.config import Settings
from ztlens.errors import NO, BadInput

FIXED = ("instance", "run_dir", "database", "nats")


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "demo", LOADING)(demo)


def demo(
    settings: Settings,
    *,
    duration: Annotated[str, typer.Option(metavar="TIME", help="How long the traffic lasts.")] = "30s",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the history for `ztlens sql`.")] = False,
    enforce: Annotated[bool, typer.Option("--enforce", help="Drop what policy.yaml denies.")] = False,
    web: Annotated[str, typer.Option(metavar="HOST:PORT|off", help="Where the page listens.")] = "127.0.0.1:0",
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """A small network with real traffic and one intruder: watch it, then see what was seen. Leaves nothing behind.

    With --state DIR the history is written there and stays.
    """
    from ztlens.demo.run import Options, run
    from ztlens.demo.summary import write

    if output not in ("text", "json"):
        raise BadInput(f"{output!r} is not an output of `demo`", "one of text, json")
    for name in FIXED:
        option = f"--{name.replace('_', '-')}"
        if settings.origins.get(name) == option:
            raise BadInput(f"{option} is not for the demo", "it is an installation of its own; leave it out")
    state = settings.state if settings.origins.get("state") == "--state" else None
    options = Options(
        times.duration(duration), keep, enforce, output == "text", state, config.parsed("web", web), settings["loader"]
    )
    outcome = asyncio.run(run(options))
    if output == "json":
        show.document(outcome.summary)
    else:
        write(outcome.summary, enforced=enforce)
    if outcome.state is not None:
        show.say(f'history stays: ztlens sql --state {outcome.state} "SELECT * FROM violations LIMIT 10"')
    if not outcome.summary["balanced"]:
        raise typer.Exit(NO)
