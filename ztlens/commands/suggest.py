"""`policy suggest`: a policy that allows what was recorded."""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas import times
from ztlens import lookup, show
from ztlens.command import installation
from ztlens.commands.audit import CAUSES, LINES, port_word, waiting
from ztlens.commands.history import From, Since, Until, check_output
from ztlens.commands.policies import read, rows_table
from ztlens.config import Settings
from ztlens.errors import NO, BadInput, CliError, Missing, explain

if TYPE_CHECKING:
    from policy.diff import Row

GENERALITIES = ("exact", "service", "network")
_TERMS = 3  # of either side of a rule in a line


def add(policy: typer.Typer) -> None:
    """Register the command below `policy`."""
    installation(policy, "suggest")(suggest)


def suggest(
    settings: Settings,
    *,
    since: Since = "",
    until: Until = "",
    node: Annotated[str, typer.Option(metavar="NAME", help="What this node saw; not given: all nodes.")] = "",
    generality: Annotated[
        str, typer.Option(metavar="exact|service|network", help="How far addresses stand for others.")
    ] = "service",
    identities: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A policy.yaml whose names are used, not the running one's.")
    ] = None,
    include_denied: Annotated[bool, typer.Option("--include-denied", help="Allow what was denied, too.")] = False,
    differences: Annotated[bool, typer.Option("--diff", help="All that it opens beyond the record.")] = False,
    source: From = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="yaml|json")] = "yaml",
) -> None:
    """A policy that allows what was recorded, and as little besides as is readable; then audited: exit status 1 if
    anything recorded would be denied."""
    check_output(output, ("yaml", "json"))
    if generality not in GENERALITIES:
        raise BadInput(f"--generality {generality!r}", "one of " + ", ".join(GENERALITIES))
    begin, end = times.span_ns(since, until)
    from policy.units import Generality
    from sink.history.audit import Text
    from sink.history.suggest import Question

    question = Question(
        generality=Generality(generality), identities=Text(*read(identities)) if identities is not None else None,
        since=begin, until=end, node=node or None, include_denied=include_denied, exact=differences,
    )  # fmt: skip
    with lookup.history(settings, source) as history, waiting("reading what was recorded"):
        found = history.suggest(question)
    if found["policy"] is None:
        raise _nothing(found)
    opened = _opened(found) if differences else None
    if output == "json":
        found.pop("exact", None)
        from policy.diff import row_document

        show.document(found if opened is None else found | {"opened": [row_document(row) for row in opened]})
    else:
        print(found["policy"], end="")
        _tell(found, opened)
    if _missing(found):
        show.say(str(explain(_denied(found))))
        raise typer.Exit(NO)


def _nothing(found: dict[str, Any]) -> Missing:
    left = found["left_out"]
    if left["denied"]["packets"] and not left["unsure"]["packets"]:
        return Missing("nothing that was allowed is recorded", "what was denied is: --include-denied allows it")
    if left["unsure"]["packets"]:
        return Missing("of nothing recorded it is known who began it", "go on watching until conversations begin anew")
    return Missing("nothing is recorded that a policy could allow", "watch with `ztlens up`, or name a longer span")


def _missing(found: dict[str, Any]) -> bool:
    """Whether anything recorded would be denied."""
    return bool(_newly_denied(found)[0] or found["left_out"]["unsure"]["tuples"])


