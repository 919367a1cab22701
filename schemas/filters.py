"""Options of `observe` and its sisters → one SQL predicate over the view `verdicts`.

The same flag twice is OR, different flags are AND, and the same predicate serves the history and each live batch. All
of it is text, every word checked or quoted, so that people can print it (`--debug`) and take it on into `ztlens sql`.
"""

import difflib
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from schemas import codes, times
from schemas.errors import InputError

NUMBERS = {word: number for number, word in codes.PROTOCOLS.items()}


@dataclass(frozen=True)
class Filters:
    """What was asked for, as written; empty: everything."""

    decision: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    event: tuple[str, ...] = ()
    direction: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    rule: tuple[str, ...] = ()
    node: tuple[str, ...] = ()
    from_ip: tuple[str, ...] = ()
    to_ip: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    from_identity: tuple[str, ...] = ()
    to_identity: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    from_label: tuple[str, ...] = ()
    to_label: tuple[str, ...] = ()
    port: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    since: str = ""
    until: str = ""


def predicate(filters: Filters, now: datetime | None = None, time_column: str = "time") -> str:
    """The SQL predicate, `TRUE` if nothing was asked for. Raises InputError for what cannot be understood."""
    begin, end = times.span(filters.since, filters.until, now)
    parts = [
        _any(_words("decision", codes.Decision, filters.decision)),
        _any(_words("outcome", codes.Outcome, filters.outcome)),
        _any(_words("event", codes.EventKind, filters.event)),
        _any(_words("direction", codes.Direction, filters.direction)),
        _any(_words("reason", codes.Reason, filters.reason)),
        _any(f"rule = {quoted(name)}" for name in filters.rule),
        _any(f"node = {quoted(name)}" for name in filters.node),
        _any(_network(text, "src") for text in filters.from_ip),
        _any(_network(text, "dst") for text in filters.to_ip),
        _any(_network(text, side) for text in filters.ip for side in ("src", "dst")),
        _any(f"src_identity = {quoted(name)}" for name in filters.from_identity),
        _any(f"dst_identity = {quoted(name)}" for name in filters.to_identity),
        _any(f"{side}_identity = {quoted(name)}" for name in filters.identity for side in ("src", "dst")),
        _any(_label(text, "src") for text in filters.from_label),
        _any(_label(text, "dst") for text in filters.to_label),
        _any(map(_port, filters.port)),
        _any(map(_protocol, filters.protocol)),
        *(_where(text) for text in filters.where),
        f"{time_column} >= {timestamp(begin)}" if begin else "",
        f"{time_column} < {timestamp(end)}" if end else "",
    ]
    return " AND ".join(part for part in parts if part) or "TRUE"


def quoted(text: str) -> str:
    """`text` as an SQL string. Raises InputError for a NUL, which DuckDB's parser ends at."""
    if "\0" in text:
        raise InputError("a filter holds a NUL character", "take it out")
    return "'" + text.replace("'", "''") + "'"


def timestamp(moment: datetime) -> str:
    """A moment as the store keeps it: UTC, no offset."""
    return f"TIMESTAMP_NS '{moment.replace(tzinfo=None).isoformat(sep=' ')}'"


def _any(parts: Iterable[str]) -> str:
    alternatives = list(dict.fromkeys(parts))
    if len(alternatives) < 2:
        return "".join(alternatives)
    return "(" + " OR ".join(alternatives) + ")"


def _words(column: str, kind: type[IntEnum], given: tuple[str, ...]) -> list[str]:
    known = list(codes.words(kind).values())
    out = []
    for text in given:
        word = text.strip().lower().replace("-", "_")
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(known)
            raise InputError(f"{text!r} is not a {column}", hint)
        out.append(f"{column} = '{word}'")
    return out


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or prefix as it was written. Raises InputError."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as error:
        raise InputError(f"{text!r} is not an address or prefix", "write 10.0.1.10, 10.0.0.0/8 or fd00::/64") from error


def _network(text: str, side: str) -> str:
    """Addresses are numbers in the store, an IPv4 one in the low 32 bits, so a prefix is a range."""
    inside = network(text)
    if inside.num_addresses == 1:
        return f"(family = {inside.version} AND {side}_addr = {_number(int(inside[0]))})"
    low, high = _number(int(inside[0])), _number(int(inside[-1]))
    return f"(family = {inside.version} AND {side}_addr BETWEEN {low} AND {high})"


def _number(value: int) -> str:
    """Through a text: DuckDB reads literals above 2^127 as DOUBLE."""
    return f"'{value}'::UHUGEINT"


def _label(text: str, side: str) -> str:
    """Labels belong to the identities of the revision that decided; `key` alone: any value; `!` before it: the rest."""
    others = "NOT " if text.startswith("!") else ""
    key, equals, value = text.removeprefix("!").partition("=")
    if not key or (equals and not value):
        raise InputError(f"{text!r} is not a label", "write KEY=VALUE, KEY for any value, or !KEY for none")
    match = f"labels[{quoted(key)}]"
    match = f"{match} = {quoted(value)}" if equals else f"{match} IS NOT NULL"
    return f"(ring, revision, {side}_identity) {others}IN (SELECT (ring, revision, name) FROM identities WHERE {match})"


def _port(text: str) -> str:
    ports, slash, protocol = text.strip().partition("/")
    low, dash, high = ports.partition("-")
    try:
        first, last = int(low), int(high if dash else low)
    except ValueError:
        first = last = -1
    if not 0 <= first <= last <= 65535:
        raise InputError(f"{text!r} is not a port", "write 443, 443/tcp or 8000-8100/tcp")
    found = f"dport = {first}" if first == last else f"dport BETWEEN {first} AND {last}"
    if not slash:
        return found if first == last else f"({found})"
    return f"({found} AND {_protocol(protocol)})"


def _protocol(text: str) -> str:
    word = text.strip().lower()
    if word.isascii() and word.isdigit() and int(word) <= 255:
        word = codes.PROTOCOLS.get(int(word), str(int(word)))
    elif word not in NUMBERS:
        near = difflib.get_close_matches(word, NUMBERS, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(NUMBERS)}, or a number up to 255"
        raise InputError(f"{text!r} is not a protocol", hint)
    return f"proto = '{word}'"


def _where(text: str) -> str:
    """A predicate written by hand stays one operand: the line break ends a comment at its end."""
    clean = text.strip()
    if not clean or "\0" in clean:
        raise InputError("--where needs a predicate", "for example --where 'packets > 100 AND dport < 1024'")
    depth = _depth(clean)
    if depth:
        raise InputError(f"--where: the parentheses of {text!r} do not match", "write one predicate, closed in itself")
    return f"({clean}\n)"


def _depth(sql: str) -> int:
    """Open parentheses at the end, outside of strings and comments; -1 where one closes too many."""
    depth, i = 0, 0
    skip: dict[str, Callable[[int], int]] = {
        "'": lambda at: sql.find("'", at + 1),
        '"': lambda at: sql.find('"', at + 1),
    }
    while i < len(sql):
        char = sql[i]
        if char in skip:
            i = skip[char](i)
            if i < 0:
                return 1
        elif sql.startswith("--", i):
            i = sql.find("\n", i)
            if i < 0:
                break
        elif sql.startswith("/*", i):
            i = sql.find("*/", i + 2) + 1
            if i <= 0:
                return 1
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if depth < 0:
                return -1
        i += 1
    return depth
