"""A replay's parts: windows of a store, the schedule under a clock of its own, and what goes out together."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from schemas.filters import Filters, predicate
from schemas.messages import PolicyRecord, RuleInfo
from schemas.verdict import DTYPE, STRIDE
from sink.client import History
from sink.store import Commit, Store, memory_store, prepare
from tests.support import batches
from tests.support.batches import CLOCK, START
from ztlens.errors import BadInput
from ztlens.replay import run, windows
from ztlens.replay.publish import Shown
from ztlens.replay.run import Replay, threaded
from ztlens.replay.schedule import MAX, Schedule, speed
from ztlens.replay.windows import Names, Part, Reader, Window, ahead
from ztlens.verdicts import COLUMNS, Printer, recorded

MS = 1_000_000
RINGS = {("n1", "r0"): 23, ("n1", "r1"): 3000, ("n2", "r2"): 3000}


@pytest.fixture
def store() -> Iterator[Store]:
    """Two rings of two nodes with the same traffic at the same times, and a third with a burst and an hour's pause."""
    made = memory_store()
    rows = batches.traffic(3000).rows
    burst = np.concatenate([batches.verdict(flow_id=i, time=START) for i in range(1, 21)])
    later = np.concatenate([
        batches.verdict(flow_id=21, time=START + 3_600_000_000_000, revision=2),
        batches.verdict(flow_id=22, time=START + 3_600_000_000_001, revision=3, rule=99, proto=200, src_identity=77),
        batches.untracked(family=0, time=START + 3_600_000_000_002),
    ])  # fmt: skip
    made.append(
        Commit(
            batches=[
                prepare(batches.batch(rows, node="n2", ring="r2")),
                prepare(batches.batch(rows)),
                prepare(batches.batch(np.concatenate([burst, later]), node="n1", ring="r0")),
            ],
            records=[
                batches.policy_record(),
                batches.policy_record(node="n2", ring="r2", rules=[RuleInfo(64, "other", "allow")]),
                batches.policy_record(ring="r0", revision=2, rules=[RuleInfo(64, "renamed", "allow")]),
            ],
        )
    )
    yield made
    made.close()


def keys(found: list[Window]) -> list[tuple[int, str, str, int]]:
    """Time, node, ring and position of every verdict, in the order they came."""
    return [
        (time, *window.rings[ring], position)
        for window in found
        for time, ring, position in zip(
            window.time.tolist(), window.ring.tolist(), window.columns["position"].tolist(), strict=True
        )
    ]


def asked(store: Store, where: str) -> list[tuple[int, str, str, int]]:
    """The same, as SQL says it."""
    return store.cursor().execute(
        f"SELECT epoch_ns(time), node, ring, position FROM verdicts WHERE {where} ORDER BY time, node, ring, position"
    ).fetchall()  # fmt: skip


@pytest.mark.parametrize("target", [40, 500, 100_000])
def test_windows_are_all_of_it_in_order(store: Store, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "TARGET", target)
    monkeypatch.setattr(windows, "MOST", 4 * target)
    found = list(Reader(lambda: History.on_store(store)).windows())
    assert keys(found) == asked(store, "true")
    assert len(keys(found)) == 6023
    assert max(map(len, found)) <= 4 * target


def test_one_nanosecond_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST", 10)
    store = memory_store()
    store.append(Commit(batches=[prepare(batches.batch(np.concatenate([batches.verdict()] * 50)))]))
    assert keys(list(Reader(lambda: History.on_store(store)).windows())) == asked(store, "true")
    store.close()


def test_columns_come_back_as_they_were_sent(store: Store) -> None:
    sent = batches.traffic(3000).rows
    (window,) = Reader(lambda: History.on_store(store), "node = 'n2'").windows()
    order = np.argsort(window.columns["position"])
    for name in DTYPE.names or ():
        expected = sent[name] + np.uint64(CLOCK) if name == "time" else sent[name]
        assert window.columns[name][order].tobytes() == np.ascontiguousarray(expected).tobytes(), name
    assert window.columns["position"][order].tolist() == [i * STRIDE for i in range(len(sent))]


@pytest.mark.parametrize(
    "given",
    [
        Filters(decision=("deny",)),
        Filters(node=("n2",), port=("443",)),
        Filters(from_label=("app=frontend",), where=("packets > 10 -- all",)),
        Filters(to_ip=("10.0.2.0/30",)),
        Filters(rule=("nothing",)),
    ],
)
def test_filters_are_those_of_observe(store: Store, given: Filters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "TARGET", 100)
    where = predicate(given)
    assert keys(list(Reader(lambda: History.on_store(store), where).windows())) == asked(store, where)


