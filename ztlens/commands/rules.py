"""`policy check|apply|show` and `mode`: what decides."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ztlens import show, times
from ztlens.command import installation
from ztlens.commands.history import check_output
from ztlens.config import Settings
from ztlens.errors import NO, BadInput, explain
from ztlens.lookup import collector_request, read_policy

Output = Annotated[str, typer.Option("-o", "--output", metavar="table|json")]
PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="policy.yaml; - is standard input.")]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    policy = typer.Typer(help="Check, apply and show the policy.", rich_markup_mode=None)

    @policy.callback(invoke_without_command=True)
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    installation(policy, "check")(check)
    installation(policy, "apply")(apply)
    installation(policy, "show")(shown)
    app.add_typer(policy, name="policy")
    installation(app, "mode")(mode)


def _read(file: Path) -> tuple[str, str]:
    """(text, name) of a policy file."""
    if str(file) == "-":
        return sys.stdin.read(), "stdin"
    return read_policy(file), str(file)


def check(settings: Settings, file: PolicyFile, output: Output = "table") -> None:
    """Parse and compile a policy: its sizes, or where it is wrong. Exit status 1 if it is."""
    check_output(output, ("table", "json"))
    from policy.compile import compile_policy
    from policy.errors import PolicyError
    from policy.parse import parse

    text, name = _read(file)
    try:
        policy = parse(text, name)
        compiled = compile_policy(policy)
    except PolicyError as error:
        told = explain(error)
        if output == "json":
            show.document({"file": name, "ok": False, "errors": [_described(error)]})
        show.say(str(told))
        raise typer.Exit(NO) from error
    sizes: dict[str, Any] = {
        "rules": len(policy.rules), "identities": len(policy.identities), "prefixes": len(compiled.prefixes),
        "source_classes": len(compiled.source_rules), "destination_classes": len(compiled.destination_rules),
        "port_classes": len(compiled.port_rules),
    }  # fmt: skip
    default = policy.default
    word = default if isinstance(default, str) else default.name.lower()
    if output == "json":
        warnings = [str(warning) for warning in getattr(compiled, "warnings", ())]
        show.document({"file": name, "ok": True, "errors": [], "warnings": warnings, "hash": policy.hash,
                       "default": word, **sizes})  # fmt: skip
        return
    print(f"{name}: ok, default {word}, " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in sizes.items()))


def _described(error: Any) -> dict[str, Any]:
    return {
        "file": error.file,
        "line": error.line,
        "column": error.column,
        "message": getattr(error, "message", str(error)),
        "hint": error.hint,
    }


def apply(settings: Settings, file: PolicyFile, output: Output = "table") -> None:
    """Make a policy the running one. A broken file changes nothing."""
    check_output(output, ("table", "json"))
    from policy.compile import compile_policy
    from policy.parse import parse

    text, name = _read(file)
    compile_policy(parse(text, name))
    absolute = name if name == "stdin" else str(file.absolute())
    result = collector_request(settings.run_dir, "policy.apply", text=text, file=absolute)
    if output == "json":
        show.document(result)
        return
    verb = "is in force" if result.get("changed", True) else "was in force already"
    show.say(f"revision {result.get('revision', '?')} {verb} ({result.get('hash', '')[:12]})")


def shown(
    settings: Settings,
    output: Annotated[str, typer.Option("-o", "--output", metavar="yaml|json")] = "yaml",
) -> None:
    """The running policy as it was applied."""
    check_output(output, ("yaml", "json"))
    result = collector_request(settings.run_dir, "policy.show")
    if output == "json":
        show.document(result)
        return
    text = result.get("yaml") or result.get("text") or ""
    head = f"# revision {result.get('revision', '?')}, mode {result.get('mode', '?')}"
    who, when = result.get("who"), result.get("time")
    if who:
        head += f", by {who}"
    if isinstance(when, int) and when:
        head += f", {times.rfc3339(when, local=True, digits=0)}"
    print(head)
    print(text.rstrip("\n") or "# no policy: everything is allowed; next: ztlens policy apply FILE")


def mode(
    settings: Settings,
    mode: Annotated[str | None, typer.Argument(metavar="[monitor|enforce]", show_default=False)] = None,
    output: Output = "table",
) -> None:
    """Show or set the node's mode: monitor judges, enforce drops too."""
    check_output(output, ("table", "json"))
    if mode is not None and mode not in ("monitor", "enforce"):
        raise BadInput(f"{mode!r} is not a mode", "monitor or enforce")
    result = collector_request(settings.run_dir, "mode", **({} if mode is None else {"mode": mode}))
    if output == "json":
        show.document(result)
    else:
        print(result.get("mode", "?"))
