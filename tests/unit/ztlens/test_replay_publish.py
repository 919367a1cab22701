"""What a replay publishes: cut, ordered, marked, capped."""

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from collector import live as live_module
from schemas import envelope, messages, subjects
from schemas.codes import Decision
from schemas.messages import ReplayRecord
from schemas.verdict import DTYPE, STRIDE
from tests.support import batches
from tests.support.batches import CLOCK
from ztlens.replay import publish
from ztlens.replay.publish import Publisher
from ztlens.replay.windows import Window

KEYS = {0: ("n1", "r1"), 1: ("n.2", "r2")}


class Client:
    """Takes messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    async def publish(self, subject: str, payload: bytes) -> None:
        self.sent.append((subject, payload))

    def of_kind(self, kind: str) -> list[tuple[str, bytes]]:
        return [(subject, data) for subject, data in self.sent if subjects.kind(subject) == kind]


def window(ring: list[int], **fields: Any) -> Window:
    """Verdicts a microsecond apart, of these rings; positions that are not neighbours."""
    n = len(ring)
    rows = np.repeat(batches.verdict(), n)
    rows["time"] = CLOCK + np.arange(n) * 1000
    for name, value in fields.items():
        rows[name] = value
    columns = {name: np.ascontiguousarray(rows[name]) for name in DTYPE.names or ()}
    columns["position"] = np.arange(n, dtype="u8") * np.uint64(7 * STRIDE)
    policies = [batches.policy_record(node=node, ring=name) for node, name in KEYS.values()]
    return Window(columns, np.array(ring, "u4"), {i: KEYS[i] for i in set(ring)}, policies)


async def sent(
    given: Window, forms: tuple[str, ...], cap: int = 1000, *, behind: bool = False
) -> tuple[Client, Publisher]:
    """All of a window as one part, due at 5."""
    client = Client()
    publisher = Publisher(client, "a.b", "gw", forms, cap)  # type: ignore[arg-type]
    await publisher.learn(given)
    for part in given.parts(None):
        await publisher.send(part, 5, behind=behind)
    return client, publisher


async def test_batches_are_cut_and_ordered_by_their_first_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MESSAGE_ROWS", 2)
    client, publisher = await sent(window([0, 1, 1, 0, 1, 0, 0]), ("batches",))
    got = [envelope.decode(data) for _, data in client.of_kind("verdicts")]
    assert [subject for subject, _ in client.of_kind("verdicts")] == [
        f"ztlens.replay.v1.a=2eb.verdicts.{node}" for node in ("n1", "n=2e2", "n=2e2", "n1")
    ]
    step = 7 * STRIDE
    assert [(b.node, b.start // STRIDE, b.end // STRIDE, b.positions().tolist()) for b in got] == [
        ("n1", 0, 2, [0, 3 * step]),
        ("n.2", 0, 2, [step, 2 * step]),
        ("n.2", 2, 3, [4 * step]),
        ("n1", 2, 4, [5 * step, 6 * step]),
    ]
    assert {(b.replay, b.due, b.clock, b.rev) for b in got} == {("a.b", 5, 0, 1)}
    assert [t - CLOCK for b in got for t in b.columns()["time"].tolist()] == [0, 3000, 1000, 2000, 4000, 5000, 6000]
    assert not client.of_kind("live") and publisher.live_sent == publisher.live_capped == 0


async def test_names_are_told_once() -> None:
    given = window([0, 1])
    client, publisher = await sent(given, ("batches",))
    await publisher.learn(given)
    told = [(subject, msgspec.msgpack.decode(data)) for subject, data in client.of_kind("policy")]
    assert [(subject, record["ring"], record["replay"]) for subject, record in told] == [
        ("ztlens.replay.v1.a=2eb.policy.n1", "r1", "a.b"), ("ztlens.replay.v1.a=2eb.policy.n=2e2", "r2", "a.b"),
    ]  # fmt: skip
    record = messages.decode(client.of_kind("policy")[0][1], messages.PolicyRecord)
    assert record == given.policies[0]


async def test_maps_come_in_order_with_names() -> None:
    client, publisher = await sent(window([0, 1, 1, 0], decision=[1, 2, 1, 1], dport=[1, 2, 3, 4]), ("live",))
    assert [subject for subject, _ in client.of_kind("live")] == [
        "ztlens.replay.v1.a=2eb.live.n1.allow.frontend.database.tcp.1",
        "ztlens.replay.v1.a=2eb.live.n=2e2.deny.frontend.database.tcp.2",
        "ztlens.replay.v1.a=2eb.live.n=2e2.allow.frontend.database.tcp.3",
        "ztlens.replay.v1.a=2eb.live.n1.allow.frontend.database.tcp.4",
    ]
    first = msgspec.msgpack.decode(client.of_kind("live")[3][1])
    assert {k: first[k] for k in ("replay", "node", "ring", "position", "rule", "time_ns")} == {
        "replay": "a.b", "node": "n1", "ring": "r1", "position": 21 * STRIDE, "rule": "web-to-db",
        "time_ns": CLOCK + 3000,
    }  # fmt: skip
    assert not client.of_kind("verdicts") and publisher.live_sent == 4


async def test_the_cap_holds_back_maps_and_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "time", SimpleNamespace(monotonic=lambda: 0.0))
    given = window([0] * 1000, decision=[Decision.DENY] * 10 + [Decision.ALLOW] * 990)
    # 10 denials and 65 others: a quarter of 100 is kept for denials. Late: a tenth of a second of a quarter of 100.
    for behind, expected in ((False, 75), (True, 2)):
        client, publisher = await sent(given, ("batches", "live"), 100, behind=behind)
        assert (publisher.live_sent, publisher.live_capped) == (expected, 1000 - expected)
        assert len(client.of_kind("live")) == expected
        assert sum(envelope.decode(data).n for _, data in client.of_kind("verdicts")) == 1000
    client, publisher = await sent(given, ("batches", "live"), 0)
    assert (publisher.live_sent, publisher.live_capped, client.of_kind("live")) == (0, 0, [])


async def test_progress_has_a_subject_of_its_own() -> None:
    client, publisher = await sent(window([0]), ("batches",))
    record = ReplayRecord(
        v=1, replay="a.b", speed=1.0, verdicts=1, first=1, last=2, live_sent=0, live_capped=0, late=0
    )  # fmt: skip
    await publisher.progress(record)
    subject, data = client.sent[-1]
    assert subject == "ztlens.replay.v1.a=2eb.progress.gw"
    assert messages.decode(data, ReplayRecord) == record
    assert subjects.replay_whole("a.b") == "ztlens.replay.v1.a=2eb.*.*"
