"""The connection to NATS: tried for ever, and `deliver`, which returns only when JetStream has the message.

nats-py's own reconnecting is off: it buffers what it could not send and keeps a client that met an
authorization error closed for ever. Here every loss of the connection makes a new client. It is imported by whoever
needs it first, which is after the programs are attached: it takes half as long to import as all the rest of a start.
"""

import asyncio
import contextlib
import importlib
import logging
import random
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from schemas import streams, subjects
from schemas.streams import StreamSetupError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

log = logging.getLogger("ztlens.collector")

ACK_SECONDS = 2.0
BACK_OFF = (0.05, 2.0)  # first and longest pause between attempts, seconds
LOOK = 1.0  # seconds between looks at the client


@cache
def recoverable() -> tuple[type[Exception], ...]:
    """Whatever NATS, the network or a half-started server may throw; ValueError is an answer that is no JSON."""
    import nats.js.errors  # noqa: PLC0415

    return (nats.errors.Error, nats.js.errors.Error, StreamSetupError, OSError, asyncio.TimeoutError, ValueError)


class TooLarge(Exception):
    """The message exceeds the server's maximum; nothing was sent."""


def stop_if_cancelled() -> None:
    """In Python 3.11 what `wait_for` waited for overtakes a cancellation that comes at the same moment: the task would
    never hear of it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Bus:
    """One client at a time. `run` is its task; everything else may be called from any task of the loop."""

    def __init__(self, url: str, *, name: str, max_bytes: int | None = None, max_age: float | None = None) -> None:
        self.url = url
        self.retried = 0  # attempts to deliver after the first
        self.connects = 0
        self.last_error = ""
        self._name = name
        self._overrides = {"max_bytes": max_bytes, "max_age": None if max_age is None else int(max_age * 1e9)}
        self._client: Client | None = None
        self._js: JetStreamContext | None = None
        self._ready = asyncio.Event()
        self.tried = asyncio.Event()
        """The first attempt to connect is over, whichever way: before it, NATS is not known to be away."""
        self._said = ""

    @property
    def where(self) -> str:
        """The URL without credentials."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or 4222}"

    @property
    def connected(self) -> bool:
        """A client is connected and the streams exist."""
        return self._ready.is_set() and self._client is not None and self._client.is_connected

    @property
    def client(self) -> "Client | None":
        """The connected client, for core NATS; None when away."""
        return self._client if self.connected else None

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the server at the other end; None when away or when nats-py does not tell."""
        transport = getattr(self._client, "_transport", None) if self.connected else None
        writer = getattr(transport, "_io_writer", None)
        name = writer.get_extra_info("peername") if writer is not None else None
        return (str(name[0]), int(name[1])) if name else None

    @property
    def max_payload(self) -> int:
        """Bytes a message may have; the server's default until one has answered."""
        return self._client.max_payload if self._client is not None and self._client.max_payload else 1 << 20

    async def run(self) -> None:
        """Connect, make the streams, wait until the connection ends, begin again. Ends only by cancellation."""
        attempt = 0
        await asyncio.to_thread(importlib.import_module, "nats")  # the ring is drained meanwhile
        try:
            while True:
                closed = asyncio.Event()
                try:
                    self._client = await self._connect(closed)
                    self._js = self._client.jetstream()
                    await self.ensure_streams()
                except recoverable() as error:
                    stop_if_cancelled()
                    self._say(f"NATS at {self.where}: {describe(error)}; trying on, events wait in the ring")
                    await self._drop()
                    self.tried.set()
                    await pause(attempt)
                    attempt += 1
                    continue
                stop_if_cancelled()
                attempt = 0
                self.connects += 1
                self._said = self.last_error = ""
                log.info("connected to NATS at %s", self.where)
                self._ready.set()
                self.tried.set()
                await self._ended(closed)
                self._ready.clear()
                self._say(f"NATS at {self.where} went away; trying on, events wait in the ring")
                await self._drop()
        finally:
            self._ready.clear()
            await self._drop()

    async def _ended(self, closed: asyncio.Event) -> None:
        """Until the client is closed. nats-py does not say so when the connection is reset while it closes it."""
        while self._client is not None and self._client.is_connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await closed.wait()

    async def _connect(self, closed: asyncio.Event) -> "Client":
        import nats  # noqa: PLC0415

        async def on_closed() -> None:
            closed.set()

        errors: list[Exception] = []

        async def on_error(error: Exception) -> None:
            errors.append(error)
            del errors[:-1]
            log.debug("NATS: %s", describe(error))

        connecting = nats.connect(
            self.url, name=self._name, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0.1,
            connect_timeout=2, ping_interval=10, max_outstanding_pings=2, closed_cb=on_closed, error_cb=on_error,
        )  # fmt: skip
        try:
            return await asyncio.wait_for(connecting, timeout=10)
        except nats.errors.NoServersError as error:  # says nothing; the reason went to the callback
            raise (errors[-1] if errors else error) from error

    async def ensure_streams(self) -> None:
        """Make VERDICTS and RECORDS where they are missing. Raises one of `recoverable`."""
        client = self._client
        if client is None:
            raise OSError("not connected")
        for name, overrides in ((subjects.VERDICTS_STREAM, self._overrides), (subjects.RECORDS_STREAM, {})):
            done = await streams.ensure(client, name, **overrides)
            if done != "present":
                log.info("stream %s %s", name, done)

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(*recoverable()):
                await asyncio.wait_for(client.close(), timeout=2)

    def _say(self, line: str) -> None:
        """Once a state, not once an attempt."""
        self.last_error = line
        if line != self._said:
            self._said = line
            log.warning(line)

    async def deliver(self, subject: str, payload: bytes, message_id: str) -> None:
        """Publish until JetStream has acknowledged, whatever happens; ends early only by cancellation or TooLarge.

        Delivered at least once: an attempt whose acknowledgement was lost may be stored, too. `message_id` lets
        the server drop the second within its window; readers deduplicate by content beyond it.
        """
        await self._ready.wait()  # `run` has imported nats-py by then: two threads that do at once find half of it
        import nats.js.errors  # noqa: PLC0415

        attempt = 0
        while True:
            await self._ready.wait()
            client, js = self._client, self._js
            try:
                if client is None or js is None or not client.is_connected:
                    raise ConnectionError("connection lost")
                if len(payload) > client.max_payload - 512:  # headers count, too
                    raise TooLarge
                async with asyncio.timeout(ACK_SECONDS + 1):  # nats-py's own does not cover a full send queue
                    await js.publish(subject, payload, timeout=ACK_SECONDS, headers={"Nats-Msg-Id": message_id})
                return
            except TooLarge:
                raise
            except nats.errors.MaxPayloadError as error:
                raise TooLarge from error
            except Exception as error:  # also AttributeError and AssertionError: nats-py closed in mid-call
                self.retried += 1
                self.last_error = describe(error)
                log.debug("publish %s: %s", message_id, self.last_error)
                if isinstance(error, nats.js.errors.APIError):
                    self._say(f"NATS refuses {subject}: {describe(error)}; trying on")
                attempt = attempt + 1 if self.connected else 0  # away: `_ready` is what is waited for
                await pause(attempt)
                if isinstance(error, nats.js.errors.NoStreamResponseError):
                    with contextlib.suppress(*recoverable()):
                        await self.ensure_streams()


def describe(error: BaseException) -> str:
    """An error in one line, never empty."""
    text = " ".join(str(error).split())
    return text.removeprefix("nats: ") or type(error).__name__


async def pause(attempt: int) -> None:
    """Back off: doubling from BACK_OFF[0] to BACK_OFF[1], with jitter so that batches do not return in step."""
    first, most = BACK_OFF
    await asyncio.sleep(min(most, first * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0))
