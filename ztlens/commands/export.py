"""`export`, `evidence check`: history as files, to keep, to hand on, to prove."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas import times
from ztlens import lookup, show
from ztlens.command import installation
from ztlens.commands.history import From, Since, Until, check_output
from ztlens.config import Settings
from ztlens.errors import NO, BadInput, CliError, explain

if TYPE_CHECKING:
    from sink.history.export import Done

Output = Annotated[str, typer.Option("-o", "--output", metavar="table|json")]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    installation(app, "export")(export)
    evidence = typer.Typer(help="Bundles for an auditor, made by `export --evidence`.", rich_markup_mode=None)
    evidence.command("check")(check)
    app.add_typer(evidence, name="evidence")


def export(
    settings: Settings,
    *,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Where to; made if it is not there.")] = None,
    since: Since = "",
    until: Until = "",
    source: From = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="A bundle for an auditor: with the hash of every file.")
    ] = False,
    output: Output = "table",
) -> None:
    """Write history as Parquet, an hour a file: a directory that every command reads with --from."""
    from sink import evidence as bundle
    from sink.history import export as exporting

    check_output(output, ("table", "json"))
    if to is None:
        raise BadInput("where to is missing", "give --to DIR")
    begin, end = times.span_ns(since, until)
    with lookup.history(settings, source) as history:
        if evidence:
            digest = bundle.make(history, to, begin, end, said=show.progress)
            _told_evidence(to, digest, output)
            return
        done = exporting.export(history, to, begin, end, said=show.progress)
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


def _told_evidence(to: Path, digest: str, output: str) -> None:
    if output == "json":
        show.document({"directory": str(to.absolute()), "sha256": digest})
        return
    print(f"{to}: evidence; write this hash down where nobody who can change the files can change it:")
    print(digest)
    print(f"check it with: ztlens evidence check {to} --hash {digest}")


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    sha256: Annotated[str, typer.Option("--hash", metavar="HASH", help="The hash that was written down.")] = "",
    output: Output = "table",
) -> None:
    """Check a bundle offline: every hash, the counts, the ledger, the policies. Exit status 1 names what is wrong."""
    from sink import evidence as bundle

    check_output(output, ("table", "json"))
    done = bundle.check(directory, sha256, show.progress)
    if output == "json":
        show.document({
            "valid": not done.problems, "sha256": done.sha256, "files": done.files, "verdicts": done.verdicts,
            "problems": [{"file": name, "problem": problem} for name, problem in done.problems],
        })  # fmt: skip
    elif done.problems:
        show.table(["file", "problem"], done.problems)
    else:
        print(f"{directory}: {done.files} files, {done.verdicts:,} verdicts, all as they were; the ledger balances")
        print(f"{done.sha256}  is the hash of it all{'' if sha256 else ': compare it with the one written down'}")
    if done.problems:
        first = done.problems[0]
        error = CliError(
            f"{directory} is not as it was made: {first[0]} {first[1]}", "take another copy, or find out who had it", NO
        )
        show.say(str(explain(error)))
        raise typer.Exit(NO)
