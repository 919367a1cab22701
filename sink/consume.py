"""From JetStream to commits: an ephemeral pull consumer a stream, from the store's watermark + 1, never acknowledged.

A durable consumer beside a stored watermark loses data after a crash (redelivery order); here the watermark alone says
where to read on, and it is stored in the transaction of the rows. nats-py's `fetch` is not used: it waits for a full
batch once a request lingers; here requests are kept open ahead and each message is taken as it comes.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import APIError

from schemas import envelope, messages, streams, subjects, times
from schemas.errors import EnvelopeError
from schemas.messages import LossRecord, PolicyRecord
from sink.errors import StoreError
from sink.settings import SinkSettings
from sink.store import Batch, Commit, Store, prepare
from sink.store.records import check

log = logging.getLogger("ztlens.sink")

HEARTBEAT = 5.0
"""Seconds; with nothing heard for two and a half of these the consumer is made anew."""
EXPIRES = 30.0
AWAY = (NatsError, OSError, TimeoutError, streams.StreamSetupError)
"""What says that NATS is away for now."""
_TRUNCATED = 64 << 10
_POLICY = subjects.policy("")[:-1]
_LOSS = subjects.loss("")[:-1]


@dataclass(frozen=True)
class Item:
    """With it `stream` is read up to `sequence`: a message, or (without content) a dead letter or only a loss."""

    stream: str
    sequence: int
    content: Batch | PolicyRecord | LossRecord | None = None
    dead: bool = False
    part: bool = False  # the rest of this message follows
    missed: tuple[int, int] | None = None  # first and last sequence before it that the stream no longer had


@dataclass(frozen=True)
class StreamInfo:
    """What the server says of a stream."""

    created: str
    first: int
    last: int
    messages: int
    bytes: int
    max_bytes: int  # 0: no limit

    def lag(self, read: int) -> int:
        """Messages behind sequence `read`."""
        return max(0, self.last - read)

    def lag_ratio(self, read: int) -> float:
        """How much of what the stream may hold, in bytes, is behind sequence `read`; at 1 it drops messages unread."""
        if not self.max_bytes or not self.messages:
            return 0.0
        return min(1.0, self.lag(read) / self.messages) * self.bytes / self.max_bytes


async def stream_info(client: Client, name: str) -> StreamInfo:
    """Ask for a stream, and make it if it is missing. Raises one of AWAY."""
    for _ in range(2):
        reply = await client.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=5)
        answer = json.loads(reply.data)
        if "error" not in answer:
            state = answer["state"]
            most = max(0, answer["config"].get("max_bytes", 0))  # -1: no limit
            return StreamInfo(
                answer["created"], state["first_seq"], state["last_seq"], state["messages"], state["bytes"], most
            )
        if answer["error"].get("code") != 404:
            break
        await streams.ensure(client, name)
    raise streams.StreamSetupError(f"stream {name}: {answer['error'].get('description', answer['error'])}")


def decode(stream: str, subject: str, data: bytes) -> Batch | PolicyRecord | LossRecord:
    """The content of a message, checked so that it can be stored. Raises EnvelopeError."""
    if stream == subjects.VERDICTS_STREAM:
        batch = envelope.decode(data)
        if batch.replay:
            raise EnvelopeError(f"a batch of the replay {batch.replay} among live ones")
        return prepare(batch)
    if subject.startswith(_POLICY):
        return check(messages.decode(data, PolicyRecord))
    if subject.startswith(_LOSS):
        return check(messages.decode(data, LossRecord))
    raise EnvelopeError(f"nothing of ours has the subject {subject}")


class Reader:
    """Reads one stream into a queue, in order, from the store's watermark on. `run` ends only by cancellation."""

    def __init__(
        self,
        name: str,
        store: Store,
        settings: SinkSettings,
        queue: "Waiting",
        write: Callable[..., Awaitable[Any]],
    ) -> None:
        self.name = name
        self.position = 0  # last sequence put into the queue
        self._last: tuple[int, datetime] | None = None  # of the last message that was read: sequence, server's time
        self.dead: int = 0
        self._store = store
        self._settings = settings
        self._queue = queue
        self._write = write  # runs a function in the writer's thread
        self._committed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def again(self) -> None:
        """The server came back: consumers in its memory went with it, and nothing tells a subscription."""
        if self._reading is not None:
            self._reading.cancel()

    def committed(self) -> None:
        """The store's watermark moved."""
        self._committed.set()

    @property
    def watermark(self) -> int:
        """Last sequence that is stored."""
        stream = self._store.state.streams.get(self.name)
        return stream.sequence if stream else 0

    async def run(self, client: Client) -> None:
        """Read for ever; what interrupts it is logged in one line and tried again."""
        wait = 0.1
        quiet = False
        while True:
            try:
                await self._settle()
                inbox, consumer = await self._subscribe(client)
                if quiet:
                    log.info("stream %s: reading again", self.name)
                wait, quiet = 0.1, False
                self._reading = asyncio.create_task(self._read(client, inbox, consumer))
                await self._reading
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                continue
            except AWAY as error:
                if not quiet and not isinstance(error, _Ended):
                    log.warning("stream %s: %s; trying again", self.name, str(error) or type(error).__name__)
                    quiet = True
            except StoreError as error:
                log.error("%s (%s)", error, error.hint)
            await asyncio.sleep(wait)
            wait = min(2.0, wait * 2)

    async def _settle(self) -> None:
        """Wait until all that was read is stored: then the store's watermark says where to read on."""
        while self.watermark < self.position:
            self._committed.clear()
            await self._committed.wait()

    async def _subscribe(self, client: Client) -> tuple[Any, str]:
        """A subscription and a new consumer's name, from the watermark on; what the stream lost is queued as missed."""
        info = await stream_info(client, self.name)
        last = info.last if await self._is_there(client, info) else 0
        stream = await self._write(self._store.stream, self.name, info.created, last)
        self.position = stream.sequence
        if info.first > self.position + 1:
            await self._queue.put(Item(self.name, info.first - 1, missed=(self.position + 1, info.first - 1)))
            self.position = info.first - 1
        name = f"sink-{client._nuid.next().decode()}"
        config = {
            "name": name, "deliver_policy": "by_start_sequence", "opt_start_seq": self.position + 1,
            "ack_policy": "none", "mem_storage": True, "num_replicas": 1, "inactive_threshold": 60_000_000_000,
        }  # fmt: skip
        body = json.dumps({"stream_name": self.name, "config": config}).encode()
        reply = json.loads((await client.request(f"$JS.API.CONSUMER.CREATE.{self.name}.{name}", body, timeout=5)).data)
        if "error" in reply:
            raise streams.StreamSetupError(f"consumer: {reply['error'].get('description', reply['error'])}")
        return await client.subscribe(client.new_inbox()), name

    async def _is_there(self, client: Client, info: StreamInfo) -> bool:
        """Whether the stream still has what was read last.

        A server whose disk was full, or that lost power, may come back without its newest messages, and give their
        sequences to others before anybody looks: the stream was set back, though its last sequence does not say so.
        """
        if self._last is None or not info.first <= self._last[0] <= info.last:
            return True
        sequence, time = self._last
        asked = json.dumps({"seq": sequence}).encode()
        reply = json.loads((await client.request(f"$JS.API.STREAM.MSG.GET.{self.name}", asked, timeout=5)).data)
        if "error" in reply:
            if reply["error"].get("code") != 404:  # it cannot say just now
                raise streams.StreamSetupError(
                    f"message {sequence}: {reply['error'].get('description', reply['error'])}"
                )
            return False
        found = times.nanoseconds(times.moment(reply["message"]["time"]))
        return datetime.fromtimestamp(found / 1_000_000_000.0, UTC) == time  # as nats-py makes it of the ns it is told

    async def _read(self, client: Client, inbox: Any, consumer: str) -> None:
        """Until the consumer ends: keep requests open ahead, queue each message. Raises one of AWAY."""
        ahead = self._settings.fetch
        request = json.dumps(
            {"batch": ahead, "expires": int(EXPIRES * 1e9), "idle_heartbeat": int(HEARTBEAT * 1e9)}
        ).encode()
        asked = 0  # messages requested and not yet received
        try:
            while True:
                if asked <= ahead // 2:
                    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self.name}.{consumer}", request, inbox.subject)
                    asked += ahead
                message = await inbox.next_msg(timeout=2.5 * HEARTBEAT)
                status = (message.headers or {}).get("Status")
                if status is None:
                    asked -= 1
                    await self._take(client, message)
                elif status in ("404", "408", "409") and "Nats-Pending-Messages" in message.headers:
                    asked -= int(message.headers["Nats-Pending-Messages"])
                    if "Deleted" in message.headers.get("Description", ""):
                        raise _Ended(message.headers["Description"])
                elif status != "100":
                    raise _Ended(message.headers.get("Description", status))
        finally:
            with contextlib.suppress(Exception):
                await inbox.unsubscribe()

    async def _take(self, client: Client, message: Msg) -> None:
        sequence = message.metadata.sequence.stream
        if sequence <= self.position:
            return
        content = None
        try:
            content = decode(self.name, message.subject, message.data)
        except EnvelopeError as error:
            await self._bury(client, message, sequence, str(error))
        missed = None if sequence == self.position + 1 else (self.position + 1, sequence - 1)
        await self._queue.put(Item(self.name, sequence, content, dead=content is None, missed=missed))
        self.position = sequence
        self._last = sequence, message.metadata.timestamp

    async def _bury(self, client: Client, message: Msg, sequence: int, reason: str) -> None:
        """To the dead letters before the watermark passes it: it never disappears, and it never stops the sink."""
        kind = "batch" if self.name == subjects.VERDICTS_STREAM else "record"
        stream = self._store.state.streams[self.name]
        headers = {
            "Nats-Msg-Id": f"{self.name}:{stream.created}:{sequence}", "ztlens-stream": self.name,
            "ztlens-sequence": str(sequence), "ztlens-subject": message.subject,
            "ztlens-reason": " ".join(reason.split()).encode("ascii", "replace").decode()[:500],
        }  # fmt: skip
        data = message.data
        wait, said = 0.1, False
        while True:
            try:
                await streams.ensure(client, subjects.DEAD_STREAM)
                await client.jetstream().publish(subjects.dead(kind), data, timeout=5, headers=headers)
            except (MaxPayloadError, APIError) as error:
                if len(data) > _TRUNCATED:
                    headers["ztlens-truncated"] = str(len(data))
                    data = data[:_TRUNCATED]
                    continue
                failure: Exception = error
            except AWAY as error:
                failure = error
            else:
                self.dead += 1
                log.warning(
                    "message %d of stream %s is a dead letter: %s", sequence, self.name, headers["ztlens-reason"]
                )
                return
            if not said:
                log.warning("dead letter of stream %s: %s; trying again", self.name, failure or type(failure).__name__)
                said = True
            await asyncio.sleep(wait)
            wait = min(2.0, wait * 2)


