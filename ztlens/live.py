"""Verdicts as they come: each batch goes into a small database in memory, and is asked what history is asked.

So one predicate serves both. The batches are those of JetStream, taken from the subject as they pass: nothing is
capped, and whoever reads too slowly misses messages, which is said.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from schemas import envelope, messages, subjects
from schemas.errors import SchemaError
from schemas.messages import PolicyRecord, ReplayRecord
from ztlens import nats, show
from ztlens.verdicts import Row, select

if TYPE_CHECKING:
    from nats.aio.client import Client

    from sink.store import Store

Write = Callable[[Sequence[Row]], None]
Before = Callable[[], Awaitable[list[Row]]]
Message = tuple[str, bytes]
"""Subject and data."""
Queue = asyncio.Queue[Message]

LIVE = (subjects.ALL_POLICY, subjects.ALL_VERDICTS)
AT_ONCE = 64
"""Messages put into one transaction, when so many wait."""
BACKLOG = 64 << 20
"""Bytes of messages that may wait for a slow reader."""
FRESH_AFTER = 500_000
"""Rows after which the database is made anew: rows deleted from memory are not given back."""
REVISIONS = 16
"""Policy records kept for each ring, to name rules and identities in a fresh database."""


async def follow(
    url: str, predicate: str, write: Write, before: Before | None = None, wanted: Sequence[str] = LIVE
) -> None:
    """Call `write` with the rows that `predicate` keeps, batch by batch, each oldest first; until cancelled.

    `before` is asked for recorded rows once nothing new can be missed; none is written twice. `wanted` are subjects;
    those of a replay (`subjects.replay_whole`) end with it. Raises Missing when NATS is not there at the start,
    duckdb.Error for a predicate that DuckDB does not take.
    """
    await nats.check(url)
    follower = await asyncio.to_thread(Follower, predicate)
    client = await _connect(url)
    try:
        queue: Queue = asyncio.Queue(AT_ONCE)
        await _subscribe(client, queue, wanted)
        known = [(subjects.policy(""), data) for data in await policy_records(client)]
        await asyncio.to_thread(follower.take, known)
        if before is not None:
            recorded = await before()
            follower.shown = {(row["ring"], row["position"]) for row in recorded}
            write(recorded)
        await _show(queue, follower, write)
    finally:
        await client.close()


async def _show(queue: Queue, follower: "Follower", write: Write) -> None:
    """Until a replay ends, if it is one."""
    while not follower.ended:
        waiting = [await queue.get()]
        while len(waiting) < AT_ONCE and not queue.empty():
            waiting.append(queue.get_nowait())
        rows = await asyncio.to_thread(follower.take, waiting)
        if rows:
            write(rows)


class Follower:
    """Batches in, rows out. Not thread-safe. Raises duckdb.Error for a predicate that DuckDB does not take."""

    def __init__(self, predicate: str) -> None:
        self.shown: set[tuple[str, int]] = set()
        self.ended = False
        """The replay said that it is over."""
        self._sql = select(predicate)
        self._policies: dict[tuple[str, str], dict[int, PolicyRecord]] = {}
        self._bad = 0
        self._begin()
        self._ask()

    def _begin(self) -> None:
        from sink.store import Commit, memory_store

        self._store: Store = memory_store()
        self._rows = 0
        known = [record for records in self._policies.values() for record in records.values()]
        if known:
            self._store.append(Commit(records=list(known)))

    def _ask(self) -> list[Row]:
        with self._store.cursor() as cursor:
            found = cursor.execute(self._sql).to_arrow_table()
        return [row for row in show.records(found) if (row["ring"], row["position"]) not in self.shown]

    def take(self, waiting: Sequence[Message]) -> list[Row]:
        """Store messages, policy records first, and return what is wanted of the verdicts among them."""
        from sink.store import Commit, prepare

        commit = Commit()
        for subject, data in waiting:
            try:
                kind = subjects.kind(subject)
                if kind == "policy":
                    commit.records.append(self._remembered(messages.decode(data, PolicyRecord)))
                elif kind == "progress":
                    self.ended |= messages.decode(data, ReplayRecord).done
                else:
                    commit.batches.append(prepare(envelope.decode(data)))
            except SchemaError as error:
                self._bad += 1
                if self._bad == 1:
                    show.say(f"a message could not be read and is left out: {error}")
        self._store.append(commit)
        if not commit.rows:
            return []
        rows = self._ask()
        self._rows += commit.rows
        self._store.connection.execute("DELETE FROM store.verdicts")
        if self._rows > FRESH_AFTER:
            self._store.close(checkpoint=False)
            self._begin()
        return rows

    def _remembered(self, record: PolicyRecord) -> PolicyRecord:
        of_ring = self._policies.setdefault((record.node, record.ring), {})
        if record.rules or record.identities or record.revision not in of_ring:
            of_ring[record.revision] = record
        while len(of_ring) > REVISIONS:
            del of_ring[min(of_ring)]
        return record


async def _connect(url: str) -> "Client":
    import nats as library

    async def said(error: Exception) -> None:
        if type(error).__name__ == "SlowConsumerError":
            show.say("verdicts come faster than they can be shown: some were left out; history has them all")

    async def away() -> None:
        if not closing():
            show.say("NATS is away; waiting for it")

    def closing() -> bool:
        return client.is_closed or client.is_draining

    client: Client = await library.connect(
        url, name="ztlens observe", max_reconnect_attempts=-1, reconnect_time_wait=0.5, error_cb=said,
        disconnected_cb=away,
    )  # fmt: skip
    return client


async def _subscribe(client: "Client", queue: Queue, wanted: Sequence[str]) -> None:
    from nats.aio.msg import Msg

    async def keep(message: Msg) -> None:
        await queue.put((message.subject, message.data))  # full: nats-py keeps up to BACKLOG, then drops and says so

    for subject in wanted:
        await client.subscribe(subject, cb=keep, pending_bytes_limit=BACKLOG)
    await client.flush()


async def policy_records(client: "Client") -> list[bytes]:
    """What every node has in force and had before, with rules and identities by name. None where no stream is yet.

    What NATS does not give in time is told on stderr.
    """
    import nats.errors
    import nats.js.errors
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    wanted = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=30.0
    )
    out: list[bytes] = []
    try:
        consumer = await client.jetstream().pull_subscribe(
            subjects.ALL_POLICY, stream=subjects.RECORDS_STREAM, config=wanted
        )
        pending = (await consumer.consumer_info()).num_pending or 0
        while len(out) < pending:
            out += [message.data for message in await consumer.fetch(min(500, pending - len(out)), timeout=5.0)]
        await consumer.unsubscribe()
    except nats.errors.TimeoutError:
        show.say(f"NATS gave {len(out)} policy records, not all in time: rules and identities may lack their names")
    except (nats.js.errors.NotFoundError, nats.js.errors.ServiceUnavailableError):
        pass
    return out
