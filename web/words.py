"""What people type to choose verdicts, and what they take away: an `observe` command, SQL, a rule.

Typed are the options of `observe`, shorter: `decision=deny port=443/tcp`; pasted ones are taken too (`--port 443`). A
word alone is what it looks like: an address, a port, a protocol, a decision, else the name of an identity.
"""

import difflib
import itertools
import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from policy.errors import PolicyError
from policy.words import looks_like_address, port_spans
from schemas import filters, times
from schemas.errors import InputError
from web.errors import WebError
from web.page import WORDS
from web.settings import WebSettings
from web.show import service
from web.span import Span

Given = dict[str, list[str]]
_ALIASES = {"verdict": "decision", "proto": "protocol"}
_SAID = {
    "allow": "decision", "deny": "decision", "passed": "outcome", "dropped": "outcome",
    **dict.fromkeys(filters.NUMBERS, "protocol"),
}  # fmt: skip
"""Word → the filter that it means alone."""
_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/\w+)?")
_NAMELESS = re.compile(r"identity:\d+")
"""An identity whose name is not recorded."""
UNRULED = ("malformed", "headless_fragment", "icmp_unrelated")
"""Reasons of denials that no rule of a policy lifts."""
RULE_NAMES = """SELECT DISTINCT name FROM rules WHERE (ring, revision) IN (SELECT (ring, to_revision) FROM changes
    WHERE node = $node QUALIFY row_number() OVER (ORDER BY time DESC, to_revision DESC) = 1)"""
"""SQL: names of the rules of the policy that runs on $node."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def parsed(typed: str) -> Given:
    """Word → values. Raises WebError."""
    try:
        parts = shlex.split(typed)
    except ValueError as error:
        raise WebError(f"The filter is not closed: {error}", 'Write where="packets > 10".') from error
    out: Given = {}
    rest = iter(parts)
    for part in rest:
        written, equals, value = part.removeprefix("--").partition("=")
        if not equals and not part.startswith("-"):
            written, value = _guessed(part), part
        name = _ALIASES.get(written, written).replace("-", "_")
        if name not in WORDS:
            near = difflib.get_close_matches(name, WORDS, 1)
            raise WebError(f"There is no filter {written!r}", f"Did you mean {near[0]}?" if near else ", ".join(WORDS))
        if part.startswith("--") and not equals:
            value = next(rest, "")
        if not value or value.startswith("--"):
            raise WebError(f"The filter {name} has no value", f"Write {name}=…")
        out.setdefault(name, []).append(value)
    return out


def _guessed(word: str) -> str:
    """The filter that a word alone means. Raises WebError for what is meant for an address and is none."""
    if _PORT.fullmatch(word):
        return "port"
    if looks_like_address(word) and not _NAMELESS.fullmatch(word):
        try:
            filters.network(word)
        except InputError as error:
            raise WebError(str(error), error.hint) from error
        return "ip"
    return _SAID.get(word, "identity")


def observe(settings: WebSettings, given: Mapping[str, Sequence[str]], span: Span) -> str:
    """The command that shows the same verdicts."""
    options = [(f"--{name.replace('_', '-')}", value) for name, values in given.items() for value in values]
    options.append(("--since", "1970-01-01" if span.since == "all" else span.since))
    if span.until:
        options.append(("--until", span.until))
    return settings.command("observe", *itertools.chain(*options))


def sql(given: Mapping[str, Sequence[str]], span: Span) -> str:
    """The question that has the same flows: those seen in the span, begun before its end. Raises WebError."""
    now = datetime.now(UTC)
    words: dict[str, Any] = {name: tuple(values) for name, values in given.items()}
    since = "" if span.since == "all" else span.since
    try:
        _, end = times.span(since, span.until, now)
        where = filters.predicate(filters.Filters(**words, since=since), now, time_column="last_seen")
    except InputError as error:
        raise WebError(str(error), error.hint) from error
    if end is not None:
        where += f" AND first_seen < {filters.timestamp(end)}"
    return f"SELECT * FROM flows WHERE {where} ORDER BY last_seen DESC"


def of_flow(flow: Mapping[str, Any]) -> Given:
    """The filter that finds conversations like this one."""
    given = {
        "from_ip": flow["src"], "to_ip": flow["dst"],
        "port": f"{flow['dport']}/{flow['proto']}" if flow["proto"] in ("tcp", "udp", "sctp") else "",
        "protocol": "" if flow["proto"] in ("tcp", "udp", "sctp") else flow["proto"],
    }  # fmt: skip
    return {name: [value] for name, value in given.items() if value}


def rule(flow: Mapping[str, Any], taken: Collection[str] = ()) -> str:
    """A rule of policy.yaml that allows what this flow wants, as one line below `rules:`, with a name not `taken`.

    Empty where no rule can say it: an end without identity and address, no protocol or port that a policy knows, or a
    denial that no rule lifts.
    """
    ends = [_end(flow[f"{side}_identity"], flow[side]) for side in ("src", "dst")]
    port = service(flow["dport"], flow["proto"])
    try:
        port_spans(port)
    except PolicyError:
        return ""
    if not all(ends) or flow["reason"] in UNRULED:
        return ""
    name = f"{_slug('-to-'.join(ends))[:100].strip('-')}-{_slug(port)}"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    words = [
        f"name: {next(one for one in names if one not in taken)}",
        f"from: {_quoted(ends[0])}",
        f"to: {_quoted(ends[1])}",
        f"ports: [{_quoted(port)}]",
    ]
    line = f"- {{{', '.join(words)}, action: allow}}"
    if flow["decision"] == "deny" and flow["reason"] == "rule":
        by = flow["rule"] if flow["rule"].isprintable() else json.dumps(flow["rule"])
        line += f"  # rule {by} denies this; deny beats allow: change that rule"
    return line


def _end(identity: str, address: str | None) -> str:
    """By name; an address that has none by itself."""
    nameless = identity == "world" or _NAMELESS.fullmatch(identity)
    return address or "" if nameless else identity


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _quoted(value: str) -> str:
    """As YAML takes it within braces."""
    if _PLAIN.fullmatch(value) or re.fullmatch(r"\d+/\w+", value):
        return value
    return json.dumps(value)
