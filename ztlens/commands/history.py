"""`sql`, `violations`, `flows`, `ledger`: questions to the history."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas import filters, times
from ztlens import lookup, show
from ztlens.command import installation
from ztlens.config import Settings
from ztlens.errors import NO, BadInput, CliError, Missing, explain

SQL_OUTPUTS = ("table", "csv", "json", "arrow", "parquet")
Output = Annotated[str, typer.Option("-o", "--output", metavar="table|csv|json|arrow|parquet")]
Since = Annotated[str, typer.Option(metavar="T", help="From then on: 10m, 2h, RFC 3339 or a date.")]
Until = Annotated[str, typer.Option(metavar="T", help="Before then.")]
Last = Annotated[int | None, typer.Option("--last", "-n", min=0, metavar="N", help="At most N rows.")]
From = Annotated[
    Path | None, typer.Option("--from", metavar="DIR", help="Read what `export --to` or --archive wrote, not the sink.")
]

BY = {
    "rule": ("rule, reason", "rule"),
    "pair": ("src_identity, dst_identity, proto, dport, rule", "pair"),
    "source": ("src, src_identity", "source"),
    "port": ("proto, dport", "port"),
}
"""`violations --by` → the columns it groups by."""


def add(app: typer.Typer) -> None:
    """Register the commands."""
    installation(app, "sql")(sql)
    installation(app, "violations")(violations)
    installation(app, "flows")(flows)
    installation(app, "ledger")(ledger)


def check_output(output: str, known: tuple[str, ...]) -> None:
    """Raise BadInput for an output that is not known."""
    if output not in known:
        raise BadInput(f"{output!r} is not an output of this command", "one of " + ", ".join(known))


def sql(
    settings: Settings,
    query: Annotated[str | None, typer.Argument(metavar="SELECT …", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Read it from a file.")] = None,
    source: From = None,
    output: Output = "table",
) -> None:
    """Read-only SQL over the history, also while it is being written."""
    check_output(output, SQL_OUTPUTS)
    if query is not None and file is not None:
        raise BadInput("both a query and -f FILE were given", "leave one of them out")
    if file is not None:
        try:
            query = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{file} is not UTF-8 text (byte {error.start})", "SQL is a text") from error
    if query is None and not sys.stdin.isatty():
        query = sys.stdin.read()
    if query is None:
        _prompt(settings, output, source)
        return
    if not query.strip().strip(";").strip():
        raise BadInput("the query is empty", 'for example: ztlens sql "SELECT * FROM violations"')
    show.answer(lookup.ask(settings, query, source), output)


def _prompt(settings: Settings, output: str, source: Path | None) -> None:
    """Statements until Ctrl-D; an error does not end it."""
    from ztlens import prompt

    history = lookup.history(settings, source)
    names = [(row["name"], row["kind"]) for row in history.sql(prompt.NAMES).to_pylist()]
    show.say("read-only SQL; `;` ends a statement, Tab completes, Ctrl-D leaves; try: FROM violations LIMIT 10;")
    for text in prompt.statements(names, settings.state / "sql_history"):
        try:
            show.answer(history.sql(text), output)
        except Exception as error:
            show.say(str(explain(error)))


def violations(
    settings: Settings,
    *,
    since: Since = "",
    until: Until = "",
    by: Annotated[str, typer.Option(metavar="rule|pair|source|port", help="One row for each.")] = "",
    last: Last = None,
    source: From = None,
    output: Output = "table",
) -> None:
    """What policy denied, dropped or not: one row a flow, or summed up with --by."""
    check_output(output, SQL_OUTPUTS)
    if by and by not in BY:
        raise BadInput(f"{by!r} is nothing to sum up by", "one of " + ", ".join(BY))
    found = filters.predicate(filters.Filters(since=since, until=until), time_column="last_seen")
    if not by:
        show.answer(lookup.ask(settings, _listed("violations", found, last), source), output)
        return
    keys = BY[by][0]
    query = f"""SELECT {keys}, count(*) AS flows, sum(packets)::UBIGINT AS packets, sum(bytes)::UBIGINT AS bytes,
        sum(CASE WHEN outcome = 'dropped' THEN 1 ELSE 0 END)::UBIGINT AS dropped_flows,
        min(first_seen) AS first_seen, max(last_seen) AS last_seen
        FROM violations WHERE {found} GROUP BY {keys} ORDER BY packets DESC, {keys}"""
    show.answer(lookup.ask(settings, query + ("" if last is None else f" LIMIT {last}"), source), output)


def flows(
    settings: Settings,
    *,
    since: Since = "",
    until: Until = "",
    last: Last = None,
    source: From = None,
    output: Output = "table",
) -> None:
    """Conversations: one row each, with exact totals."""
    check_output(output, SQL_OUTPUTS)
    found = filters.predicate(filters.Filters(since=since, until=until), time_column="last_seen")
    show.answer(lookup.ask(settings, _listed("flows", found, last), source), output)


FLOW_COLUMNS = (
    "first_seen, last_seen, node, src, sport, dst, dport, proto, src_identity, dst_identity, decision, outcome, "
    "reason, rule, revision, packets, bytes"
)


def _listed(view: str, found: str, last: int | None) -> str:
    """Oldest first; of more than `last` the newest."""
    query = f"SELECT {FLOW_COLUMNS} FROM {view} WHERE {found}"
    if last is None:
        return f"{query} ORDER BY first_seen, last_seen, src, sport"
    return f"SELECT * FROM ({query} ORDER BY last_seen DESC LIMIT {last}) ORDER BY first_seen, last_seen, src, sport"


def ledger(
    settings: Settings,
    since: Since = "",
    source: From = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="table|json")] = "table",
) -> None:
    """Packets and events accounted hop by hop. Exit status 1 if they do not balance, 3 if there are none."""
    check_output(output, ("table", "json"))
    start = times.nanoseconds(times.moment(since)) if since else None
    account = lookup.history(settings, source).ledger(start)
    if not account["rings"]:
        if start is None:
            raise Missing("no ring was ever recorded", "watch with `ztlens up`")
        raise Missing(
            f"no ring was heard of since {times.rfc3339(start, local=True, digits=0)}",
            "name an earlier time, or none: the whole ledger",
        )
    if output == "json":
        show.document(account)
    else:
        _ledger_table(account)
    if not account["balanced"]:
        error = CliError(
            "the ledger does not balance",
            "compare the hops of `ztlens ledger` from left to right: where they part, something was lost",
            NO,
        )
        show.say(str(explain(error)))
        raise typer.Exit(NO)


def _ledger_table(account: dict[str, Any]) -> None:
    rows = []
    for ring in account["rings"]:
        packets, events = ring["packets"], ring["events"]
        rows.append([
            ring["node"], ring["ring"], *(packets[k] for k in ("parsed", "judged", "flows", "untracked")),
            *(events[k] for k in ("due", "emitted", "pending", "lost", "held_back", "published", "stored")),
            len(events["gaps"]), ring.get("balanced"),
        ])  # fmt: skip
    show.table(
        ["node", "ring", "parsed", "judged", "flows", "untracked", "due", "emitted", "pending", "lost", "held back",
         "published", "stored", "gaps", "balanced"], rows,
    )  # fmt: skip
    for ring in account["rings"]:
        for loss in ring["events"]["losses"]:
            kind, decision = loss["kind"].replace("_", " "), loss["decision"] or "decision not told"
            when = f"{loss['since'] or 'the beginning'} to {loss['until']}"
            print(f"{ring['node']} {ring['ring']}: {loss['events']:,} samples {kind} ({decision}), {when}")
        for step in ring["clock_steps"]:
            which = f"{'back' if step['seconds'] < 0 else 'forward'} {abs(step['seconds']):,.1f} s"
            print(f"{ring['node']} {ring['ring']}: clock set {which} before {step['time']}")
        for gap in ring["events"]["gaps"]:
            print(f"{ring['node']} {ring['ring']}: gap of {gap['count']:,} events, seen {gap['time']}: {gap['cause']}")
    print("balanced" if account["balanced"] else "not balanced")
