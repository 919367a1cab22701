"""Where a replay goes: a session's subjects on NATS, or lines on stdout."""

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
from ztlens.replay.windows import Names, RingKey, Window
from ztlens.verdicts import COLUMNS, Printer

if TYPE_CHECKING:
    from nats.aio.client import Client

FORMS = ("batches", "live")
MESSAGE_ROWS = 4_000
"""Verdicts a message at most, as the collector's."""
SLICE = 250
"""Maps between two turns of the loop: ~4 ms."""
_encode = msgspec.msgpack.Encoder().encode


class Output(Protocol):
    """Takes windows in parts, each when it is due."""

    live_sent: int
    live_capped: int

    async def learn(self, window: Window) -> None:
        """Before the first part of a window: names its rows need."""
        ...

    async def send(self, part: Window, due: int, *, behind: bool) -> None:
        """`due` in ns since the replay began; `behind`: it is past that already."""
        ...


@lru_cache(maxsize=16384)
def _head(session: str, *tokens: str) -> str:
    """All of a live subject but the port."""
    return subjects.replay(session, subjects.live(*tokens, 0))[:-1]  # type: ignore[call-arg, arg-type]


def _present(part: Window, names: dict[RingKey, Names], **constant: Any) -> list[dict[str, Any]]:
    """Verdicts as maps, in order; with `position`, and `constant` in each."""
    out = []
    for (node, ring), of_ring in part.by_ring():
        known: AnyNames = names.get((node, ring)) or NoNames()
        maps = present(of_ring.rows(), known, 0, node=node, ring=ring, **constant)
        out += [
            verdict | {"position": position}
            for verdict, position in zip(maps, of_ring.columns["position"].tolist(), strict=True)
        ]
    return sorted(out, key=_place) if len(part.rings) > 1 else out


_place = itemgetter("time_ns", "node", "ring", "position")


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

    async def send(self, part: Window, due: int, *, behind: bool) -> None:
        """Batches in the order of their first stamps, then maps: these give way when time is short."""
        if "batches" in self._forms:
            cuts = [
                (int(of_ring.time[at]), key, of_ring.part(at, at + MESSAGE_ROWS))
                for key, of_ring in part.by_ring()
                for at in range(0, len(of_ring), MESSAGE_ROWS)
            ]
            for _, (node, ring), cut in sorted(cuts, key=itemgetter(0, 1)):
                start = self._sent.get((node, ring), 0)
                data = envelope.encode_replayed(
                    cut.columns, node=node, ring=ring, start=start * STRIDE, replay=self._session, due=due
                )
                await self._client.publish(subjects.replay(self._session, subjects.verdicts(node)), data)
                self._sent[node, ring] = start + len(cut)
        if self._cap is not None:
            chosen = self._cap.choose(part.columns["decision"], behind=behind)
            self.live_capped += len(part) - len(chosen)
            for at in range(0, len(chosen), SLICE):
                await self._live(part.taken(chosen[at : at + SLICE]))

    async def _live(self, part: Window) -> None:
        for verdict in _present(part, self._names, replay=self._session):
            head = _head(
                self._session, verdict["node"], verdict["decision"], verdict["src_identity"], verdict["dst_identity"],
                verdict["proto"],
            )  # fmt: skip
            await self._client.publish(f"{head}{verdict['dport']}", _encode(verdict))
        self.live_sent += len(part)

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

    async def send(self, part: Window, due: int, *, behind: bool) -> None:
        """Print."""
        for at in range(0, len(part), MESSAGE_ROWS):
            maps = _present(part.part(at, at + MESSAGE_ROWS), self._names)
            self._printer.write(
                {name: verdict[name] for name in COLUMNS} | {"time": verdict["time_ns"]} for verdict in maps
            )