class _Ended(NatsError):
    """The consumer is gone: a new one is made."""


class Waiting:
    """Items on their way from the readers to the commits, in order; of a split one the rest comes first."""

    def __init__(self, size: int) -> None:
        self._queue: asyncio.Queue[Item] = asyncio.Queue(size)
        self._rest: Item | None = None

    async def put(self, item: Item) -> None:
        """Add an item; waits while `size` of them are there."""
        await self._queue.put(item)

    @property
    def empty(self) -> bool:
        """Nothing can be taken at once."""
        return self._rest is None and self._queue.empty()

    @property
    def size(self) -> int:
        """Items waiting."""
        return self._queue.qsize()

    async def get(self, most: int) -> Item:
        """The next item, or as much of it as has `most` rows."""
        item = self._rest or await self._queue.get()
        self._rest = None
        if not isinstance(item.content, Batch) or item.content.n <= most:
            return item
        head, tail = item.content.split(most)
        self._rest = replace(item, content=tail, missed=None)
        return replace(item, sequence=item.sequence - 1, content=head, part=True)


LINGER = 0.01
"""Seconds a commit waits at least: what is told at the same time is committed together."""


async def gather(waiting: Waiting, settings: SinkSettings, before: float | None = None) -> Commit:
    """The next commit: waits for a first message, then for commit_rows or commit_wait, then takes what is there.

    commit_wait counts from `before`, when the commit before was made (by the loop's clock): what comes after a quiet
    while is stored at once, and there are no more commits for it. None: from the message.

    Loss records without news (neither final nor with the flow table's sums) wait for idle_wait.
    """
    loop = asyncio.get_running_loop()
    commit = Commit()
    most = settings.commit_rows_max
    end = None
    while commit.rows < settings.commit_rows:
        try:
            async with asyncio.timeout_at(end):
                item = await waiting.get(most - commit.rows)
        except TimeoutError:
            return commit
        add(commit, item)
        routine = isinstance(item.content, LossRecord) and item.content.flows is None and not item.content.final
        now = loop.time()
        if routine:
            soon = now + settings.idle_wait
        else:
            soon = max(now + LINGER, (now if before is None else before) + settings.commit_wait)
        end = soon if end is None else min(end, soon)
    await take_ready(commit, waiting, most)
    return commit


