"""Verdicts as people and small programs read them: words for codes, text for addresses, names for numbers.

Used by the live subjects and by `ztlens judge`. Keys are the columns of the view `verdicts`; `time` is RFC 3339
in UTC, `time_ns` the same as ns since 1970. One dict a row: not for the hot path.
"""

import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from schemas.codes import PROTOCOLS, Decision, Direction, EventKind, Flag, IdentityId, Outcome, Reason, RuleId, words

FLAGS = tuple((int(flag), flag.name.lower()) for flag in Flag if flag.name)
WORDS = {
    "event": words(EventKind), "decision": words(Decision), "outcome": words(Outcome), "reason": words(Reason),
    "direction": words(Direction),
}  # fmt: skip
NUMBERS = (
    "packets_original", "bytes_original", "packets_reply", "bytes_reply", "tcp_flags_original", "tcp_flags_reply",
    "revision", "family", "ifindex", "flow_id",
)  # fmt: skip


class Names(Protocol):
    """What the numbers of a revision are called; None when that is not known."""

    def rule(self, revision: int, number: int) -> str | None: ...
    def identity(self, revision: int, number: int) -> str | None: ...


class NoNames:
    """Only the reserved numbers have names."""

    def rule(self, revision: int, number: int) -> str | None:
        return reserved_rule(number)

    def identity(self, revision: int, number: int) -> str | None:
        return reserved_identity(number)


def reserved_rule(number: int) -> str | None:
    """The name of a rule number below RuleId.FIRST (`default`, `builtin:ndp` …); None for others."""
    try:
        name = RuleId(number).name.lower()
    except ValueError:
        return None
    return None if number >= RuleId.FIRST else name.replace("builtin_", "builtin:")


def reserved_identity(number: int) -> str | None:
    """`world` or `host`; None for others."""
    return {int(IdentityId.WORLD): "world", int(IdentityId.HOST): "host"}.get(number)


@lru_cache(maxsize=65536)
def address_text(raw: bytes, family: int) -> str | None:
    """RFC 5952 text of 16 bytes (IPv4 in the last 4); None when `family` is neither 4 nor 6."""
    if family == 4:
        return f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}"
    return str(ipaddress.IPv6Address(raw)) if family == 6 else None


def proto_text(number: int) -> str:
    """`tcp`, `udp` …; a protocol without a word is its number as text."""
    return PROTOCOLS.get(number) or str(number)


def times(rows: np.ndarray, clock: int) -> tuple[list[str], list[int]]:
    """RFC 3339 (ns, UTC) and ns since 1970 of each row; `clock` as in the envelope."""
    wall = rows["time"].astype(np.int64) + clock
    return [f"{text}Z" for text in np.datetime_as_string(wall.view("M8[ns]"), unit="ns").tolist()], wall.tolist()


def _named(revisions: list[int], numbers: list[int], lookup: Callable[[int, int], str | None], kind: str) -> list[str]:
    """Names by (revision, number): looked up once for each distinct pair."""
    known = {key: lookup(*key) or f"{kind}:{key[1]}" for key in set(zip(revisions, numbers, strict=True))}
    return [known[key] for key in zip(revisions, numbers, strict=True)]


def _addresses(column: np.ndarray, families: list[int]) -> list[str | None]:
    raw = np.ascontiguousarray(column).tobytes()
    return [address_text(raw[16 * i : 16 * i + 16], family) for i, family in enumerate(families)]


def _coded(column: np.ndarray, table: dict[int, str]) -> list[str]:
    return [table.get(code) or str(code) for code in column.tolist()]


def present(rows: np.ndarray, names: Names, clock: int, **constant: Any) -> list[dict[str, Any]]:
    """Rows of schemas.verdict.DTYPE as plain dicts, in order; `constant` (node, ring …) is added to each.

    Keys: time, time_ns, event, decision, outcome, reason, rule, src, sport, dst, dport, proto, src_identity,
    dst_identity, direction, packets, bytes, the columns of NUMBERS, and each Flag by its word as a bool.
    `packets` and `bytes` are both directions together. A name that is not known is `rule:<n>` or `identity:<n>`.
    """
    if not len(rows):
        return []
    revisions, families = rows["revision"].tolist(), rows["family"].tolist()
    text, ns = times(rows, clock)
    columns: dict[str, list[Any]] = {"time": text, "time_ns": ns}
    for key in ("event", "decision", "outcome", "reason"):
        columns[key] = _coded(rows[key], WORDS[key])
    columns["rule"] = _named(revisions, rows["rule"].tolist(), names.rule, "rule")
    columns["src"] = _addresses(rows["src"], families)
    columns["sport"] = rows["sport"].tolist()
    columns["dst"] = _addresses(rows["dst"], families)
    columns["dport"] = rows["dport"].tolist()
    columns["proto"] = [proto_text(number) for number in rows["proto"].tolist()]
    columns["src_identity"] = _named(revisions, rows["src_identity"].tolist(), names.identity, "identity")
    columns["dst_identity"] = _named(revisions, rows["dst_identity"].tolist(), names.identity, "identity")
    columns["direction"] = _coded(rows["direction"], WORDS["direction"])
    columns["packets"] = (rows["packets_original"] + rows["packets_reply"]).tolist()
    columns["bytes"] = (rows["bytes_original"] + rows["bytes_reply"]).tolist()
    for key in NUMBERS:
        columns[key] = rows[key].tolist()
    for flag, key in FLAGS:
        columns[key] = (rows["flags"] & flag != 0).tolist()
    keys = tuple(columns)
    return [constant | dict(zip(keys, row, strict=True)) for row in zip(*columns.values(), strict=True)]
