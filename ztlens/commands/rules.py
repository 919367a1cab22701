"""`policy apply|show` and `mode`: what decides. `policies` has the questions about policies."""

from typing import Annotated

import typer

from ztlens import show, times
from ztlens.command import installation
from ztlens.commands import policies
from ztlens.commands.history import check_output
from ztlens.commands.policies import Output, PolicyFile, read
from ztlens.config import Settings
from ztlens.errors import BadInput
from ztlens.lookup import collector_request


def add(app: typer.Typer) -> None:
    """Register the commands."""
    policy = typer.Typer(help="Check, compare, explain, apply and show policies.", rich_markup_mode=None)

    @policy.callback(invoke_without_command=True)
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    policies.add(policy)
    installation(policy, "apply")(apply)
    installation(policy, "show")(shown)
    app.add_typer(policy, name="policy")
    installation(app, "mode")(mode)


def apply(settings: Settings, file: PolicyFile, output: Output = "table") -> None:
    """Make a policy the running one. A broken file changes nothing."""
    check_output(output, ("table", "json"))
    from policy.compile import compile_policy
    from policy.parse import parse

    text, name = read(file)
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