def test_since_and_until_are_half_open(store: Store) -> None:
    times = sorted({time for time, *_ in asked(store, "true")})
    since, until = times[10], times[20]
    found = keys(list(Reader(lambda: History.on_store(store)).windows(since, until)))
    assert {time for time, *_ in found} == set(times[10:20])
    assert list(Reader(lambda: History.on_store(store)).windows(until, since)) == []


def test_names_are_those_of_the_ring_and_revision(store: Store) -> None:
    found = list(Reader(lambda: History.on_store(store)).windows())
    names: dict[Any, Names] = {}
    for window in found:
        for key, known in Names.by_ring(window.policies).items():
            names.setdefault(key, known)
    assert names["n1", "r1"].rule(1, 64) == "web-to-db"
    assert names["n2", "r2"].rule(1, 64) == "other"
    assert names["n1", "r1"].rule(1, 99) is names["n1", "r1"].rule(7, 64) is None
    assert (names["n1", "r1"].identity(1, 17), names["n1", "r1"].identity(1, 0)) == ("database", "world")
    assert names["n1", "r1"].rule(1, 0) == "default"
    record = next(r for w in found for r in w.policies if r.ring == "r1")
    assert record == PolicyRecord(
        v=1, kind="revision", node="n1", ring="r1", time=CLOCK, revision=1, mode="monitor", default="deny",
        hash=f"{1:064x}", yaml="version: 1", rules=batches.RULES, identities=batches.IDENTITIES,
        who="root(0) control.sock",
    )  # fmt: skip


# -- the schedule ----------------------------------------------------------------------------------------------------


class Clock:
    """Time passes by sleeping, and `slow` ns more each time."""

    def __init__(self, slow: int = 0) -> None:
        self.now = 5_000_000_000
        self.slow = slow
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * 1e9) + self.slow


@pytest.mark.parametrize(("text", "factor"), [("1x", 1.0), ("10X", 10.0), ("0.5", 0.5), ("max", MAX)])
def test_speeds(text: str, factor: float) -> None:
    assert speed(text) == factor


@pytest.mark.parametrize("text", ["0x", "-1x", "fast", "", "nanx", "infx"])
def test_what_is_no_speed(text: str) -> None:
    with pytest.raises(BadInput, match="is not a speed"):
        speed(text)


async def test_deadlines_are_absolute_and_exact() -> None:
    """Every sleep takes 3 ms too long, and none of it adds up."""
    clock = Clock(slow=3 * MS)
    schedule = Schedule(10.0, clock=clock, sleep=clock.sleep)
    sent = []
    for stamp in (1_000, 500 * MS + 1_000, 900 * MS + 1_000, 910 * MS + 1_000):
        due = schedule.due(stamp)
        await schedule.wait(due)
        sent.append((due, clock.now - 5_000_000_000))
    assert sent == [(0, 0), (50 * MS, 53 * MS), (90 * MS, 93 * MS), (91 * MS, 93 * MS)]
    assert schedule.late == 0


async def test_late_is_more_than_ten_milliseconds() -> None:
    clock = Clock()
    schedule = Schedule(1.0, clock=clock, sleep=clock.sleep)
    for stamp, now in ((0, 0), (MS, 11 * MS), (2 * MS, 12 * MS + 1), (50 * MS, 12 * MS)):
        clock.now = max(clock.now, 5_000_000_000 + now)
        await schedule.wait(schedule.due(stamp))
    assert schedule.late == 1
    assert clock.now == 5_000_000_000 + 50 * MS


async def test_a_pause_is_cut_and_the_rest_keeps_its_spacing() -> None:
    schedule = Schedule(2.0, longest_pause=100 * MS)
    dues = [schedule.due(stamp * MS) for stamp in (0, 100, 10_100, 10_110, 99_000)]
    assert dues == [0, 50 * MS, 150 * MS, 155 * MS, 255 * MS]


async def test_max_waits_for_nothing() -> None:
    clock = Clock()
    schedule = Schedule(MAX, clock=clock, sleep=clock.sleep)
    for stamp in (0, 10**15):
        await schedule.wait(schedule.due(stamp))
    assert (clock.slept, schedule.late) == ([], 0)


