"""`export`, `evidence check`: history as files, to keep, to hand on, to prove."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztlens import lookup, show, times
from ztlens.command import installation
from ztlens.commands.history import From, Since, Until, check_output
from ztlens.config import Settings
from ztlens.errors import BadInput

if TYPE_CHECKING:
    from sink.history.export import Done

Output = Annotated[str, typer.Option("-o", "--output", metavar="table|json")]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    installation(app, "export")(export)


def export(
    settings: Settings,
    *,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Where to; made if it is not there.")] = None,
    since: Since = "",
    until: Until = "",
    source: From = None,
    output: Output = "table",
) -> None:
    """Write history as Parquet, an hour a file: a directory that every command reads with --from."""
    from sink.history import export as exporting

    check_output(output, ("table", "json"))
    if to is None:
        raise BadInput("where to is missing", "give --to DIR")
    span = [times.nanoseconds(times.moment(text)) if text else None for text in (since, until)]
    if span[0] is not None and span[1] is not None and span[0] >= span[1]:
        raise BadInput("--until is not after --since", "give the earlier moment to --since")
    with lookup.history(settings, source) as history:
        done = exporting.export(history, to, span[0], span[1], said=show.progress)
    _told(done, to, output)


def _told(done: "Done", to: Path, output: str) -> None:
    """What was written and what is there now."""
    manifest = done.manifest
    held, verdicts = sum(file.bytes for file in manifest.files), sum(f.rows for f in manifest.of_table("verdicts"))
    document = {
        "directory": str(to.absolute()), "written": {"files": done.files, "rows": done.rows, "bytes": done.bytes},
        "files": len(manifest.files), "bytes": held,
        "verdicts": verdicts, "nodes": manifest.nodes,
        "manifest_sha256": done.manifest_sha256,
    }  # fmt: skip
    if output == "json":
        show.document(document)
        return
    print(
        f"{to}: {verdicts:,} verdicts in {len(manifest.files)} files, {times.amount(held)};"
        f" written now: {done.files} files, {times.amount(done.bytes)}"
    )
    print(f"read it with --from {to}, or any Parquet reader: verdicts/**/*.parquet")
