"""Policy and loss records on their way to the stream RECORDS.

A policy record waits, in order, until JetStream has it. Loss records are cumulative, so only the newest waits:
a newer one says all that the older one did.
"""

import asyncio
import logging
from collections import deque

from msgspec.structs import replace

from collector.bus import Bus, TooLarge
from schemas import messages, subjects
from schemas.messages import LossRecord, PolicyRecord

log = logging.getLogger("ztlens.collector")


def _slim(record: PolicyRecord | LossRecord) -> PolicyRecord | LossRecord:
    """Without the texts: history keeps the names and the hash of a policy too large for one message."""
    if isinstance(record, LossRecord):
        return record
    return replace(
        record,
        yaml="",
        rules=[replace(rule, text="") for rule in record.rules],
        identities=[replace(identity, addresses=[]) for identity in record.identities],
    )


class Records:
    """The queue and its publisher; `run` is the task."""

    def __init__(self, bus: Bus, node: str) -> None:
        self.published = 0
        self.refused = 0  # over the server's maximum payload
        self._bus, self._node = bus, node
        self._policy: deque[PolicyRecord] = deque()
        self._loss: dict[str, LossRecord] = {}  # by ring
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def waiting(self) -> int:
        return len(self._policy) + len(self._loss)

    def put(self, record: PolicyRecord | LossRecord) -> None:
        """Queue a record; returns at once."""
        if isinstance(record, PolicyRecord):
            self._policy.append(record)
        else:
            self._loss[record.ring] = record
        self._empty.clear()
        self._more.set()

    async def run(self) -> None:
        """Publish for ever."""
        while True:
            if self._policy:
                policy = self._policy[0]
                name = f"{policy.ring}:{policy.kind}:{policy.revision}:{policy.time}"
                await self._deliver(subjects.policy(self._node), policy, name)
                self._policy.popleft()
            elif self._loss:
                ring, loss = next(iter(self._loss.items()))
                await self._deliver(subjects.loss(self._node), loss, f"{ring}:loss:{loss.time}")
                if self._loss.get(ring) is loss:
                    del self._loss[ring]
            else:
                self._empty.set()
                self._more.clear()
                await self._more.wait()

    async def _deliver(self, subject: str, record: PolicyRecord | LossRecord, name: str) -> None:
        for form in (record, _slim(record)):
            try:
                await self._bus.deliver(subject, messages.encode(form), name)
                self.published += 1
                return
            except TooLarge:
                log.error("%s exceeds the NATS server's max_payload; raise max_payload to have it whole", name)
        self.refused += 1

    async def flush(self, seconds: float) -> bool:
        """Wait until nothing waits; False when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