# -- together --------------------------------------------------------------------------------------------------------


def window_of(*milliseconds: float) -> Window:
    rows = np.concatenate([batches.verdict(time=CLOCK + round(ms * MS)) for ms in milliseconds])
    columns = {name: rows[name] for name in DTYPE.names or ()} | {"position": np.arange(len(rows), dtype="u8")}
    return Window(columns, np.zeros(len(rows), "u4"), {0: ("n1", "r1")})


def test_what_goes_out_together_lies_within_the_span() -> None:
    window = window_of(0, 0.5, 1.999, 2, 2.5, 4, 100)
    assert [part[0][1]["position"].tolist() for part in window.parts(2 * MS)] == [[0, 1, 2], [3, 4], [5], [6]]
    assert [part[0][1]["position"].tolist() for part in window.parts(None)] == [list(range(7))]


def test_of_every_ring_what_lies_in_the_same_stretch(store: Store) -> None:
    (window,) = Reader(lambda: History.on_store(store)).windows()
    sent: dict[Any, list[int]] = {}
    last = 0
    for part in window.parts(5 * MS):
        firsts = [int(columns["time"][0]) for _, columns in part]
        lasts = [int(columns["time"][-1]) for _, columns in part]
        assert firsts == sorted(firsts) and last < firsts[0] and max(lasts) - firsts[0] < 5 * MS
        last = max(lasts)
        for key, columns in part:
            sent.setdefault(key, []).extend(columns["position"].tolist())
    assert sent == {key: [i * STRIDE for i in range(n)] for key, n in RINGS.items()}


class Taken:
    """An output that remembers."""

    live_sent = live_capped = 0

    def __init__(self) -> None:
        self.parts: list[tuple[int, list[int]]] = []

    async def learn(self, window: Window) -> None:
        pass

    async def send(self, part: Part, due: int, *, behind: bool) -> None:
        self.parts.append((due, [time for _, columns in part for time in columns["time"].tolist()]))


async def test_a_replay_sends_each_stamp_when_it_is_due() -> None:
    clock, out = Clock(), Taken()
    one = Replay("s", Schedule(1.0, clock=clock, sleep=clock.sleep))
    await one.run(threaded([window_of(0, 1, 700), window_of(701, 705.5)]), out)
    assert out.parts == [
        (round(due * MS), [CLOCK + round(ms * MS) for ms in stamps])
        for due, stamps in ((0, [0, 1]), (700, [700]), (701, [701]), (705.5, [705.5]))
    ]
    record = one.record(done=True)
    assert (record.verdicts, record.first, record.last) == (5, CLOCK, CLOCK + round(705.5 * MS))
    assert (record.replay, record.speed, record.late, record.done) == ("s", 1.0, 0, True)
    assert one.summary().startswith(
        "replayed 5 verdicts of 2026-09-21T14:13:20.000000000Z to 2026-09-21T14:13:20.705500000Z in "
    )


async def test_ahead_hands_on_every_window_and_the_error() -> None:
    async def broken() -> Any:
        yield window_of(1)
        yield window_of(2)
        raise BadInput("the end", "of it")

    seen = []
    with pytest.raises(BadInput, match="the end"):
        async for window in ahead(broken()):
            seen.append(len(window))
    assert seen == [1, 1]


async def test_lines_are_those_of_observe(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed by `replay -o` as `observe` prints what is recorded: every column, in the same order."""
    monkeypatch.setattr(windows, "TARGET", 700)
    monkeypatch.setattr(run, "TOGETHER", 0.01)
    history = History.on_store(store)

    class Kept(Printer):
        def write(self, rows: Any) -> None:
            shown.extend(rows)

    shown: list[dict[str, Any]] = []
    await Replay("s", Schedule(MAX)).run(threaded(Reader(lambda: nullcontext(history)).windows()), Shown(Kept("json")))
    expected = list(recorded(history, Filters(), None))
    assert [tuple(row) for row in shown[:1]] == [COLUMNS]
    assert shown == expected
    assert {row["decision"] for row in shown} == {"allow", "deny"}
    assert [(row["rule"], row["proto"], row["src_identity"], row["src"] is None) for row in shown[-2:]] == [
        ("rule:99", "200", "identity:77", False), ("malformed", "tcp", "identity:16", True),
    ]  # fmt: skip
