"""Live subjects: the cap, who goes first, and what a subscriber gets."""

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from collector import live as live_module
from collector.live import Live
from schemas.codes import Decision
from schemas.present import NoNames
from tests.support.fake_datapath import make_rows


class Client:
    """Takes messages, up to `limit`."""

    def __init__(self, limit: int = 10**9) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.limit = limit

    async def publish(self, subject: str, payload: bytes) -> None:
        if len(self.sent) >= self.limit:
            raise AttributeError("'NoneType' object has no attribute 'write'")  # nats-py, closed in mid-call
        self.sent.append((subject, msgspec.msgpack.decode(payload)))


class BusOf:
    def __init__(self, client: Client | None) -> None:
        self.client = client


def make(client: Client | None, cap: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Live, list[float]]:
    now = [1000.0]
    monkeypatch.setattr(live_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return Live(BusOf(client), "n.1", cap, NoNames()), now  # type: ignore[arg-type]


async def test_each_verdict_is_a_map_on_its_own_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    live, _ = make(client, 100, monkeypatch)
    rows = make_rows(2, src_identity=[0, 1])
    await live.offer(rows, clock=5, ring="r")
    assert [s for s, _ in client.sent] == [
        "ztlens.live.v1.n=2e1.allow.world.world.tcp.5432",
        "ztlens.live.v1.n=2e1.allow.host.world.tcp.5432",
    ]
    first = client.sent[0][1]
    assert (first["node"], first["ring"], first["src"], first["dport"]) == ("n.1", "r", "10.0.0.1", 5432)
    assert first["time_ns"] == int(rows["time"][0]) + 5
    assert (live.sent, live.capped, live.failed) == (2, 0, 0)


async def test_the_cap_is_by_the_second_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    live, now = make(client, 1000, monkeypatch)
    await live.offer(make_rows(4000), clock=0, ring="r")
    assert (live.sent, live.capped) == (750, 3250)  # a quarter is kept for denials
    now[0] += 0.1
    await live.offer(make_rows(4000), clock=0, ring="r")
    assert live.sent == 850
    assert live.sent + live.capped == 8000


async def test_behind_there_is_no_burst_and_a_quarter_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    live, now = make(Client(), 3200, monkeypatch)
    for _ in range(10):
        await live.offer(make_rows(1000, decision=Decision.DENY), clock=0, ring="r", behind=True)
        now[0] += 0.0625
    assert live.sent == 80 + 9 * 50
    assert live.sent + live.capped == 10_000


async def test_denials_go_first_and_order_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    live, _ = make(client, 100, monkeypatch)
    decision = np.full(1000, Decision.ALLOW)
    decision[500:550] = Decision.DENY
    await live.offer(make_rows(1000, decision=decision), clock=0, ring="r")
    flows = [m["flow_id"] for _, m in client.sent]
    assert flows == [*range(1, 26), *range(501, 551)]  # 50 denials, and 100 - 50 - 25 kept = 25 others
    await live.offer(make_rows(1000, decision=Decision.DENY), clock=0, ring="r")
    assert live.sent == 100
    assert live.sent + live.capped == 2000


@pytest.mark.parametrize(("client", "sent"), [(None, 0), (Client(limit=3), 3)])
async def test_what_nats_does_not_take_is_counted(
    client: Client | None, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, _ = make(client, 100, monkeypatch)
    await live.offer(make_rows(10), clock=0, ring="r")
    assert (live.sent, live.capped, live.failed) == (sent, 0, 10 - sent)
