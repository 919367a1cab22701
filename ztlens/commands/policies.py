"""`policy check|diff|explain`: questions about policies, running or not; nothing is changed."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztlens import show
from ztlens.command import LOADING, installation
from ztlens.commands.history import check_output
from ztlens.config import Settings
from ztlens.errors import NO, BadInput, Missing, explain
from ztlens.lookup import collector_request

if TYPE_CHECKING:
    from policy.compile import Compiled
    from policy.describe import Addresses, Ports
    from policy.diff import Row
    from policy.explain import Explanation

RUNNING = "running"
_SHOWN = 6  # names or ports in a table's cell

Output = Annotated[str, typer.Option("-o", "--output", metavar="table|json")]
PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="policy.yaml; - is standard input.")]


def add(policy: typer.Typer) -> None:
    """Register the commands below `policy`."""
    installation(policy, "check")(check)
    installation(policy, "diff")(diff)
    installation(policy, "explain", LOADING)(explained)


def read(file: Path) -> tuple[str, str]:
    """(text, name) of a policy file. Raises OSError, and PolicyError for what is not text."""
    from policy.document import MAX_BYTES
    from policy.source import decode, read_text

    if str(file) == "-":
        return decode(sys.stdin.buffer.read(MAX_BYTES + 1), "stdin"), "stdin"
    return read_text(file), str(file)


def load(settings: Settings, source: str, host: Sequence[str] = ()) -> "Compiled":
    """The policy in a file, of standard input (`-`), or the one that runs here (`running`), with the addresses it was
    compiled with; `host`: those for a file. Raises PolicyError, CollectorError, Missing."""
    from policy.compile import compile_policy
    from policy.source import compile_text

    if source != RUNNING:
        return compile_text(*read(Path(source)), host=host)
    now = collector_request(settings.run_dir, "policy.show")
    if not now.get("known", True):
        raise Missing("the text of the running policy is not known", "`ztlens policy apply FILE` gives it a known one")
    text, host = now.get("text") or "", now.get("host") or ()
    return compile_text(text, RUNNING, host=host) if text else compile_policy(None, host=host)


@contextmanager
def _about_the_question() -> Iterator[None]:
    """A PolicyError that is of no file."""
    from policy.errors import PolicyError

    try:
        yield
    except PolicyError as error:
        raise BadInput(error.message, error.hint) from error


# ---- check


def check(
    settings: Settings,
    file: PolicyFile,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for warnings, too.")] = False,
    output: Output = "table",
) -> None:
    """Parse and compile a policy: its sizes and what is probably not meant, or where it is wrong. Exit status 1 if it
    is."""
    check_output(output, ("table", "json"))
    from policy.builtin import switched
    from policy.check import check as warnings_of
    from policy.compile import room
    from policy.errors import PolicyError
    from policy.source import compile_text
    from schemas.codes import word

    name = "stdin" if str(file) == "-" else str(file)
    try:
        compiled = compile_text(*read(file), knobs=settings["knobs"])
        warnings = warnings_of(compiled)
    except PolicyError as error:
        error.file = error.file or name
        if output == "json":
            show.document({"file": name, "ok": False, "errors": [_described(error)]})
        show.say(str(explain(error)))
        raise typer.Exit(NO) from error
    policy = compiled.policy
    assert policy is not None
    sizes, places, builtins = compiled.sizes(), room(settings["knobs"]), switched(policy.builtins_off)
    if output == "json":
        listed = [
            {"kind": w.kind, "subject": w.subject, "file": name, "line": w.line, "column": w.column,
             "message": w.message, "hint": w.hint}
            for w in warnings
        ]  # fmt: skip
        show.document({"file": name, "ok": True, "errors": [], "warnings": listed, "hash": policy.hash,
                       "default": word(policy.default), "identities": len(policy.identities), **sizes,
                       "room": places, "builtins": builtins})  # fmt: skip
    else:
        for w in warnings:
            print(f"{name}:{w.line}:{w.column}: {w.kind}: {w.message}\n    {w.hint}")
        told = [f"{n:,} of {places[what]:,} {what.replace('_', ' ')}" for what, n in sizes.items() if what in places]
        told += [f"{len(policy.identities):,} identities", f"{sizes['bytes']:,} bytes"]
        count = f"{len(warnings)} warning{'s' if len(warnings) != 1 else ''}" if warnings else "ok"
        print(f"{name}: {count}, default {word(policy.default)}, {', '.join(told)}")
        print(builtin_line(builtins))
    if warnings and strict:
        raise typer.Exit(NO)


def builtin_line(builtins: dict[str, bool]) -> str:
    """`built-in rules: ndp, mld on; dhcp, dhcpv6 off`."""
    parts = (", ".join(name for name, on in builtins.items() if on is which) for which in (True, False))
    on, off = parts
    return "built-in rules: " + "; ".join([*([f"{on} on"] if on else []), *([f"{off} off"] if off else [])])


def _described(error: Any) -> dict[str, Any]:
    return {"file": error.file, "line": error.line, "column": error.column, "message": error.message,
            "hint": error.hint}  # fmt: skip


# ---- diff


def diff(
    settings: Settings,
    a: Annotated[str, typer.Argument(metavar="A", help="policy.yaml, - (standard input) or running.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    rules: Annotated[bool, typer.Option("--rules", help="Also where only the rule that decides is another.")] = False,
    output: Output = "table",
) -> None:
    """What B changes against A, by meaning: who gains and who loses access. Exit status 1 if anything does."""
    check_output(output, ("table", "json"))
    from policy.diff import diff as difference
    from policy.diff import document, with_a_host

    running = load(settings, RUNNING) if RUNNING in (a, b) else None
    host = running.host if running is not None else ()  # a file is compared as it would run here
    one, other = (running if running and source == RUNNING else load(settings, source, host) for source in (a, b))
    with _about_the_question():
        found = difference(*((one, other) if running else with_a_host(one, other)), rules=rules)
    if output == "json":
        show.document({"a": a, "b": b} | document(found))
    else:
        if found.rows:
            rows_table(found.rows)
        for names, what in ((found.builtins_on, "on"), (found.builtins_off, "off")):
            print(*(f"builtin:{name} is turned {what}" for name in names), sep="\n", end="\n" if names else "")
        if found.same:
            print(f"{a} and {b} mean the same")
    if not found.same:
        raise typer.Exit(NO)


def rows_table(rows: "list[Row]") -> None:
    """Rows for people."""
    show.table(
        ("access", "before", "after", "from", "to", "ports", "rule before", "rule after"),
        ((r.access, r.before, r.after, _brief(r.source), _brief(r.destination), _brief(r.ports),
          r.example.rule_before, r.example.rule_after) for r in rows),
    )  # fmt: skip


def _brief(what: "Addresses | Ports") -> str:
    parts = []
    for items in (what.terms, what.exclude):
        more = len(items) - _SHOWN
        parts.append(", ".join(map(str, items[:_SHOWN])) + (f" and {more} more" if more > 0 else ""))
    return f"{parts[0]} except {parts[1]}" if what.exclude else parts[0]


def _protocol(number: int) -> str:
    from schemas.codes import PROTOCOLS

    return PROTOCOLS.get(number, str(number))


# ---- explain


def explained(
    settings: Settings,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="policy.yaml; not given: the running one.")] = RUNNING,
    *,
    source: Annotated[str, typer.Option("--from", metavar="A", help="Who starts: an address, CIDR or identity.")],
    destination: Annotated[str, typer.Option("--to", metavar="B", help="With whom.")],
    port: Annotated[str, typer.Option("--port", metavar="PORT", help="As in 443/tcp, icmp:8, proto:47.")],
    kernel: Annotated[
        bool | None, typer.Option("--kernel/--no-kernel", help="Ask the kernel program, too; not given: if root.")
    ] = None,
    output: Output = "table",
) -> None:
    """Why a conversation is allowed or denied: every rule that matches, and what the kernel program says. Exit status 1
    if that is something else."""
    check_output(output, ("table", "json"))
    from policy.explain import explain_all

    compiled = load(settings, file)
    with _about_the_question():
        found = explain_all(compiled, source, destination, port)
    answers = _from_kernel(compiled, found, settings["loader"], asked=kernel)
    agreed = [None if k is None else _agrees(e, k) for e, k in zip(found, answers, strict=True)]
    if output == "json":
        show.document(_document(found, answers, agreed))
    else:
        for one, said, same in zip(found, answers, agreed, strict=True):
            _print(one, said, same)
    if False in agreed:
        show.say("error: the kernel program and the policy engine do not agree\nhint: please report it with the policy")
        raise typer.Exit(NO)


def _from_kernel(
    compiled: "Compiled", found: "list[Explanation]", loader: str, *, asked: bool | None
) -> "list[dict[str, Any] | None]":
    """What the kernel says of each; None: it was not asked. A kernel that cannot be asked is an error only if it was
    to be."""
    if asked is False or (asked is None and os.geteuid() != 0):
        return [None] * len(found)
    from collector.errors import KernelError
    from ztlens.probing import kernel_answers

    try:
        return [*kernel_answers(compiled, found, loader)]
    except KernelError as error:
        if asked:
            raise
        show.say(f"the kernel program was not asked: {error}")
        return [None] * len(found)


def _agrees(one: "Explanation", kernel: dict[str, Any]) -> bool:
    from ztlens.probing import agrees

    return agrees(one, kernel)


def _document(
    found: "list[Explanation]", answers: list[dict[str, Any] | None], agreed: list[bool | None]
) -> dict[str, Any]:
    """What all tuples have in common (null where they differ), then each."""
    tuples = []
    for one, kernel, same in zip(found, answers, agreed, strict=True):
        matched = [
            {"rule": m.rule, "action": m.action, "report_only": m.report_only, "decides": m.decides, "why": m.why,
             "line": m.line, "text": m.text}
            for m in one.matched
        ]  # fmt: skip
        tuples.append(
            {"decision": one.decision, "reason": one.reason, "rule": one.rule, "src_identity": one.src_identity,
             "dst_identity": one.dst_identity, "matched": matched, "report_only": one.report_only, "why": one.why,
             "notes": list(one.notes), "kernel": kernel, "agrees": same, "src": one.src, "dst": one.dst,
             "proto": _protocol(one.proto), "port": one.port}
        )  # fmt: skip
    common = {key: value if all(t[key] == value for t in tuples) else None for key, value in tuples[0].items()}
    return common | {"tuples": tuples}


def _print(one: "Explanation", kernel: dict[str, Any] | None, same: bool | None) -> None:
    on = show.coloured()
    word = one.decision.upper() + (" (report only)" if one.report_only else "")
    port = {"icmp": f"icmp:{one.port}", "icmpv6": f"icmpv6:{one.port}"}.get(_protocol(one.proto))
    if port is None:
        port = f"{one.port}/{_protocol(one.proto)}" if _protocol(one.proto).isalpha() else f"proto:{one.proto}"
    print(f"{one.src} ({one.src_identity}) → {one.dst} ({one.dst_identity}) {port}: "
          + show.paint(word, show.GREEN if one.decision == "allow" else show.RED, on=on))  # fmt: skip
    print(f"  {one.why}")
    for match in one.matched:
        action = match.action + (" report-only" if match.report_only else "")
        print(f"  {'*' if match.decides else ' '} {action} {match.rule!r} (line {match.line}): {match.why}")
    for note in one.notes:
        print(f"  note: {note}")
    if kernel is not None:
        said = "the same" if same else ", ".join(f"{key} {value}" for key, value in kernel.items())
        print(f"  kernel: {said}")
