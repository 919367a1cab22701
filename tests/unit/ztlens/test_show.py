"""What stands on stdout: tables, JSON, CSV, Arrow, Parquet; verdicts as lines, blocks and objects."""

import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ztlens import show, verdicts
from ztlens.errors import BadInput

ROW: dict[str, Any] = {
    "time": 1_770_091_506_123_456_789, "node": "vm", "event": "new", "decision": "deny", "outcome": "passed",
    "reason": "default", "rule": "default", "revision": 1, "src": "fd00::1", "sport": 40000, "dst": "fd00:2::1",
    "dport": 443, "proto": "tcp", "family": 6, "src_identity": "intruder", "dst_identity": "database",
    "direction": "original", "packets": 1, "bytes": 74, "packets_original": 1, "bytes_original": 74,
    "packets_reply": 0, "bytes_reply": 0, "tcp_flags_original": 2, "tcp_flags_reply": 0, "egress": True,
    "midstream": False, "report_only": False, "untracked": False, "aggregated": False, "reversed": False,
    "ifindex": 7, "flow_id": 9, "ring": "r", "position": 120,
}  # fmt: skip


def result() -> pa.Table:
    return (
        duckdb.connect()
        .execute(
            """SELECT * FROM (VALUES
        (1, 'a,"b"', TIMESTAMP_NS '2026-02-03 04:05:06.123456789', 170141183460469231731687303715884105727::HUGEINT,
         1.5, true, [1, 2], 'x'::BLOB),
        (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)) AS t(n, text, time, huge, ratio, flag, list, raw)"""
        )
        .to_arrow_table()
    )


EXPECTED = [
    {"n": 1, "text": 'a,"b"', "time": "2026-02-03T04:05:06.123456789Z", "huge": 2**127 - 1, "ratio": 1.5,
     "flag": True, "list": [1, 2], "raw": "78"},
    dict.fromkeys(("n", "text", "time", "huge", "ratio", "flag", "list", "raw")),
]  # fmt: skip


def test_json_is_one_document_with_exact_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    show.answer(result(), "json")
    assert json.loads(capsys.readouterr().out) == EXPECTED


def test_values_within_values(capsys: pytest.CaptureFixture[str]) -> None:
    nested = duckdb.sql(
        """SELECT {'a': [TIMESTAMP_NS '2026-01-01 00:00:00.000000001'], 'b': MAP {'k': 1}} AS s,
        INTERVAL 3 DAY AS i, TIME '01:02:03' AS t, DATE '2026-01-02' AS d, uuid() IS NULL AS u"""
    ).to_arrow_table()
    show.answer(nested, "json")
    (row,) = json.loads(capsys.readouterr().out)
    assert row["s"]["a"] == ["2026-01-01 00:00:00"] and row["s"]["b"] == {"k": 1}
    assert (row["t"], row["d"], row["u"]) == ("01:02:03", "2026-01-02", False)


def test_no_rows_are_an_empty_document(capsys: pytest.CaptureFixture[str]) -> None:
    show.answer(result().slice(0, 0), "json")
    assert json.loads(capsys.readouterr().out) == []


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    show.answer(result(), "csv")
    assert capsys.readouterr().out.splitlines() == [
        "n,text,time,huge,ratio,flag,list,raw",
        f'1,"a,""b""",2026-02-03T04:05:06.123456789Z,{2**127 - 1},1.5,True,"[1, 2]",78',
        ",,,,,,,",
    ]


def test_a_table_without_a_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(["name", "n"], [["a", 1], ["longer", 1000], [None, None]])
    assert capsys.readouterr().out == "name       n\na          1\nlonger  1000\n\n"


@pytest.mark.parametrize("output", ["arrow", "parquet"])
def test_binary_formats_keep_the_types(output: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    table = result()
    show.answer(table, output)
    data = io.BytesIO(capsysbinary.readouterr().out)
    again = pa.ipc.open_stream(data).read_all() if output == "arrow" else pq.read_table(data)
    assert again.column_names == table.column_names
    assert again.column("time").cast(pa.int64()).to_pylist() == [1_770_091_506_123_456_789, None]
    assert again.column("huge").to_pylist() == [Decimal(2**127 - 1), None]


def test_binary_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "on_terminal", lambda stream=None: True)
    with pytest.raises(BadInput):
        show.answer(result(), "parquet")


@pytest.mark.parametrize(
    ("terminal", "variables", "expected"),
    [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False), (True, {"NO_COLOR": ""}, True),
     (True, {"TERM": "dumb"}, False)],
)  # fmt: skip
def test_colour(terminal: bool, variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "on_terminal", lambda stream=None: terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert show.coloured() is expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "DENY  WOULD BE dropped [fd00::1]:40000 (intruder) → [fd00:2::1]:443 (database) tcp default"),
        ({"outcome": "dropped"}, "DENY  WAS dropped"),
        ({"report_only": True, "reason": "rule", "rule": "no-ssh"}, "DENY  report only      [fd00::1]:40000"),
        ({"decision": "allow", "reason": "rule", "rule": "web"}, "(database) tcp rule=web new 1 packet 74 B egress"),
        ({"src": "10.0.0.1", "dst": "10.0.0.2", "proto": "icmp", "dport": 8}, "10.0.0.1 (intruder) → 10.0.0.2"),
        ({"proto": "icmp", "dport": 8}, " icmp:8 default"),
        ({"reason": "builtin", "rule": "builtin:ndp", "decision": "allow"}, "builtin:ndp"),
        ({"src": None, "dst": None, "proto": None, "reason": "malformed"}, "? (intruder) → ? (database) - malformed"),
        ({"packets": 2, "untracked": True}, "new 2 packets 74 B egress untracked"),
    ],
)
def test_compact_lines(changes: dict[str, Any], says: str) -> None:
    line = verdicts.compact(ROW | changes, False)
    assert says in line
    assert "\n" not in line and "\x1b" not in line
    assert datetime.fromisoformat(line.split()[0]).astimezone(UTC) == datetime(2026, 2, 3, 4, 5, 6, 123000, UTC)


def test_colour_changes_nothing_but_colour() -> None:
    assert re.sub(r"\x1b\[\d+m", "", verdicts.compact(ROW, True)) == verdicts.compact(ROW, False)


def test_json_verdicts_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    printer = verdicts.Printer("json")
    printer.write([ROW, ROW])
    printer.close()
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [ROW | {"time": "2026-02-03T04:05:06.123456789Z"}] * 2
    assert tuple(json.loads(lines[0])) == verdicts.COLUMNS


def test_dict_verdicts_are_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts.Printer("dict").write([ROW, ROW])
    blocks = capsys.readouterr().out.split("------------\n")
    assert len(blocks) == 2 and blocks[0] == blocks[1]
    assert dict(line.strip().split(": ", 1) for line in blocks[0].splitlines())["src"] == "fd00::1"


def test_a_table_of_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    printer = verdicts.Printer("table")
    printer.write([ROW])
    printer.write([ROW | {"packets": 3}])
    assert capsys.readouterr().out == ""
    printer.close()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "time", "decision", "source", "identity", "destination", "identity", "proto", "because", "event", "packets",
        "bytes",
    ]  # fmt: skip
    assert len(lines) == 2
