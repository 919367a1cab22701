"""Verdicts as people and programs read them: one line, a block, a table, one JSON object.

A verdict arrives as a row of the view `verdicts`, recorded and live alike. JSON has every column of the view but the
addresses as numbers, with the view's names; `time` is RFC 3339 in UTC.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from schemas import times
from schemas.filters import Filters, predicate
from ztlens import show

if TYPE_CHECKING:
    from sink.client import History

COLUMNS = (
    "time", "node", "event", "decision", "outcome", "reason", "rule", "revision", "src", "sport", "dst", "dport",
    "proto", "family", "src_identity", "dst_identity", "direction", "packets", "bytes", "packets_original",
    "bytes_original", "packets_reply", "bytes_reply", "tcp_flags_original", "tcp_flags_reply", "egress", "midstream",
    "report_only", "untracked", "aggregated", "reversed", "ifindex", "flow_id", "ring", "position",
)  # fmt: skip
FORMATS = ("compact", "table", "json", "dict")
FLAGS = ("egress", "midstream", "report_only", "untracked", "aggregated", "reversed")
ALIGNED, WIDEST = 26, 60
"""Columns of opener and responder on a terminal, at first and at most; in a pipe they are as long as they are."""
Row = dict[str, Any]
_COLUMNS = ", ".join("epoch_ns(time) AS time" if name == "time" else name for name in COLUMNS)
_ORDER = ("time", "node", "ring", "position")


def select(where: str) -> str:
    """The one SELECT of `observe`; `time` as ns since 1970, oldest first."""
    return f"SELECT {_COLUMNS} FROM verdicts WHERE {where} ORDER BY {', '.join(_ORDER)}"


def recorded(history: "History", asked: Filters, last: int | None, now: datetime | None = None) -> Iterator[Row]:
    """What the history holds of it, oldest first; only the newest `last`, unless None. Raises InputError, SinkError."""
    import pyarrow as pa

    from sink.history import ends
    from sink.history.views import verdicts_of

    rows, rest = ends.found(asked)
    if last is None:
        where = predicate(rest, now)
        view = verdicts_of(ends.together(rows) if rows != ends.TABLE else rows, spoken=f"{_COLUMNS} {where}")
        # Put in order here: DuckDB would take longer to plan that than to find what an address did in an hour.
        found = history.sql(f"SELECT {_COLUMNS} FROM ({view}) AS verdicts WHERE {where}")
        found = found.sort_by([(name, "ascending") for name in _ORDER])
    elif last == 0:
        return iter(())
    else:
        since, until = times.span_ns(asked.since, asked.until, now)
        where = predicate(replace(rest, since="", until=""))
        found = history.recent(where, since=since, until=until, limit=last, rows=rows).select(COLUMNS)
        found = found.set_column(0, "time", found["time"].cast(pa.int64()))
    return show.records(found)


def judgement(row: Row) -> str:
    """Decision and outcome in words: what a denial did, or would have done."""
    if row["decision"] != "deny":
        return "ALLOW"
    if row["outcome"] == "dropped":
        return "DENY  WAS dropped"
    return "DENY  report only" if row.get("report_only") else "DENY  WOULD BE dropped"


def because(row: Row) -> str:
    """Reason and, where one decided, the rule."""
    if row["reason"] == "rule":
        return f"rule={row['rule']}"
    return str(row["rule"]) if row["reason"] == "builtin" else str(row["reason"])


def endpoint(address: str | None, port: int | None, proto: str | None) -> str:
    """`10.0.1.10:443`, `[fd00::1]:443`; without a port where the protocol has none."""
    if not address:
        return "?"
    if port is None or proto not in ("tcp", "udp", "sctp"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def ends(row: Row) -> tuple[str, str]:
    """Opener and responder, each with its identity."""
    source = endpoint(row["src"], row["sport"], row["proto"])
    target = endpoint(row["dst"], row["dport"], row["proto"])
    return f"{source} ({row['src_identity']})", f"{target} ({row['dst_identity']})"


def compact(row: Row, colour: bool, widths: tuple[int, int] = (0, 0)) -> str:
    """One line; opener and responder are given as much room as `widths` say."""
    denied = row["decision"] == "deny"
    style = (show.RED,) if row["outcome"] == "dropped" else (show.YELLOW,) if denied else (show.GREEN,)
    source, target = ends(row)
    proto = row["proto"] or "-"
    if proto in ("icmp", "icmpv6"):
        proto += f":{row['dport']}"
    marks = [name for name in FLAGS if row[name] and name != "report_only"]
    plural = "" if row["packets"] == 1 else "s"
    tail = f"{row['event']} {row['packets']} packet{plural} {row['bytes']} B"
    return " ".join(
        [
            show.paint(times.rfc3339(row["time"], local=True, digits=3), show.DIM, on=colour),
            show.paint(f"{judgement(row):22}", *style, on=colour),
            f"{source:{widths[0] or ''}} → {target:{widths[1] or ''}}",
            proto,
            show.paint(because(row), show.BOLD, on=colour),
            show.paint(" ".join([tail, *marks]), show.DIM, on=colour),
        ]
    )


def plain(row: Row) -> Row:
    """A row as JSON shows it."""
    return row | {"time": times.rfc3339(row["time"])}


def block(row: Row) -> str:
    """`name: value`, a line each, as in Hubble's dict format."""
    return "\n".join(f"{name:>18}: {'' if value is None else value}" for name, value in plain(row).items())


class SupportsWrite(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class Printer:
    """Writes verdicts as they come; a table needs all of them, so it is written by `close`."""

    def __init__(self, output: str, out: SupportsWrite | None = None) -> None:
        self.output = output
        self._out = out
        self._rows: list[Row] = []
        self._colour = show.coloured()
        self._widths = (ALIGNED, ALIGNED) if show.on_terminal() else (0, 0)
        self._first = True

    def write(self, rows: Iterable[Row]) -> None:
        """Some verdicts, oldest first; flushed, for whoever follows."""
        if self.output == "table":
            self._rows.extend(rows)
            return
        lines = [self._text(row) for row in rows]
        if lines:
            out = self._out or sys.stdout
            out.write("\n".join(lines) + "\n")
            out.flush()

    def _text(self, row: Row) -> str:
        if self.output == "json":
            return json.dumps(plain(row), ensure_ascii=False)
        if self.output == "dict":
            gap, self._first = ("" if self._first else "------------\n"), False
            return gap + block(row)
        if self._widths[0]:  # columns, which grow as wider ends come
            wide = [max(have, min(len(end), WIDEST)) for have, end in zip(self._widths, ends(row), strict=True)]
            self._widths = (wide[0], wide[1])
        return compact(row, self._colour, self._widths)

    def close(self) -> None:
        """The end of what was asked for."""
        if self.output == "table":
            show.table(*tabled(self._rows))


def tabled(rows: list[Row]) -> tuple[list[str], Iterator[list[object]]]:
    """Columns and rows of the table people get."""
    columns = ["time", "decision", "source", "identity", "destination", "identity", "proto", "because", "event",
               "packets", "bytes"]  # fmt: skip
    return columns, (
        [
            times.rfc3339(row["time"], local=True, digits=3), judgement(row),
            endpoint(row["src"], row["sport"], row["proto"]), row["src_identity"],
            endpoint(row["dst"], row["dport"], row["proto"]), row["dst_identity"],
            row["proto"], because(row), row["event"], row["packets"], row["bytes"],
        ]
        for row in rows
    )  # fmt: skip
