"""From messages to commits, without a server."""

import asyncio
from pathlib import Path

import pytest

from schemas import messages, subjects
from schemas.errors import EnvelopeError
from schemas.messages import LossRecord, PolicyRecord
from sink.consume import Item, decode, gather, take_ready
from sink.settings import SinkSettings
from sink.store import Batch, Commit
from tests.support import batches

V, R = subjects.VERDICTS_STREAM, subjects.RECORDS_STREAM


def settings(**fields: float) -> SinkSettings:
    return SinkSettings(Path("/nowhere"), "", Path("/nowhere"), **fields)  # type: ignore[arg-type]


def test_each_subject_has_its_kind() -> None:
    assert isinstance(decode(V, subjects.verdicts("n.1"), batches.packed(batches.verdict())), Batch)
    policy, loss = batches.policy_record(), batches.loss_record(3)
    assert decode(R, subjects.policy("n.1"), messages.encode(policy)) == policy
    assert decode(R, subjects.loss("n.1"), messages.encode(loss)) == loss


@pytest.mark.parametrize(
    ("stream", "subject", "data"),
    [
        (V, subjects.verdicts("n"), b""),
        (V, subjects.verdicts("n"), b"\xc1"),
        (V, subjects.verdicts("n"), batches.packed(batches.verdict())[:-1]),
        (V, subjects.verdicts("n"), messages.encode(batches.loss_record(1))),
        (R, subjects.loss("n"), messages.encode(batches.policy_record())),
        (R, subjects.policy("n"), messages.encode(batches.loss_record(1))),
        (R, "ztlens.other.v1.n", messages.encode(batches.loss_record(1))),
        (R, subjects.loss("n"), messages.encode(batches.loss_record(1, judged_packets=-1))),
        (R, subjects.loss("n"), messages.encode(batches.loss_record(1, time=1 << 63))),
        (R, subjects.loss("n"), messages.encode(batches.loss_record(1, counters={"x": -5}))),
        (R, subjects.policy("n"), messages.encode(batches.policy_record(time=-1))),
        (R, subjects.policy("n"), messages.encode(batches.policy_record(revision=1 << 32))),
        (R, subjects.policy("n"), messages.encode(batches.policy_record(end=1 << 63, time=1 << 63))),
    ],
)
def test_what_cannot_be_stored_is_known_before(stream: str, subject: str, data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        decode(stream, subject, data)


def item(sequence: int, rows: int = 10) -> Item:
    return Item(V, sequence, decode(V, subjects.verdicts("n"), batches.packed(batches.traffic(rows * 3).rows[:rows])))


async def test_a_commit_waits_for_rows() -> None:
    queue: asyncio.Queue[Item] = asyncio.Queue()
    for sequence in range(1, 8):
        queue.put_nowait(item(sequence))
    commit = await gather(queue, settings(commit_rows=30, commit_rows_max=50, commit_wait=3600))
    assert (commit.rows, commit.messages, commit.marks) == (50, 5, {V: 5})
    assert queue.qsize() == 2


async def test_or_for_its_time() -> None:
    queue: asyncio.Queue[Item] = asyncio.Queue()
    queue.put_nowait(item(1))
    commit = await gather(queue, settings(commit_rows=30, commit_wait=0.01))
    assert (commit.rows, commit.messages) == (10, 1)


def test_dead_letters_and_losses_move_the_watermark() -> None:
    queue: asyncio.Queue[Item] = asyncio.Queue()
    for one in (Item(V, 4, missed=(1, 4)), Item(V, 8, dead=True, missed=(5, 7)), Item(R, 2, batches.policy_record())):
        queue.put_nowait(one)
    commit = Commit()
    take_ready(commit, queue, 100)
    assert commit.missed == [(V, 1, 4), (V, 5, 7)]
    assert commit.marks == {V: 8, R: 2}
    assert (commit.messages, commit.dead, len(commit.records)) == (2, 1, 1)
    assert isinstance(commit.records[0], PolicyRecord)
    assert not isinstance(commit.records[0], LossRecord)
