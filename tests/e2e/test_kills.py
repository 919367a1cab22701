"""kill -9 of every part while packets flow: at the end the books balance, nothing is missing or there twice."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.verdict import STRIDE
from sink.errors import SinkError
from tests.support.installation import Installation, Process
from tests.support.kernel import quiet_veth, udp_frame
from tests.support.nats import NatsServer
from tests.support.netns import Lab, wait_for
from tests.support.programs import statistics
from tests.support.proxy import HeldReplies
from tests.support.trafficgen import TrafficGen
from tests.support.until import PATIENCE

KILLS = 10
CHUNK, FLOWS, RANGE = 16_384, 300, 1_500
"""Frames at a time; flows they belong to; of how many flows in turn: fewer than may be half-open."""


class Load:
    """Frames in chunks, of ever other flows, until it is stopped."""

    def __init__(self, netns: str) -> None:
        self._source = TrafficGen(netns, "veth1")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.sent = 0

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(0.2):
            self._source.send(CHUNK, flows=FLOWS, first=turn * FLOWS % RANGE)
            turn += 1

    def stop(self) -> int:
        """How many frames were sent in all."""
        self._stop.set()
        self._thread.join()
        self.sent = self.sent or self._source.sent
        self._source.close()
        return self.sent


@dataclass
class Victim:
    """A part that is killed whenever it has shown that it works, KILLS times, in step with the others."""

    name: str
    start: Callable[[], Any]
    kill: Callable[[], None]
    works: Callable[[], bool]
    killed: int = 0

    def step(self, fewest: int) -> None:
        """Kill and restart it if it works, unless the others, one of which was killed `fewest` times, are behind."""
        if self.killed < min(fewest + 2, KILLS) and self.works():
            self.kill()
            self.killed += 1
            self.start()


def kill_all(victims: list[Victim]) -> bool:
    """One look at each; whether all are done."""
    for victim in victims:
        victim.step(min(other.killed for other in victims))
    return all(victim.killed == KILLS for victim in victims)


class Parts:
    """The three parts, started one by one as compose.yaml does, without anybody who restarts them."""

    def __init__(self, one: Installation, server: NatsServer, cache: Path) -> None:
        self.one, self.server = one, server
        self.collector: Process
        self.sink: Process
        self.adopted: list[bool] = []
        self._cache = cache
        self._acknowledged = 0

    def victims(self) -> list[Victim]:
        return [
            Victim("sink", self.start_sink, self.kill_sink, self.sink_works),
            Victim("collector", self.start_collector, self.kill_collector, self.collector_works),
            Victim("nats-server", self.start_server, self.server.kill, self.server_works),
        ]

    def start_sink(self) -> None:
        self.sink = self.one.sink(wait=False)

    def kill_sink(self) -> None:
        self.sink.kill()

    def kill_collector(self) -> None:
        self.collector.kill()

    def start_collector(self) -> None:
        self.collector = self.one.collector(wait=False)

    def start_server(self) -> None:
        self.server.start()
        self._acknowledged = -1

    def _acks(self) -> int | None:
        if not self.one.answers("collector"):
            assert self.collector.alive, self.collector.said()
            return None
        status = self.one.status()
        return int(status["collector"]["acknowledged"]) if status["nats"]["connected"] else None

    def collector_works(self) -> bool:
        """Some of what this very process has read is acknowledged."""
        if not self._acks():
            return False
        self.adopted.append(self.one.status()["adopted"])
        return True

    def server_works(self) -> bool:
        """It acknowledged more since it was started, whoever asked for it."""
        acks = self._acks()
        if acks is None:
            return False
        if not 0 <= self._acknowledged <= acks:
            self._acknowledged = acks
        return acks > self._acknowledged

    def sink_works(self) -> bool:
        """It has stored rows since it was started."""
        try:
            return bool(self.one.sink_status()["counters"]["verdicts"]["stored"])
        except SinkError:
            assert self.sink.alive, self.sink.said()
            return False


def all_stored(one: Installation) -> bool:
    if not one.answers("sink"):  # asking the file would keep a sink that starts from it
        return False
    (ring,) = one.ledger()["rings"]
    return bool(ring["final"] and ring["closed"] and ring["events"]["in_flight"] == 0)


def check(one: Installation, sent: int) -> dict[str, Any]:
    """The history of one closed ring that has judged `sent` packets; its events in the ledger."""
    ledger = one.ledger()
    (ring,) = ledger["rings"]
    packets, events = ring["packets"], ring["events"]
    assert ledger["balanced"] is True and ring["final"] is True, ledger
    assert packets["parsed"] == packets["judged"] == sent
    assert packets["flows"] + packets["untracked"] == sent
    assert events["published"] == events["stored"] == events["emitted"]
    assert events["gaps"] == [] and one.value("SELECT count(*) FROM gaps") == 0
    twice = "SELECT ring, position FROM verdicts GROUP BY ring, position HAVING count(*) > 1"
    assert one.sql(twice) == []
    (rows,) = one.sql("SELECT count(*) AS n, min(position) AS first, max(position) AS last FROM verdicts")
    assert rows == {"n": events["stored"], "first": 0, "last": (events["stored"] - 1) * STRIDE}
    assert one.value("SELECT sum(packets) FROM flows") + packets["untracked"] == sent
    return dict(events)


@pytest.fixture
def empty_cache(tmp_path: Path) -> Iterator[Path]:
    """Whatever compiles leaves a file here."""
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    yield path


@pytest.mark.timeout(1200)
def test_ten_kills_of_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    with Lab() as lab, NatsServer(tmp_path / "nats") as server:
        netns, _ = quiet_veth(lab)
        out = netns.removesuffix("in") + "out"
        settings = {"nats": server.url, "sample": 8, "batch": 500}
        with Installation(
            lab, tmp_path / "one", netns=netns, interfaces=["veth0:ingress"], timeouts={"udp": 2}, **settings
        ) as one:
            parts = Parts(one, server, empty_cache)
            parts.start_sink()
            parts.collector = one.collector()
            before = statistics(netns, "veth0")["rx_packets"]
            load = Load(out)
            monkeypatch.setenv("ZTLENS_BYTECODE_CACHE", str(empty_cache))
            victims = parts.victims()
            wait_for(lambda: kill_all(victims), "all to be killed ten times", 800)
            sent = load.stop()
            wait_for(lambda: one.answers("collector") and one.status()["nats"]["connected"], "a collector")
            parts.adopted.append(one.status()["adopted"])
            one.run("down")
            assert parts.collector.popen.wait(PATIENCE) == 0
            wait_for(lambda: all_stored(one), "all to be stored")
            assert parts.sink.end() == 0
            assert statistics(netns, "veth0")["rx_packets"] - before == sent
            events = check(one, sent)
            assert events["emitted"] > 10_000
            assert parts.adopted == [False] + [True] * KILLS
            assert list(empty_cache.iterdir()) == [], "a restart compiled, though there was a datapath to adopt"
            assert one.leftovers() == []


def test_killed_between_acknowledgement_and_position(tmp_path: Path) -> None:
    """JetStream has the events and the collector never hears of it: the next one cuts the same range anew."""
    with Lab() as lab, NatsServer(tmp_path / "nats") as server, HeldReplies(server.port) as proxy:
        netns, wire = quiet_veth(lab)
        with Installation(lab, tmp_path / "one", netns=netns, interfaces=["veth0:ingress"], nats=server.url,
                          timeouts={"udp": 3600}) as one:  # fmt: skip
            sink = one.sink()
            collector = one.collector("--nats", f"nats://127.0.0.1:{proxy.port}")

            def send(first: int, count: int) -> None:
                for port in range(first, first + count):
                    wire.send(udp_frame("10.0.0.1", port, "10.0.0.2", 53, bytes(18)))

            def stored() -> int:
                return int(one.sink_status()["counters"]["verdicts"]["stored"])

            wait_for(lambda: one.status()["nats"]["connected"], "NATS")
            send(1000, 300)
            wait_for(lambda: one.status()["collector"]["acknowledged"] == 300, "acknowledgements")
            assert one.status()["consumed"] == 300 * STRIDE
            proxy.hold()
            send(2000, 500)
            wait_for(lambda: stored() == 800, "the sink to have them")
            assert one.status()["consumed"] == 300 * STRIDE
            collector.kill()
            send(3000, 200)
            collector = one.collector()
            wait_for(lambda: one.status()["consumed"] == 1000 * STRIDE, "the ring to be released")
            wait_for(lambda: stored() == 1000, "the rest to be stored")
            assert one.sink_status()["counters"]["verdicts"]["dropped"] == {"duplicate": 500}
            one.run("down")
            assert collector.popen.wait(PATIENCE) == 0
            wait_for(lambda: all_stored(one), "all to be stored")
            assert sink.end() == 0
            check(one, 1000)
            assert one.value("SELECT count(*) FROM flows WHERE packets = 1 AND ended") == 1000
