"""Writes `docs/schema.md` and the tables of `docs/metrics.md` from the descriptions; `schemas.render` calls it."""

import re
from collections.abc import Sequence
from enum import IntEnum, IntFlag

import msgspec

from schemas import codes, messages, metrics, structs, subjects
from schemas.streams import STREAMS
from schemas.verdict import FIELDS, SIZE, STRIDE, VERDICT_EVENT

_CODES: tuple[tuple[str, type[IntEnum] | type[IntFlag]], ...] = (
    ("decision", codes.Decision), ("outcome", codes.Outcome), ("event", codes.EventKind),
    ("direction", codes.Direction), ("reason", codes.Reason), ("flags (bits)", codes.Flag), ("mode", codes.Mode),
    ("rule (below 64: not in policy.yaml)", codes.RuleId),
    ("identity (below 16: reserved)", codes.IdentityId),
)  # fmt: skip


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]


def _c_type(field: structs.Field) -> str:
    return f"{field.ctype}[{field.count}]" if field.count > 1 else field.ctype


def _record(kind: type[msgspec.Struct]) -> list[str]:
    fields = [(f"`{field.name}`", _type_name(field.type)) for field in msgspec.structs.fields(kind)]
    return [f"### {kind.__name__}", "", " ".join((kind.__doc__ or "").split()), "", *_table(("key", "type"), fields)]


def _type_name(kind: object) -> str:
    return (
        kind.__name__
        if isinstance(kind, type) and not hasattr(kind, "__args__")
        else str(kind).replace("schemas.messages.", "")
    )


def schema_md() -> str:
    """The whole of `docs/schema.md`."""
    out = [
        "# Schema reference", "",
        "Made by `python -m schemas.render` from `schemas/`: change it there. A test compares.", "",
        "## The verdict event", "",
        f"{VERDICT_EVENT.meaning} {SIZE} bytes, every {STRIDE} bytes of the ring. The same names are the columns of a "
        "batch on the wire.", "",
        *_table(
            ("column", "in the ring and on the wire", "in DuckDB", "unit", "meaning"),
            [(f"`{f.name}`", _c_type(f), f.sql, f.unit, f.meaning) for f in FIELDS],
        ),
        "## Codes", "", "Append-only: a released number keeps its meaning.", "",
    ]  # fmt: skip
    for title, kind in _CODES:
        out += [
            f"**{title}**: " + ", ".join(f"{int(code)} `{(code.name or str(int(code))).lower()}`" for code in kind),
            "",
        ]
    out += [
        "## Subjects on NATS", "",
        "Node, identity and protocol are one token each: letters, digits, `-` and `_` stand for themselves, any other "
        "byte is `=` and two hex digits.", "",
        *_table(
            ("subject", "what", "kept in"),
            [
                (f"`{subjects.ALL_VERDICTS[:-1]}<node>`", "batches of verdicts, see below", subjects.VERDICTS_STREAM),
                ("`ztlens.live.v1.<node>.<decision>.<source identity>.<destination identity>.<proto>.<port>`",
                 "one verdict, a msgpack map of words; best effort, capped", "–"),
                (f"`{subjects.ALL_POLICY[:-1]}<node>`", "PolicyRecord", subjects.RECORDS_STREAM),
                (f"`{subjects.ALL_LOSS[:-1]}<node>`", "LossRecord, each second", subjects.RECORDS_STREAM),
                (f"`{subjects.ALL_DEAD[:-1]}<reason>`", "what a sink could not decode, whole", subjects.DEAD_STREAM),
                (f"`{subjects.ALL_REPLAY[:-1]}<session>.<verdicts|live|policy>.…`",
                 "`ztlens replay`: recorded verdicts, maps and policy records once more, each with the key `replay`; "
                 "behind the kind as live", "–"),
                (f"`{subjects.ALL_REPLAY[:-1]}<session>.progress.<node>`", "ReplayRecord, each second and at the end",
                 "–"),
            ],
        ),
        "## Streams", "",
        *_table(
            ("stream", "subjects", "kept for", "kept up to"),
            [
                (f"`{name}`", ", ".join(f"`{s}`" for s in stream["subjects"]),
                 f"{stream['max_age'] // 86_400_000_000_000} days", f"{stream['max_bytes'] >> 20} MiB")
                for name, stream in STREAMS.items()
            ],
        ),
        "## A batch of verdicts", "",
        "A msgpack map: `v` 1, `node`, `ring`, `start`, `end`, `stride`, `n`, `clock`, `rev`, `t` {column: type}, `c` "
        "{column: bytes}. `[start, end)` are byte positions in the ring, and so the events' place in the sequence of "
        "all events of that ring; `n` = (end − start) / stride. `clock` added to `time` gives ns since 1970 UTC. Types "
        "are numpy's: `<u8`, `<u4`, `<u2`, `|u1` little-endian unsigned, `V16` an address in network order (IPv4 in "
        "the last four bytes; `family` tells). Skip columns you do not know; take zeros for those you miss.", "",
        "A replayed batch has `replay`, the session, and `due`, when it was to be sent, in ns since the replay began; "
        "`[start, end)` is the verdicts' place among those of their ring in the replay, and a column `position` "
        "(`<u8`) says where each was recorded; `clock` is 0.", "",
        "## Records", "", "msgpack maps. Unknown keys are to be skipped; missing ones have their default.", "",
    ]  # fmt: skip
    for record in (
        messages.PolicyRecord,
        messages.RuleInfo,
        messages.IdentityInfo,
        messages.LossRecord,
        messages.FlowSums,
        messages.ReplayRecord,
    ):
        out += _record(record)
    out += [
        "## Counters", "",
        "Keys of `LossRecord.counters`, since the ring was made: "
        + ", ".join(f"`{code.name.lower()}`" for code in codes.Counter) + ". What each counts stands beside it in "
        "`schemas/codes.py`.", "",
        "## Kernel sizes", "",
        *_table(("knob", "default", "unit", "meaning"),
                [(f"`{k.name}`", f"{k.default:,}", k.unit, k.meaning) for k in structs.KNOBS]),
    ]  # fmt: skip
    return "\n".join(out)


def metrics_md(text: str) -> str:
    """`text` with the table of each endpoint's metrics between its marks."""

    def filled(match: re.Match[str]) -> str:
        rows = [
            (f"`{one.name}`", one.kind, " ".join(f"`{label}`" for label in one.labels), one.meaning, one.most)
            for one in metrics.of(match[1])
        ]
        table = _table(("metric", "kind", "labels", "what", "series"), rows)
        return "\n".join((f"<!-- metrics: {match[1]} -->", *table, "<!-- /metrics -->"))

    return re.sub(r"<!-- metrics: (\w+) -->\n.*?<!-- /metrics -->", filled, text, flags=re.DOTALL)
