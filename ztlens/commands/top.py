"""`top`: what happens now."""

import contextlib
import sys
import time
from typing import Annotated

import typer

from ztlens import show
from ztlens.command import installation
from ztlens.commands.history import check_output
from ztlens.config import Settings
from ztlens.errors import BadInput
from ztlens.top import BY, REFRESH, Document, look, plain, screen

ROWS = 20
"""Where there is no screen to fill."""


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "top")(top)


def top(
    settings: Settings,
    *,
    by: Annotated[str, typer.Option(metavar="pair|rule|port|source", help="One row for each.")] = "pair",
    last: Annotated[int | None, typer.Option("--last", "-n", min=1, metavar="N", help="At most N rows.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="table|json")] = "table",
) -> None:
    """Who talks most now, and what policy says to it; q or Ctrl-C ends. In a pipe one look; -o json: one a second."""
    check_output(output, ("table", "json"))
    if by not in BY:
        raise BadInput(f"{by!r} is nothing to sum up by", "one of " + ", ".join(BY))
    from sink.client import History

    with History.over_socket(settings.run_dir / "sink.sock") as history, contextlib.suppress(KeyboardInterrupt):

        def take(most: int) -> Document:
            return look(settings, history, by, most)

        if output == "json":
            while True:
                show.line(take(last or ROWS))
                sys.stdout.flush()  # whoever reads has each look at once
                time.sleep(REFRESH)
        elif show.on_terminal():
            screen(take, last)
        else:
            plain(take(last or ROWS))
