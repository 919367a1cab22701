"""`policy apply|confirm|show` and `mode`: what decides, changed so that nobody locks himself out. `policies` has the
questions about policies."""

from typing import Annotated, Any

import typer

from schemas import times
from ztlens import show, ssh
from ztlens.command import installation
from ztlens.commands import policies, suggest
from ztlens.commands.history import check_output
from ztlens.commands.policies import Output, PolicyFile, read
from ztlens.config import Settings
from ztlens.errors import BadInput
from ztlens.lookup import collector_request

Within = Annotated[
    str | None, typer.Option("--confirm-within", metavar="TIME", help="Fall back unless confirmed until then.")
]
Force = Annotated[bool, typer.Option("--yes", "--force", help="Even if it cuts the SSH session this comes through.")]


def add(app: typer.Typer) -> None:
    """Register the commands."""
    policy = typer.Typer(help="Check, apply and show the policy.", rich_markup_mode=None)

    @policy.callback(invoke_without_command=True)
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            print(context.get_help())

    policies.add(policy)
    suggest.add(policy)
    installation(policy, "apply")(apply)
    installation(policy, "confirm")(confirm)
    installation(policy, "show")(shown)
    app.add_typer(policy, name="policy")
    installation(app, "mode")(mode)


def apply(
    settings: Settings, file: PolicyFile, confirm_within: Within = None, force: Force = False, output: Output = "table"
) -> None:
    """Make a policy the running one. A broken file changes nothing."""
    check_output(output, ("table", "json"))
    from policy.source import compile_text

    text, name = read(file)
    compile_text(text, name)
    absolute = name if name == "stdin" else str(file.absolute())
    caution = _caution(confirm_within, force)
    result = collector_request(settings.run_dir, "policy.apply", text=text, file=absolute, **caution)
    _warn(result)
    if output == "json":
        show.document(result)
        return
    verb = "is in force" if result.get("changed", True) else "was in force already"
    show.say(f"revision {result.get('revision', '?')} {verb} ({result.get('hash', '')[:12]})")
    _tell_how_to_confirm(result, "ztlens policy confirm")


def confirm(settings: Settings, output: Output = "table") -> None:
    """Keep the policy that was applied with --confirm-within."""
    _confirm(settings, "policy.confirm", output)


def _confirm(settings: Settings, op: str, output: str) -> None:
    check_output(output, ("table", "json"))
    result = collector_request(settings.run_dir, op)
    if output == "json":
        show.document(result)
    else:
        show.say(f"confirmed: revision {result['revision']}, mode {result['mode']}")


def shown(
    settings: Settings,
    output: Annotated[str, typer.Option("-o", "--output", metavar="yaml|json")] = "yaml",
) -> None:
    """The running policy as it was applied, and which built-in rules are on."""
    check_output(output, ("yaml", "json"))
    result = collector_request(settings.run_dir, "policy.show")
    if output == "json":
        show.document(result)
        return
    text = result.get("text", "")
    head = f"# revision {result.get('revision', '?')}, mode {result.get('mode', '?')}"
    if result.get("who"):
        head += f", by {result['who']}"
    print(head)
    if result.get("unconfirmed"):
        print(f"# {unconfirmed_line(result['unconfirmed'])}")
    print(f"# {policies.builtin_line(result.get('builtins', {}))}")
    print(text.rstrip("\n") or "# no policy: everything is allowed; next: ztlens policy apply FILE")


def mode(
    settings: Settings,
    mode: Annotated[str | None, typer.Argument(metavar="[monitor|enforce|confirm]", show_default=False)] = None,
    confirm_within: Within = None,
    force: Force = False,
    output: Output = "table",
) -> None:
    """Show or set the node's mode: monitor judges, enforce drops too. `confirm` keeps one set with --confirm-within."""
    check_output(output, ("table", "json"))
    if mode is not None and mode not in ("monitor", "enforce", "confirm"):
        raise BadInput(f"{mode!r} is not a mode", "monitor or enforce; or confirm")
    if mode in (None, "confirm") and (confirm_within is not None or force):
        raise BadInput("--confirm-within and --force go with a mode to set", "ztlens mode enforce --confirm-within 60s")
    if mode == "confirm":
        _confirm(settings, "mode.confirm", output)
        return
    wanted = {} if mode is None else {"mode": mode, **_caution(confirm_within, force)}
    result = collector_request(settings.run_dir, "mode", **wanted)
    _warn(result)
    if output == "json":
        show.document(result)
    else:
        print(result.get("mode", "?"))
    _tell_how_to_confirm(result, "ztlens mode confirm")
    if mode == "enforce" and result.get("changed") and confirm_within is None and show.on_terminal():
        show.say("advice: `ztlens mode enforce --confirm-within 60s` goes back by itself should it lock you out")


def unconfirmed_line(change: dict[str, Any]) -> str:
    """What waits, for how long, and what it falls back to."""
    what = f"revision {change['revision']}" if change["kind"] == "revision" else f"mode {change['mode']}"
    back = f"revision {change['from_revision']}" if change["kind"] == "revision" else f"mode {change['from_mode']}"
    return f"{what} is not confirmed: it falls back to {back} in {times.ago(change['seconds_left'])}"


def _caution(confirm_within: str | None, force: bool) -> dict[str, Any]:
    within = times.duration(confirm_within) if confirm_within is not None else 0
    if confirm_within is not None and not within:
        raise BadInput("--confirm-within 0 leaves no time to confirm", "give it as 60s or 5m")
    return {"confirm_within": within, "force": force, "ssh": ssh.connection()}


def _warn(result: dict[str, Any]) -> None:
    for line in result.get("warnings") or []:
        show.say(f"warning: {line}")


def _tell_how_to_confirm(result: dict[str, Any], command: str) -> None:
    change = result.get("unconfirmed")
    if change and change["kind"] == ("mode" if "mode confirm" in command else "revision"):
        show.say(f"{unconfirmed_line(change)}; keep it with `{command}`")
