"""`judge`: what a policy says about a capture, by the kernel program itself."""

from pathlib import Path
from typing import Annotated

import typer

from ztlens import show
from ztlens.command import LOADING, installation
from ztlens.commands.history import check_output
from ztlens.config import Settings
from ztlens.errors import BadInput


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "judge", LOADING)(judge)


def judge(
    settings: Settings,
    file: Annotated[Path, typer.Argument(metavar="FILE.pcap", help="pcap or pcapng.")],
    policy: Annotated[Path, typer.Option("--policy", metavar="FILE", help="The policy to judge by.")],
    mode: Annotated[str, typer.Option(metavar="monitor|enforce", help="What the node would do.")] = "monitor",
    output: Annotated[str, typer.Option("-o", "--output", metavar="json|table")] = "json",
) -> None:
    """The kernel program over a capture, no interface touched: one verdict a packet."""
    check_output(output, ("json", "table"))
    if mode not in ("monitor", "enforce"):
        raise BadInput(f"{mode!r} is not a mode", "monitor or enforce")
    from policy.source import compile_text, read_text
    from schemas.codes import Mode
    from ztlens import judging

    compiled = compile_text(read_text(policy), str(policy))
    lines = judging.judge(file, compiled, Mode[mode.upper()], settings["loader"])
    if output == "table":
        show.table(judging.FIELDS, (list(line.values()) for line in lines))
        return
    for line in lines:
        show.line(line)
