"""A stand-in for collector.bus.Bus that acknowledges when the test says so."""

import asyncio

from collector.bus import TooLarge


class FakeBus:
    """Messages wait in `held` (id → future) until `acknowledge`; with `open` they are acknowledged at once."""

    def __init__(self, *, open: bool = True, max_payload: int = 1 << 20) -> None:
        self.open = open
        self.max_payload = max_payload
        self.delivered: list[tuple[str, bytes, str]] = []  # subject, payload, id: acknowledged
        self.held: dict[str, asyncio.Future[None]] = {}
        self.reject_above = max_payload
        self.client = None
        self.connected = open
        self.retried = 0

    async def deliver(self, subject: str, payload: bytes, message_id: str) -> None:
        if len(payload) > self.reject_above:
            raise TooLarge
        if not self.open:
            self.held[message_id] = asyncio.get_running_loop().create_future()
            await self.held[message_id]
        self.delivered.append((subject, payload, message_id))

    def acknowledge(self, message_id: str) -> None:
        self.held.pop(message_id).set_result(None)