def _newly_denied(found: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the audit's entries those of flows, and those of packets without one alone: they are judged both ways, so
    that which the audit judged may be of the reply."""
    denied = found["audit"]["newly_denied"]
    untracked = [entry["lower_bound"] and not (entry["flows"] or entry["crossing"]) for entry in denied]
    flows = [entry for entry, without in zip(denied, untracked, strict=True) if not without]
    return flows, [entry for entry, without in zip(denied, untracked, strict=True) if without]


def _denied(found: dict[str, Any]) -> CliError:
    """What of the record would be denied."""
    unsure = [
        f"{item['src']} → {item['dst']} {port_word(item['proto'], item['port'])}"
        for item in found["left_out"]["unsure"]["tuples"]
    ]
    denied = [
        f"{item['src_identity']} → {item['dst_identity']} {port_word(item['proto'], item['dport'])}"
        for item in _newly_denied(found)[0]
    ]
    hint = "add rules for it by hand"
    if unsure:
        hint = "nobody saw who had begun it: go on watching until it begins anew, or add a rule by hand"
    return CliError(f"recorded, and denied by this policy: {_some([*denied, *unsure], _TERMS)}", hint, NO)


# ---- for people, on stderr


def _tell(found: dict[str, Any], opened: "list[Row] | None") -> None:
    for line in _counts(found):
        show.say(line)
    wide = [rule for rule in found["rules"] if rule["opens"]["tuples"]]
    if not wide:
        show.say("opens nothing beyond the record")
    elif opened is not None:
        show.say("opens beyond the record:")
        with contextlib.redirect_stdout(sys.stderr):
            rows_table(opened)
    else:
        for rule in wide[:LINES]:
            sides = (_some(rule[key], _TERMS) for key in ("from", "to", "ports"))
            show.say("opens beyond the record: {} → {} {}: {}".format(*sides, _never_seen(rule["opens"])))
        if len(wide) > LINES:
            show.say(f"… and {len(wide) - LINES:,} more rules (-o json, or --diff)")
    for line in _proof(found):
        show.say(line)


def _counts(found: dict[str, Any]) -> Iterator[str]:
    rules, left = found["rules"], found["left_out"]
    flows = _count(sum(rule["flows"] for rule in rules), "flow")
    kinds = _count(found["tuples"], "combination")
    yield f"{_count(len(rules), 'rule')} for {flows}: {kinds} of source, destination, port"
    if left["denied"]["packets"]:
        yield f"left out: {_sums(left['denied'])} that policy denied (--include-denied allows it, too)"
    if left["always_denied"]["packets"]:
        packets = _count(left["always_denied"]["packets"], "packet")
        yield f"left out: {packets} that every policy denies: malformed, headless fragments, unrelated ICMP errors"


def _proof(found: dict[str, Any]) -> Iterator[str]:
    causes: dict[str, int] = {}
    for item in found["audit"]["uncertain"]:
        causes[item["cause"]] = causes.get(item["cause"], 0) + item["packets"]
    for cause, packets in causes.items():
        yield f"uncertain: {_count(packets, 'packet')}: {CAUSES[cause]}"
    alone = sum(entry["packets"] for entry in _newly_denied(found)[1])
    if alone:
        yield f"uncertain: {_count(alone, 'packet')}: without a flow, maybe replies"
    if not _missing(found):
        flows = _count(found["audit"]["flows"], "flow")
        yield f"audited: {flows}, of which none that is to be allowed would be denied"


def _sums(sums: dict[str, int]) -> str:
    return f"{_count(sums['flows'], 'flow')}, {_count(sums['packets'], 'packet')}"


def _count(number: int, what: str) -> str:
    return f"{_amount(number)} {what}{'s' if number != 1 else ''}"


def _never_seen(opens: dict[str, int]) -> str:
    ends = [_count(opens[what], what[:-1]) for what in ("sources", "destinations") if opens[what]]
    return f"{' and '.join(ends) or _count(opens['tuples'], 'combination')} never seen"


def _amount(count: int) -> str:
    return f"{count:,}" if count < 1 << 40 else f"2^{round(math.log2(count))}"


def _some(items: list[str], most: int) -> str:
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more:,} more" if more > 0 else "")


def _opened(found: dict[str, Any]) -> "list[Row]":
    """Where the policy allows what was not recorded, as `policy diff` tells it."""
    from policy.compile import compile_policy
    from policy.diff import diff
    from policy.parse import parse

    exact, made = (compile_policy(parse(found[key]), host=found["host"]) for key in ("exact", "policy"))
    return diff(exact, made).rows
