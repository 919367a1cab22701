"""`audit`: recorded traffic under another policy."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas import times
from ztlens import lookup, show
from ztlens.command import installation
from ztlens.commands.history import From, Since, Until, check_output
from ztlens.commands.policies import Output, PolicyFile, read
from ztlens.config import Settings
from ztlens.errors import NO, BadInput, CliError, explain

if TYPE_CHECKING:
    from sink.history.audit import Text

FAIL_ON = {"new-deny": "newly_denied", "new-allow": "newly_allowed", "uncertain": "uncertain"}
"""`--fail-on` → the list that must be empty."""
IDENTITIES = ("day", "now")
LINES = 20
"""Of each list in the table."""
CAUSES = {
    "midstream": "begun before it was seen", "headless_fragment": "a fragment without its first",
    "icmp_unrelated": "an ICMP error without its flow", "builtin": "a built-in rule that was off may allow it",
    "host_unknown": "the node's addresses were not recorded", "rolled_up": "of an hour that the span cuts",
    "untracked": "a packet without a flow, maybe a reply",
}  # fmt: skip
"""`cause` of what cannot be told, in words."""


def add(app: typer.Typer) -> None:
    """Register the command."""
    installation(app, "audit")(audit)


def audit(
    settings: Settings,
    file: PolicyFile,
    *,
    since: Since = "",
    until: Until = "",
    node: Annotated[str, typer.Option(metavar="NAME", help="What this node saw; not given: each flow once.")] = "",
    against: Annotated[
        str, typer.Option(metavar="running|FILE", help="Compare with this policy, not with what was decided.")
    ] = "",
    identities: Annotated[str, typer.Option(metavar="day|now", help="Whose addresses names stand for.")] = "day",
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="new-deny|new-allow|uncertain", help="Exit status 1 if there is any.")
    ] = None,
    source: From = None,
    output: Output = "table",
) -> None:
    """Recorded traffic under another policy: what FILE would newly deny and newly allow, and what cannot be told."""
    check_output(output, ("table", "json"))
    if identities not in IDENTITIES:
        raise BadInput(f"--identities {identities!r}", "one of " + ", ".join(IDENTITIES))
    failing = _failing(fail_on or [])
    begin, end = times.span_ns(since, until)
    from sink.history.audit import RUNNING, Question

    question = Question(
        candidate=_policy(str(file)), since=begin, until=end, node=node or None,
        against=RUNNING if against == RUNNING else _policy(against) if against else None,
        identities="now" if identities == "now" else "day",
    )  # fmt: skip
    with lookup.history(settings, source) as history, waiting("judging what was recorded"):
        found = history.audit(question)
    if output == "json":
        show.document(found)
    else:
        _print(found)
    failed = [name for name in failing if found[name]]
    if failed:
        told = ", ".join(f"{len(found[name])} {name.replace('_', ' ')}" for name in failed)
        show.say(str(explain(CliError(f"the audit has entries: {told}", "they are what --fail-on forbids", NO))))
        raise typer.Exit(NO)


def _failing(given: list[str]) -> list[str]:
    words = [word.strip() for text in given for word in text.split(",")]
    for word in words:
        if word not in FAIL_ON:
            raise BadInput(f"--fail-on {word!r}", "one or more of " + ", ".join(FAIL_ON))
    return [name for word, name in FAIL_ON.items() if word in words]


def _policy(source: str) -> "Text":
    """A policy's text, which is one that compiles. Raises PolicyError with its place."""
    from policy.source import compile_text
    from sink.history.audit import Text

    text, name = read(Path(source))
    compile_text(text, name)
    return Text(text, name)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """How long it has taken, on stderr, where a person is waiting."""
    if not show.on_terminal(sys.stderr):
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(what), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task("")
        yield


# ---- for people


def _print(found: dict[str, Any]) -> None:
    parts = {"unchanged": found["unchanged"]["flows"]}
    parts |= {name: sum(entry["flows"] for entry in found[name]) for name in FAIL_ON.values()}
    print(
        f"{found['flows']:,} flows, {found['packets']:,} packets, {times.amount(found['bytes'])}: "
        + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in parts.items())
    )
    for name in FAIL_ON.values():
        entries = found[name]
        if not entries:
            continue
        print()
        show.table(
            ("from", "to", "port", "rule before", "rule after", "flows", "packets", "bytes", "first seen", "last seen",
             "note"), map(_row, entries[:LINES]), name.replace("_", " ") + ":",
        )  # fmt: skip
        if len(entries) > LINES:
            print(f"… and {len(entries) - LINES:,} more (-o json)")


def _row(entry: dict[str, Any]) -> list[object]:
    notes = [CAUSES[entry["cause"]]] if "cause" in entry else []
    if entry["report_only_after"]:
        notes.append("report only")
    if entry["lower_bound"]:
        notes.append("at least")
    if entry["crossing"]:
        notes.append(f"{entry['crossing']:,} begun before")
    return [
        entry["src_identity"], entry["dst_identity"], port_word(entry["proto"], entry["dport"]), entry["rule_before"],
        entry["rule_after"], entry["flows"], entry["packets"], entry["bytes"], _moment(entry["first_seen"]),
        _moment(entry["last_seen"]), ", ".join(notes),
    ]  # fmt: skip


def port_word(proto: str, port: int) -> str:
    """In the words of policy.yaml."""
    if proto in ("icmp", "icmpv6"):
        return f"{proto}:{port}"
    return f"{port}/{proto}" if proto.isalpha() else f"proto:{proto}"


def _moment(text: str) -> str:
    """RFC 3339, local, to the second."""
    return datetime.fromisoformat(text).astimezone().isoformat(timespec="seconds")
