"""What people type to choose verdicts, and what they take away: an `observe` command, SQL, a rule.

Typed are the options of `observe`, shorter: `decision=deny port=443/tcp`; pasted ones are taken too (`--port 443`). A
word alone is what it looks like: an address, a port, a decision, else the name of an identity.
"""

import difflib
import ipaddress
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from schemas import filters
from schemas.errors import InputError
from web.errors import WebError
from web.page import WORDS
from web.show import service
from web.span import Span

Given = dict[str, list[str]]
_ALIASES = {"verdict": "decision", "proto": "protocol"}
_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/\w+)?")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def parsed(typed: str) -> Given:
    """Word → values. Raises WebError."""
    try:
        parts = shlex.split(typed)
    except ValueError as error:
        raise WebError(f"The filter is not closed: {error}", 'Write where="packets > 10".') from error
    out: Given = {}
    waiting = ""
    for part in parts:
        if waiting:
            name, value, waiting = waiting, part, ""
        else:
            name, equals, value = part.removeprefix("--").partition("=")
            name = _ALIASES.get(name, name).replace("-", "_")
            if part.startswith("--") and not equals:
                waiting = name
                continue
            if not equals:
                name, value = _guessed(part), part
        if name not in WORDS:
            near = difflib.get_close_matches(name, WORDS, 1)
            raise WebError(f"There is no filter {name!r}", f"Did you mean {near[0]}?" if near else ", ".join(WORDS))
        out.setdefault(name, []).append(value)
    return out


def _guessed(word: str) -> str:
    try:
        ipaddress.ip_network(word, strict=False)
        if not word.isdecimal():
            return "ip"
    except ValueError:
        pass
    if _PORT.fullmatch(word):
        return "port"
    return {"allow": "decision", "deny": "decision", "passed": "outcome", "dropped": "outcome"}.get(word, "identity")


def observe(given: Mapping[str, Sequence[str]], span: Span, instance: str = "default") -> str:
    """The command that shows the same verdicts."""
    words = ["ztlens", "observe"]
    if instance != "default":
        words += ["--instance", instance]
    for name, values in given.items():
        for value in values:
            words += [f"--{name.replace('_', '-')}", shlex.quote(value)]
    words += ["--since", "1970-01-01" if span.since == "all" else shlex.quote(span.since)]
    if span.until:
        words += ["--until", shlex.quote(span.until)]
    return " ".join(words)


def sql(given: Mapping[str, Sequence[str]], span: Span, view: str = "flows") -> str:
    """The question that has the same rows. Raises WebError."""
    asked = filters.Filters(
        **{name: tuple(values) for name, values in given.items()},
        since="" if span.since == "all" else span.since, until=span.until,
    )  # fmt: skip
    column = "last_seen" if view == "flows" else "time"
    try:
        where = filters.predicate(asked, time_column=column)
    except InputError as error:
        raise WebError(str(error), error.hint) from error
    return f"SELECT * FROM {view} WHERE {where} ORDER BY {column} DESC"


def of_flow(flow: Mapping[str, Any]) -> Given:
    """The filter that finds conversations like this one."""
    given = {
        "from_ip": flow["src"], "to_ip": flow["dst"],
        "port": f"{flow['dport']}/{flow['proto']}" if flow["proto"] in ("tcp", "udp", "sctp") else "",
        "protocol": "" if flow["proto"] in ("tcp", "udp", "sctp") else flow["proto"],
    }  # fmt: skip
    return {name: [value] for name, value in given.items() if value}


def rule(flow: Mapping[str, Any]) -> str:
    """A rule of policy.yaml that allows what this flow wants, as one line below `rules:`."""
    ends = {side: _end(flow[f"{side}_identity"], flow[side]) for side in ("src", "dst")}
    name = re.sub(r"[^a-z0-9]+", "-", f"{ends['src']}-to-{ends['dst']}".lower()).strip("-")[:60].strip("-")
    port = service(flow["dport"], flow["proto"])
    words = [
        f"name: {name}",
        f"from: {_quoted(ends['src'])}",
        f"to: {_quoted(ends['dst'])}",
        f"ports: [{_quoted(port)}]",
    ]
    return f"- {{{', '.join(words)}, action: allow}}"


def _end(identity: str, address: str | None) -> str:
    """By name; an address that has none by itself."""
    nameless = identity == "world" or re.fullmatch(r"identity:\d+", identity)
    return address or "any" if nameless else identity


def _quoted(value: str) -> str:
    """As YAML takes it within braces."""
    if _PLAIN.fullmatch(value) or re.fullmatch(r"\d+/\w+", value):
        return value
    return json.dumps(value)
