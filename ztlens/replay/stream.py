"""History out of JetStream, when the store is gone: read as it was published, put in order, judged by the same SQL.

Messages go into a small database in memory, which drops what came twice and knows the names. What it holds leaves in
the order of time but for the last second, in which other rings may still tell something. So the order is right within
each ring, and across rings that were published within a second of each other.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from schemas import envelope, messages, subjects
from schemas.errors import SchemaError
from schemas.messages import LossRecord, PolicyRecord
from ztlens import show
from ztlens.errors import Missing
from ztlens.live import policy_records
from ztlens.replay.windows import TARGET, Reader, Window, ahead

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from sink.store import Commit, Store

LAG = 1_000_000_000
"""ns that the newest stamp must be ahead of what leaves."""
MARGIN = timedelta(minutes=1)
"""By how much the server's clock may lead a node's: a message is never older than its verdicts."""
FETCH = 32
IDLE = 60.0
"""Seconds a consumer lives unused."""
PATIENCE = 10.0
"""Seconds for the server to answer."""
_STREAM = subjects.VERDICTS_STREAM


class StreamWindows:
    """Windows of what stream VERDICTS holds now. Nothing is written, nothing acknowledged."""

    def __init__(self, client: "Client", predicate: str, since: int | None, until: int | None) -> None:
        self._client = client
        self._predicate = predicate
        self._since, self._until = since, until
        self._bad = 0

    async def windows(self) -> AsyncIterator[Window]:
        """Raises Missing when there is no stream or it stops answering, SinkError as History does."""
        from sink.client import History
        from sink.store import Commit, memory_store

        store = await asyncio.to_thread(memory_store)
        try:
            await asyncio.to_thread(store.append, Commit(records=self._named(await policy_records(self._client))))
            reader = Reader(lambda: History.on_store(store), self._predicate)
            newest = 0
            async for commit in ahead(self._commits()):
                await asyncio.to_thread(store.append, commit)
                newest = max([newest, *(int(batch.columns["time"].max().astype("i8")) for batch in commit.batches)])
                async for window in self._leave(store, reader, newest - LAG):
                    yield window
            async for window in self._leave(store, reader, newest + 1):
                yield window
        finally:
            await asyncio.to_thread(store.close, checkpoint=False)

    async def _leave(self, store: "Store", reader: Reader, before: int) -> AsyncIterator[Window]:
        """What is older than `before`, and forget it."""
        until = before if self._until is None else min(before, self._until)
        windows = reader.windows(self._since, until)
        while (window := await asyncio.to_thread(next, windows, None)) is not None:
            yield window
        # Not a DELETE: rows deleted from memory are not given back.
        await asyncio.to_thread(
            store.connection.execute,
            "CREATE OR REPLACE TABLE store.verdicts AS SELECT * FROM store.verdicts WHERE time >= make_timestamp_ns(?)",
            [before],
        )

    async def _commits(self) -> AsyncIterator["Commit"]:
        """All batches of the stream, some TARGET verdicts at a time."""
        from sink.store import Commit, prepare

        commit = Commit()
        async for message in self._messages():
            try:
                commit.batches.append(prepare(envelope.decode(message.data)))
            except SchemaError as error:
                self._unreadable(error)
            if commit.rows >= TARGET:
                yield commit
                commit = Commit()
        yield commit

    async def _messages(self) -> AsyncIterator["Msg"]:
        """Up to the last there is now; a consumer that was idle too long is made anew: the server takes it away."""
        import nats.errors
        import nats.js.errors

        jetstream = self._client.jetstream(timeout=PATIENCE)
        try:
            last = (await jetstream.stream_info(_STREAM)).state.last_seq
        except nats.js.errors.NotFoundError as error:
            raise Missing(f"NATS has no stream {_STREAM}", "without --from-stream the store is read") from error
        read, pending = 0, 1
        while pending and read < last:
            consumer = await self._consumer(jetstream, read)
            try:
                pending = (await consumer.consumer_info()).num_pending or 0
                asked = time.monotonic()
                while pending and read < last and time.monotonic() - asked < IDLE / 2:
                    asked = time.monotonic()
                    for message in await consumer.fetch(min(FETCH, pending), timeout=PATIENCE):
                        read, pending = message.metadata.sequence.stream, message.metadata.num_pending
                        if read <= last:
                            yield message
            except nats.errors.TimeoutError as error:
                raise Missing(f"stream {_STREAM} stopped answering", "is NATS running? see its log") from error
            finally:
                await consumer.unsubscribe()

    async def _consumer(self, jetstream: "JetStreamContext", read: int) -> "JetStreamContext.PullSubscription":
        """An ephemeral one, behind sequence `read`, or from the time asked for."""
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        wanted = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=IDLE)
        if read:
            wanted.deliver_policy, wanted.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, read + 1
        elif self._since is not None:
            wanted.deliver_policy = DeliverPolicy.BY_START_TIME
            wanted.opt_start_time = datetime.fromtimestamp(self._since / 1e9, UTC) - MARGIN
        return await jetstream.pull_subscribe(subjects.ALL_VERDICTS, stream=_STREAM, config=wanted)

    def _named(self, records: list[bytes]) -> list[PolicyRecord | LossRecord]:
        out: list[PolicyRecord | LossRecord] = []
        for data in records:
            try:
                out.append(messages.decode(data, PolicyRecord))
            except SchemaError as error:
                self._unreadable(error)
        return out

    def _unreadable(self, error: SchemaError) -> None:
        self._bad += 1
        if self._bad == 1:
            show.say(f"a message could not be read and is left out: {error}")
