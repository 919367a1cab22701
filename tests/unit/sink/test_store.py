"""What a commit stores: each event once, whatever comes twice, cut anew or late; the state survives a reopening."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from schemas import envelope, tables
from schemas.errors import EnvelopeError
from schemas.verdict import DTYPE, STRIDE
from sink.errors import SinkError
from sink.store import Batch, Commit, Store, prepare
from sink.store.store import Store as Writer
from tests.support import batches

Open = Callable[..., Store]
Rows = Callable[[Store, str], list[dict[str, Any]]]


def batch(rows: np.ndarray, first: int = 0, **where: Any) -> Batch:
    """`rows` from row `first` of the ring on."""
    return prepare(batches.batch(rows, first * STRIDE, **where))


def positions(store: Store) -> list[int]:
    """Row numbers stored, ascending."""
    found = store.connection.execute("SELECT position FROM store.verdicts ORDER BY ring, position").fetchall()
    return [position // STRIDE for (position,) in found]


def test_every_column_comes_back_as_it_was(memory: Store) -> None:
    rows = batches.traffic(3000).rows
    memory.append(Commit(batches=[batch(rows, 5)]))
    names = [name for name, _ in tables.VERDICT_COLUMNS]
    found = memory.connection.execute("SELECT * FROM store.verdicts ORDER BY position").to_arrow_table()
    assert found.schema.names == names
    given = {name: found[name].to_numpy() for name in names}
    assert (given["position"] == (np.arange(len(rows)) + 5) * STRIDE).all()
    assert (given["time"].view("i8") == rows["time"].astype("i8") + batches.CLOCK).all()
    for name in ("src", "dst"):
        whole = np.stack([given[f"{name}_hi"], given[f"{name}_lo"]], axis=1).astype(">u8")
        assert whole.tobytes() == rows[name].tobytes()
    for name in DTYPE.names or ():
        if name not in ("time", "src", "dst"):
            assert (given[name] == rows[name]).all(), name


def test_when_a_ring_was_heard_of_survives_a_reopening(on_disk: Open) -> None:
    """By its last record; one whose clock is ahead was heard now, one without a record when it was first stored."""
    store, now, day = on_disk(), time.time_ns(), 86_400 * 10**9
    store.append(Commit(
        batches=[batch(batches.traffic(9).rows, node="n3", ring="r3")],
        records=[
            batches.loss_record(1, time=now - 4 * day), batches.loss_record(2, time=now - 3 * day),
            batches.loss_record(1, node="n2", ring="r2", time=now + day),
        ],
    ))  # fmt: skip
    quiet = {ring.node: time.monotonic() - ring.heard for ring in store.state.rings.values()}
    assert max(quiet.values()) < 3600  # they came now
    store.close()
    store = on_disk()
    quiet = {ring.node: time.monotonic() - ring.heard for ring in store.state.rings.values()}
    assert {node: seconds // 3600 for node, seconds in quiet.items()} == {"n1": 72, "n2": 0, "n3": 0}
    store.close()


def test_who_listens_is_told_of_new_verdicts(memory: Store) -> None:
    told: list[int] = []
    memory.listener = lambda new: told.append(new.num_rows)
    memory.append(Commit(records=[batches.loss_record(0)]))
    rows = batches.traffic(300).rows
    for given in (rows[:200], rows):
        memory.append(Commit(batches=[batch(given)]))
    memory.append(Commit(batches=[batch(rows)]))
    assert told == [200, 100]


def test_the_same_batch_twice_is_stored_once(memory: Store) -> None:
    rows = batches.traffic(300).rows
    assert memory.append(Commit(batches=[batch(rows)])) == 300
    assert memory.append(Commit(batches=[batch(rows)])) == 0
    assert memory.append(Commit(batches=[batch(rows), batch(rows, 300)])) == 300
    assert positions(memory) == list(range(600))
    stage = memory.counters.verdicts
    assert (stage.received, stage.stored, dict(stage.dropped)) == (1200, 600, {"duplicate": 600})


def test_batches_cut_anew_are_trimmed(memory: Store) -> None:
    """The case of the design: [0,100) is stored, and comes again as [0,140)."""
    rows = batches.traffic(300).rows
    memory.append(Commit(batches=[batch(rows[:100])]))
    assert memory.append(Commit(batches=[batch(rows[:140])])) == 40
    assert memory.append(Commit(batches=[batch(rows[200:250], 200), batch(rows[130:220], 130)])) == 50 + 60
    assert memory.append(Commit(batches=[batch(rows, 0)])) == 50
    assert positions(memory) == list(range(300))
    found = memory.connection.execute("SELECT time FROM store.verdicts ORDER BY position").to_arrow_table()
    assert (found["time"].to_numpy().view("i8") == rows["time"].astype("i8") + batches.CLOCK).all()


def test_any_order_of_arrival_and_any_cut(memory: Store) -> None:
    rows = batches.traffic(240).rows
    rng = np.random.default_rng(7)
    cuts = [sorted(rng.integers(0, 241, 2).tolist()) for _ in range(60)] + [[0, 120], [110, 240]]
    stored = sum(memory.append(Commit(batches=[batch(rows[a:b], a)])) for a, b in cuts if a < b)
    assert stored == 240
    assert positions(memory) == list(range(240))
    assert list(memory.state.rings["n1", "r1"].held) == [(0, 240 * STRIDE)]


def test_rings_and_nodes_are_kept_apart(memory: Store, rows: Rows) -> None:
    some = batches.traffic(30).rows
    places = list(itertools.product(("n1", "n2"), ("r1", "r2")))
    memory.append(Commit(batches=[batch(some, node=node, ring=ring) for node, ring in places]))
    found = rows(memory, "SELECT node, ring, count(*) AS n FROM verdicts GROUP BY ALL ORDER BY ALL")
    assert found == [{"node": node, "ring": ring, "n": 30} for node, ring in places]


def test_a_second_stride_in_one_ring_is_dropped_and_counted(memory: Store) -> None:
    some = batches.traffic(30).rows
    other = envelope.encode(some, node="n1", ring="r1", start=0, clock=0, rev=1, stride=200)
    memory.append(Commit(batches=[batch(some)]))
    memory.append(Commit(batches=[prepare(envelope.decode(other))]))
    assert memory.counters.verdicts.dropped == {"stride": 30}
    assert positions(memory) == list(range(30))


def test_a_ring_first_known_by_its_policy_takes_its_stride_from_the_batch(memory: Store, rows: Rows) -> None:
    some = batches.traffic(30).rows
    memory.append(Commit(records=[batches.policy_record("start")]))
    other = envelope.encode(some, node="n1", ring="r1", start=0, clock=0, rev=1, stride=200)
    assert memory.append(Commit(batches=[prepare(envelope.decode(other))])) == 30
    assert rows(memory, "SELECT stride FROM store.rings") == [{"stride": 200}]


def test_state_is_the_same_after_reopening(on_disk: Open) -> None:
    some = batches.traffic(300).rows
    store = on_disk()
    store.stream("VERDICTS", "t1", 10)
    store.append(
        Commit(
            batches=[batch(some[:100]), batch(some[200:], 200)],
            records=[
                batches.policy_record(),
                batches.loss_record(300),
                batches.policy_record("closed", end=300 * STRIDE),
            ],
            marks={"VERDICTS": 7},
        )
    )
    store.declare_gaps([(store.state.rings["n1", "r1"], 100 * STRIDE, 150 * STRIDE, "test")])
    before = store.state
    store.close()
    store = on_disk()
    assert store.state == before
    assert store.state.rings["n1", "r1"].closed
    assert store.state.rings["n1", "r1"].holes() == [(150 * STRIDE, 200 * STRIDE)]
    store.close()


def test_a_failed_commit_leaves_nothing_and_can_be_given_again(on_disk: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    some = batches.traffic(300).rows
    store = on_disk()
    store.stream("VERDICTS", "t1", 10)
    commit = Commit(batches=[batch(some)], records=[batches.loss_record(300)], marks={"VERDICTS": 3})
    real = Writer.recover
    failures: list[BaseException] = []

    def recover(self: Writer, error: BaseException, **how: bool) -> None:
        failures.append(error)
        real(self, error, **how)

    monkeypatch.setattr(Writer, "recover", recover)
    monkeypatch.setattr("sink.store.records.insert_loss", _fail)
    with pytest.raises(SinkError) as caught:
        store.append(commit)
    assert caught.value.exit_status == 3
    assert len(failures) == 1
    assert positions(store) == []
    assert store.state.rings == {}
    assert store.state.streams["VERDICTS"].sequence == 0
    assert store.counters.verdicts.report() == {"received": 0, "stored": 0, "dropped": {}, "failed": 300}
    monkeypatch.undo()
    assert store.append(commit) == 300
    assert store.state.streams["VERDICTS"].sequence == 3
    store.close()


def _fail(*given: Any) -> int:
    raise duckdb.IOException("IO Error: No space left on device")


def test_policy_records_are_stored_once_and_name_a_revision_once(memory: Store, rows: Rows) -> None:
    first, again = batches.policy_record("start"), batches.policy_record("start", time=batches.CLOCK + 5)
    memory.append(Commit(records=[first, first]))
    memory.append(Commit(records=[first, again]))
    assert rows(memory, "SELECT count(*) AS n FROM changes") == [{"n": 2}]
    assert rows(memory, "SELECT id, name, action, report_only FROM rules ORDER BY id") == [
        {"id": 64, "name": "web-to-db", "action": "allow", "report_only": False},
        {"id": 65, "name": "rest", "action": "deny", "report_only": True},
    ]
    assert rows(memory, "SELECT name, labels['app'] AS app, addresses FROM identities ORDER BY id") == [
        {"name": "frontend", "app": "frontend", "addresses": ["10.0.1.10"]},
        {"name": "database", "app": "db", "addresses": ["10.0.2.0/24", "fd00:2::/64"]},
    ]
    assert memory.counters.records.report() == {"received": 4, "stored": 2, "dropped": {"duplicate": 2}, "failed": 0}


def test_a_refused_policy_names_nothing(memory: Store, rows: Rows) -> None:
    memory.append(Commit(records=[batches.policy_record("refused", error="line 3")]))
    assert rows(memory, "SELECT kind, error FROM changes") == [{"kind": "refused", "error": "line 3"}]
    assert rows(memory, "SELECT * FROM rules") == []


def test_loss_records_are_stored_once(memory: Store, rows: Rows) -> None:
    record = batches.loss_record(10, packets=20)
    memory.append(Commit(records=[record, record]))
    memory.append(Commit(records=[record, batches.loss_record(12, time=batches.CLOCK + 1)]))
    found = rows(
        memory, "SELECT produced, counters['ended_packets'] AS p, interfaces['eth9'] AS i FROM loss ORDER BY time"
    )
    assert found == [
        {"produced": 10 * STRIDE, "p": 20, "i": "native+egress"},
        {"produced": 12 * STRIDE, "p": 0, "i": "native+egress"},
    ]


def test_a_late_arrival_takes_its_part_out_of_a_gap(memory: Store, rows: Rows) -> None:
    some = batches.traffic(300).rows
    memory.append(Commit(batches=[batch(some[:100])], records=[batches.loss_record(300)]))
    ring = memory.state.rings["n1", "r1"]
    memory.declare_gaps([(ring, 100 * STRIDE, 300 * STRIDE, "test")])
    assert ring.holes() == []
    memory.append(Commit(batches=[batch(some[150:200], 150)]))
    ring = memory.state.rings["n1", "r1"]
    assert list(ring.gaps) == [(100 * STRIDE, 150 * STRIDE), (200 * STRIDE, 300 * STRIDE)]
    assert rows(memory, "SELECT first // 120 AS a, past // 120 AS b, events, cause FROM gaps ORDER BY first") == [
        {"a": 100, "b": 150, "events": 50, "cause": "test"}, {"a": 200, "b": 300, "events": 100, "cause": "test"},
    ]  # fmt: skip
    memory.append(Commit(batches=[batch(some)]))
    assert rows(memory, "SELECT * FROM gaps") == []
    assert positions(memory) == list(range(300))


def test_a_stream_made_anew_or_set_back_is_read_from_its_start(memory: Store, rows: Rows) -> None:
    assert memory.stream("VERDICTS", "monday", 0).sequence == 0
    memory.append(Commit(marks={"VERDICTS": 9}))
    assert memory.stream("VERDICTS", "monday", 9).sequence == 9
    assert memory.stream("VERDICTS", "tuesday", 50).sequence == 0
    memory.append(Commit(marks={"VERDICTS": 50}))
    assert memory.stream("VERDICTS", "tuesday", 40).sequence == 0
    assert rows(memory, "SELECT created, note FROM store.streams ORDER BY id") == [
        {"created": "monday", "note": "first seen"}, {"created": "tuesday", "note": "made anew"},
        {"created": "tuesday", "note": "set back"},
    ]  # fmt: skip


def test_missing_messages_are_a_gap_of_the_stream(memory: Store, rows: Rows) -> None:
    memory.stream("VERDICTS", "monday", 20)
    memory.append(Commit(marks={"VERDICTS": 12}, missed=[("VERDICTS", 1, 11)]))
    found = rows(memory, "SELECT kind, stream, first, past, messages FROM gaps")
    assert found == [{"kind": "stream", "stream": "VERDICTS", "first": 1, "past": 12, "messages": 11}]


def test_a_newer_database_is_refused_and_not_touched(on_disk: Open, tmp_path: Path) -> None:
    store = on_disk()
    store.connection.execute("INSERT INTO store.schema_version VALUES (?, now()::TIMESTAMP_NS)", [tables.VERSION + 1])
    store.close()
    path = tmp_path / "z.duckdb"
    before = path.read_bytes()
    with pytest.raises(SinkError) as caught:
        on_disk()
    assert caught.value.exit_status == 3
    assert f"version {tables.VERSION + 1}" in str(caught.value)
    assert "not touched" in caught.value.hint
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["z.duckdb"]


def test_a_file_that_is_no_database_is_refused_and_not_touched(on_disk: Open, tmp_path: Path) -> None:
    path = tmp_path / "z.duckdb"
    path.write_bytes(b"all this is text\n" * 1000)
    with pytest.raises(SinkError, match="cannot be read as a DuckDB database"):
        on_disk()
    assert path.read_bytes() == b"all this is text\n" * 1000


def test_somebody_elses_database_is_refused(on_disk: Open, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "z.duckdb")) as other:
        other.execute("CREATE TABLE books (title VARCHAR)")
    with pytest.raises(SinkError, match="not of ztlens"):
        on_disk()


def test_a_directory_that_cannot_be_made_is_one_error(tmp_path: Path, on_disk: Open) -> None:
    (tmp_path / "z.duckdb").mkdir()
    with pytest.raises(SinkError) as caught:
        on_disk()
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def corrupt(**fields: Any) -> envelope.Envelope:
    """A batch of two rows with `fields` of its envelope replaced."""
    good = batches.batch(batches.traffic(6).rows[:2])
    return type(good)(**{name: getattr(good, name) for name in good.__struct_fields__} | fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start": 60, "end": 60 + 2 * STRIDE}, "no multiple"),
        ({"start": (1 << 64) - STRIDE, "end": (1 << 64) + STRIDE}, "multiple|beyond"),
        ({"clock": -(1 << 62)}, "out of range"),
        ({"clock": 1 << 63}, "out of range"),
        ({"n": 1 << 40, "end": STRIDE << 40, "c": {}, "t": {}}, "rows in one batch"),
        ({"stride": 1 << 40, "end": 2 << 40}, "stride"),
        (
            {"t": envelope.TYPES, "c": {"bytes_reply": np.array([0, (1 << 60) + 1], "<u8").tobytes()}},
            "bytes_reply of 1152921504606846977 is out of range",
        ),
        ({"t": envelope.TYPES, "c": {"family": bytes([4, 7])}}, "a family is none of 0, 4, 6"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_a_commit(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(EnvelopeError, match=reason):
        prepare(corrupt(**fields))


def test_columns_a_sender_does_not_know_are_zeros_and_narrow_ones_fit(memory: Store, rows: Rows) -> None:
    some = batches.traffic(6).rows[:2]
    good = batches.batch(some)
    given = {name: data for name, data in good.c.items() if name not in ("ifindex", "revision")}
    kinds = dict(good.t) | {"revision": "<u2", "extra": "<u8"}
    given |= {"revision": np.array([7, 8], "<u2").tobytes(), "extra": bytes(16)}
    memory.append(Commit(batches=[prepare(corrupt(c=given, t=kinds))]))
    assert rows(memory, "SELECT ifindex, revision FROM verdicts ORDER BY position") == [
        {"ifindex": 0, "revision": 7}, {"ifindex": 0, "revision": 8},
    ]  # fmt: skip
