"""Verdicts as they come: each batch goes into a small database in memory, and is asked what history is asked.

So one predicate serves both. The batches are those of JetStream, taken from the subject as they pass: no filter is
too slow for them, nothing is capped, and whoever reads too slowly loses messages, which is said.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from schemas import messages, subjects
from schemas.errors import SchemaError
from ztlens import nats, show
from ztlens.verdicts import Row, select

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

Write = Callable[[Sequence[Row]], None]
Before = Callable[[], Awaitable[list[Row]]]


async def follow(url: str, predicate: str, write: Write, before: Before | None = None) -> None:
    """Call `write` with the rows of each batch that `predicate` keeps, oldest first; until cancelled.

    `before` is asked for recorded rows once nothing new can be missed; none is written twice. Raises Missing when NATS
    is not there at the start, SinkError for a predicate that DuckDB does not take.
    """
    await nats.check(url)
    follower = _Follower(predicate, write)
    await asyncio.to_thread(follower.probe)
    client = await _connect(url)
    try:
        queue: asyncio.Queue[Msg] = asyncio.Queue()
        for subject in (subjects.ALL_POLICY, subjects.ALL_VERDICTS):
            await client.subscribe(subject, cb=queue.put)
        await client.flush()
        for data in await _policy_records(client):
            follower.policy(data)
        if before is not None:
            follower.seed(await before())
        while True:
            message = await queue.get()
            await asyncio.to_thread(follower.take, message.subject, message.data)
    finally:
        await client.close()


async def _connect(url: str) -> "Client":
    import nats as library

    async def said(error: Exception) -> None:
        if type(error).__name__ == "SlowConsumerError":
            show.say("live verdicts come faster than they can be shown: some were left out; history has them all")

    async def away() -> None:
        if not client.is_closed:
            show.say("NATS is away; waiting for it")

    client: Client = await library.connect(
        url, name="ztlens observe", max_reconnect_attempts=-1, reconnect_time_wait=0.5, error_cb=said,
        disconnected_cb=away,
    )  # fmt: skip
    return client


async def _policy_records(client: "Client") -> list[bytes]:
    """What every node has in force and had before: rules and identities by name. None yet: no stream yet."""
    import nats.errors
    import nats.js.errors
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    stream = client.jetstream()
    wanted = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, filter_subject=subjects.ALL_POLICY,
        mem_storage=True, inactive_threshold=30.0,
    )  # fmt: skip
    out: list[bytes] = []
    try:
        consumer = await stream.pull_subscribe(subjects.ALL_POLICY, stream=subjects.RECORDS_STREAM, config=wanted)
        pending = (await consumer.consumer_info()).num_pending or 0
        while len(out) < pending:
            out += [message.data for message in await consumer.fetch(min(500, pending - len(out)), timeout=2.0)]
        await consumer.unsubscribe()
    except (nats.errors.TimeoutError, nats.js.errors.NotFoundError, nats.js.errors.ServiceUnavailableError):
        pass
    return out
