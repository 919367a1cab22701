"""The `ztlens` command: the tree of commands, and the only place where an error becomes a line and an exit status.

Only the modules of commands that a command line may mean are imported: the others would cost half of its time.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from ztlens.command import Config, Database, Debug, Instance, Nats, RunDir, State, remember
from ztlens.errors import INTERRUPTED, explain

ROOMS = {
    "service": ("up", "down", "collector", "sink", "web"),
    "observe": ("observe",),
    "replay": ("replay",),
    "audit": ("audit",),
    "top": ("top",),
    "history": ("sql", "violations", "flows", "ledger"),
    "export": ("export", "evidence"),
    "rules": ("policy", "mode"),
    "judge": ("judge",),
    "health": ("status", "doctor", "config", "version"),
    "demo": ("demo",),
}
"""Module of ztlens.commands → the commands it adds, in the order of `ztlens --help`."""


def tree(words: Collection[str] | None = None) -> typer.Typer:
    """All commands, or those modules' that have a command among `words`, if any has."""
    app = typer.Typer(
        name="ztlens",
        help="Judges every packet against policy.yaml inside the Linux kernel and keeps the verdicts as SQL history.",
        epilog="Exit status: 0 done; 1 the answer is no; 2 usage or bad input; 3 something needed is missing.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    wanted = [room for room, commands in ROOMS.items() if words is None or not set(words).isdisjoint(commands)]
    for room in wanted or ROOMS:
        importlib.import_module(f"ztlens.commands.{room}").add(app)
    return app


def __getattr__(name: str) -> Any:
    """`app`: the whole tree, for tests of the documentation."""
    if name == "app":
        return tree()
    raise AttributeError(name)


def root(
    context: typer.Context,
    *,
    state: State = None,
    run_dir: RunDir = None,
    instance: Instance = None,
    database: Database = None,
    nats: Nats = None,
    config_file: Config = None,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Common options may stand here or behind the command."""
    remember(
        state=state, run_dir=run_dir, instance=instance, database=database, nats=nats, config_file=config_file,
        debug=debug,
    )  # fmt: skip
    if version:
        from ztlens.commands.health import print_version

        print_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line. The exit status of docs/cli.md; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get("ZTLENS_DEBUG"))
    try:
        words = None if "_ZTLENS_COMPLETE" in os.environ else arguments
        status = get_command(tree(words)).main(args=list(arguments), prog_name="ztlens", standalone_mode=False)
        if status == INTERRUPTED:
            _quiet_stdout()  # a reader that is paused would hold up the flush
        sys.stdout.flush()
    except (BrokenPipeError, typer.Abort) as error:
        _quiet_stdout()
        return 0 if isinstance(error, BrokenPipeError) else INTERRUPTED
    except KeyboardInterrupt:
        _quiet_stdout()
        return INTERRUPTED
    except SystemExit as error:
        # typer answers a broken pipe with sys.exit(1)
        if isinstance(error.__context__, BrokenPipeError):
            _quiet_stdout()
            return 0
        return error.code if isinstance(error.code, int) else 0
    except BaseExceptionGroup as group:
        return _tell(_first(group), debug)
    except Exception as error:
        return _tell(error, debug)
    return status if isinstance(status, int) else 0


def _first(group: BaseExceptionGroup) -> BaseException:
    """Task groups wrap even a single error."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _tell(error: BaseException, debug: bool) -> int:
    told = explain(error)
    if debug or told.unforeseen:
        traceback.print_exception(error)
    try:
        sys.stdout.flush()
        print(told, file=sys.stderr)
    except OSError:
        _quiet_stdout()
    return told.exit_status


def _quiet_stdout() -> None:
    """Nobody reads any more: the interpreter must not complain when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
