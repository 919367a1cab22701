"""Where a replay goes: a session's subjects on NATS, or lines on stdout."""

import heapq
import itertools
from collections.abc import Iterator
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from collector.live import Cap
from schemas import envelope, messages, subjects
from schemas.messages import ReplayRecord
from schemas.present import Names as AnyNames
from schemas.present import NoNames, present
from schemas.verdict import STRIDE
from ztlens.replay.windows import Columns, Names, Part, RingKey, Window, cut, rows, taken
from ztlens.verdicts import COLUMNS, Printer

if TYPE_CHECKING:
    from nats.aio.client import Client

FORMS = ("batches", "live")
MESSAGE_ROWS = 4_000
"""Verdicts a message at most, as the collector's."""
SLICE = 250
"""Maps made at once: ~4 ms."""
_encode = msgspec.msgpack.Encoder().encode


class Output(Protocol):
    """Takes windows in parts, each when it is due."""

    live_sent: int
    live_capped: int

    async def learn(self, window: Window) -> None:
        """Before the first part of a window: names its rows need."""
        ...

    async def send(self, part: Part, due: int, *, behind: bool) -> None:
        """`due` in ns since the replay began; `behind`: it is late."""
        ...


@lru_cache(maxsize=16384)
def _head(session: str, *tokens: str) -> str:
    """All of a live subject but the port."""
    return subjects.replay(session, subjects.live(*tokens, 0))[:-1]  # type: ignore[call-arg, arg-type]


_place = itemgetter("time_ns", "node", "ring", "position")


def _maps(part: Part, names: dict[RingKey, Names], **constant: Any) -> Iterator[dict[str, Any]]:
    """Verdicts as maps, by time, node, ring, position; with `position`, and `constant` in each."""
    return heapq.merge(*(_of_ring(key, columns, names.get(key), constant) for key, columns in part), key=_place)


def _of_ring(key: RingKey, columns: Columns, names: Names | None, constant: dict[str, Any]) -> Iterator[dict[str, Any]]:
    node, ring = key
    known: AnyNames = names or NoNames()
    for at in range(0, len(columns["position"]), SLICE):
        some = cut(columns, at, at + SLICE)
        for verdict, position in zip(
            present(rows(some), known, 0, node=node, ring=ring, **constant), some["position"].tolist(), strict=True
        ):
            verdict["position"] = position
            yield verdict


class Publisher:
    """Onto the subjects of `session`: batches with everything, maps as many a second as `cap` allows."""

    def __init__(self, client: "Client", session: str, node: str, forms: tuple[str, ...], cap: int) -> None:
        self.live_sent = self.live_capped = 0
        self._client = client
        self._session = session
        self._progress = subjects.replay_progress(session, node)
        self._forms = forms
        self._cap = Cap(cap) if "live" in forms and cap else None
        self._names: dict[RingKey, Names] = {}
        self._told: set[tuple[str, str, int]] = set()
        self._sent: dict[RingKey, int] = {}  # verdicts of each ring

    async def learn(self, window: Window) -> None:
        """Policy records are published once, before the first verdict they name."""
        self._names = Names.by_ring(window.policies)
        for record in window.policies:
            key = record.node, record.ring, record.revision
            if key not in self._told:
                self._told.add(key)
                subject = subjects.replay(self._session, subjects.policy(record.node))
                await self._client.publish(subject, messages.encode_replayed(record, self._session))

    async def send(self, part: Part, due: int, *, behind: bool) -> None:
        """Batches in the order of their first stamps, then maps: these give way when time is short."""
        if "batches" in self._forms:
            cuts = [
                (columns["time"][at], key, cut(columns, at, at + MESSAGE_ROWS))
                for key, columns in part
                for at in range(0, len(columns["time"]), MESSAGE_ROWS)
            ]
            for _, (node, ring), some in sorted(cuts, key=itemgetter(0, 1)):
                start = self._sent.get((node, ring), 0)
                data = envelope.encode_replayed(
                    some, node=node, ring=ring, start=start * STRIDE, replay=self._session, due=due
                )
                await self._client.publish(subjects.replay(self._session, subjects.verdicts(node)), data)
                self._sent[node, ring] = start + len(some["position"])
        if self._cap is not None:
            await self._live(part, self._cap, behind=behind)

    async def _live(self, part: Part, cap: Cap, *, behind: bool) -> None:
        chosen = []
        for key, columns in part:
            index = cap.choose(columns["decision"], behind=behind)
            self.live_capped += len(columns["decision"]) - len(index)
            if len(index):
                chosen.append((key, taken(columns, index)))
        for verdict in _maps(chosen, self._names, replay=self._session):
            head = _head(
                self._session, verdict["node"], verdict["decision"], verdict["src_identity"], verdict["dst_identity"],
                verdict["proto"],
            )  # fmt: skip
            await self._client.publish(f"{head}{verdict['dport']}", _encode(verdict))
            self.live_sent += 1

    async def progress(self, record: ReplayRecord) -> None:
        """How far it is; behind everything sent before."""
        await self._client.publish(self._progress, messages.encode(record))
        if record.done:
            await self._client.flush()


class Shown:
    """Lines on stdout, as `observe` prints them."""

    live_sent = live_capped = 0

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._names: dict[RingKey, Names] = {}

    async def learn(self, window: Window) -> None:
        """Names for the lines to come."""
        self._names = Names.by_ring(window.policies)

    async def send(self, part: Part, due: int, *, behind: bool) -> None:
        """Print."""
        maps = _maps(part, self._names)
        while some := list(itertools.islice(maps, SLICE)):
            self._printer.write(
                {name: verdict[name] for name in COLUMNS} | {"time": verdict["time_ns"]} for verdict in some
            )
