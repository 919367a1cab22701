"""Verdicts for people and small programs: one msgpack map each on `ztlens.live.v1.…`, core NATS, best effort.

NATS does not tell a publisher who listens, so each verdict costs its ~15 µs of Python whether wanted or not: a
token bucket of `cap` a second bounds it, and rows over the cap are dropped as arrays, before any is decoded.
A quarter of the cap is kept for denials, so that a flood of allowed traffic does not hide an intruder. While the
drain is behind, the cap is a quarter and nothing is saved up for a burst: the ring comes first.
"""

import asyncio
import time
from functools import lru_cache

import msgspec
import numpy as np

from collector.bus import Bus
from schemas import subjects
from schemas.codes import Decision
from schemas.present import Names, present

SLICE = 250  # verdicts between two turns of the loop: ~4 ms
DENIAL_SHARE = 0.25
BEHIND_SHARE = 0.25
BEHIND_BURST = 0.1  # seconds
STALL_SECONDS = 0.5
_encode = msgspec.msgpack.Encoder().encode


@lru_cache(maxsize=16384)
def _head(node: str, decision: str, source: str, destination: str, proto: str) -> str:
    return subjects.live(node, decision, source, destination, proto, 0)[:-1]


class Cap:
    """So many verdicts a second, denials before others; the same for a replay's maps."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens, self._filled = float(rate), time.monotonic()

    def _refill(self, rate: float, most: float) -> None:
        now = time.monotonic()
        self._tokens = min(most, self._tokens + (now - self._filled) * rate)
        self._filled = now

    def choose(self, decisions: np.ndarray, *, behind: bool = False) -> np.ndarray:
        """Indices of the verdicts there is room for now, ascending: denials first, then the earliest."""
        rate = self._rate * BEHIND_SHARE if behind else float(self._rate)
        most = rate * BEHIND_BURST if behind else rate
        self._refill(rate, most)
        denied = decisions == Decision.DENY
        denials = np.flatnonzero(denied)[: int(self._tokens)]
        room = max(0, int(self._tokens - len(denials) - most * DENIAL_SHARE))
        others = np.flatnonzero(~denied)[:room]
        chosen = np.sort(np.concatenate((denials, others)))
        self._tokens -= len(chosen)
        return chosen


class Live:
    """Counts what it is offered: offered = sent + capped + failed."""

    def __init__(self, bus: Bus, node: str, cap: int, names: Names) -> None:
        self.sent = self.capped = self.failed = 0
        self._bus, self._node, self._cap, self._names = bus, node, Cap(cap), names

    async def offer(self, rows: np.ndarray, *, clock: int, ring: str, behind: bool = False) -> None:
        """Publish what the cap allows of `rows` (schemas.verdict.DTYPE); never raises for NATS' sake."""
        client = self._bus.client
        if client is None:
            self.failed += len(rows)
            return
        chosen = self._cap.choose(rows["decision"], behind=behind)
        self.capped += len(rows) - len(chosen)
        for at in range(0, len(chosen), SLICE):
            batch = present(rows[chosen[at : at + SLICE]], self._names, clock, node=self._node, ring=ring)
            before = self.sent
            try:
                async with asyncio.timeout(STALL_SECONDS):  # a server that reads no more must not stop the drain
                    for item in batch:
                        head = _head(
                            self._node, item["decision"], item["src_identity"], item["dst_identity"], item["proto"]
                        )
                        await client.publish(f"{head}{item['dport']}", _encode(item))
                        self.sent += 1
            except Exception:  # of NATS: any, see Bus.deliver
                self.failed += len(chosen) - at - (self.sent - before)
                return
            await asyncio.sleep(0)