async def take_ready(commit: Commit, waiting: Waiting, most: int) -> None:
    """Add what is there already, up to exactly `most` rows: a commit that fills a row group is written only once."""
    while commit.rows < most and not waiting.empty:
        add(commit, await waiting.get(most - commit.rows))


def add(commit: Commit, item: Item) -> None:
    """Put an item into a commit."""
    if item.missed:
        commit.missed.append((item.stream, *item.missed))
    commit.marks[item.stream] = item.sequence
    if isinstance(item.content, Batch):
        commit.batches.append(item.content)
    elif item.content is not None:
        commit.records.append(item.content)
    commit.messages += (item.content is not None or item.dead) and not item.part
    commit.dead += item.dead


async def connect(url: str, returned: Callable[[], None]) -> Client:
    """A client that never gives up, from the first attempt on; its being away is one line, its return another.

    `returned` is called whenever a lost connection is there again.
    """
    state = {"away": False}

    async def on_error(error: Exception) -> None:
        if not state["away"]:
            state["away"] = True
            log.warning("NATS: %s; trying again", str(error) or type(error).__name__)

    async def on_return() -> None:
        if state["away"]:
            state["away"] = False
            log.info("NATS: connected")

    async def on_reconnect() -> None:
        await on_return()
        returned()

    while True:
        try:
            client = await nats.connect(
                url,
                name="ztlens sink",
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.5,
                ping_interval=20,
                error_cb=on_error,
                reconnected_cb=on_reconnect,
            )
        except (NatsError, OSError) as error:  # TimeoutError is an OSError
            await on_error(error)
            await asyncio.sleep(1.0)
        else:
            await on_return()
            return client
