"""From messages to commits, without a server."""

import asyncio
from pathlib import Path

import pytest

from schemas import messages, subjects
from schemas.errors import EnvelopeError
from schemas.messages import PolicyRecord
from sink.consume import Item, Waiting, decode, gather, take_ready
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


async def waiting(*items: Item) -> Waiting:
    out = Waiting(len(items))
    for one in items:
        await out.put(one)
    return out


async def test_a_commit_waits_for_rows() -> None:
    queue = await waiting(*(item(sequence) for sequence in range(1, 8)))
    commit = await gather(queue, settings(commit_rows=30, commit_rows_max=50, commit_wait=3600))
    assert (commit.rows, commit.messages, commit.marks) == (50, 5, {V: 5})
    assert not queue.empty


async def test_or_for_its_time() -> None:
    queue = await waiting(item(1))
    commit = await gather(queue, settings(commit_rows=30, commit_wait=0.01))
    assert (commit.rows, commit.messages) == (10, 1)


async def test_what_comes_after_a_quiet_while_waits_no_more() -> None:
    given, now = settings(commit_rows=30, commit_wait=3600), asyncio.get_running_loop().time()
    assert (await gather(await waiting(item(1)), given, now - 3600)).rows == 10
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gather(await waiting(item(1)), given, now), 0.1)


async def test_counters_of_a_quiet_node_wait_for_company() -> None:
    routine = [Item(R, n, batches.loss_record(1, flows=None)) for n in range(1, 4)]
    given = settings(commit_wait=0.01, idle_wait=0.05)
    assert (await gather(await waiting(*routine), given)).marks == {R: 3}
    scanned = Item(R, 4, batches.loss_record(1))
    commit = await gather(await waiting(*routine, scanned), settings(commit_wait=0.01, idle_wait=3600))
    assert commit.marks == {R: 4}


async def test_a_commit_is_filled_exactly_and_the_watermark_stays_before_the_split_message() -> None:
    queue = await waiting(*(item(sequence) for sequence in range(1, 5)))
    given = settings(commit_rows=1, commit_rows_max=25)
    commit = await gather(queue, given)
    assert (commit.rows, commit.messages, commit.marks) == (25, 2, {V: 2})
    assert [batch.n for batch in commit.batches] == [10, 10, 5]
    rest = await gather(queue, given)
    assert (rest.rows, rest.messages, rest.marks) == (15, 2, {V: 4})
    assert rest.batches[0].first == commit.batches[2].past
    assert rest.batches[0].past == commit.batches[0].past
    assert (rest.batches[0].columns["time"] == commit.batches[0].columns["time"][5:]).all()
    assert queue.empty


async def test_a_large_message_takes_several_commits() -> None:
    queue = await waiting(item(1, 60))
    commits = [await gather(queue, settings(commit_rows=1, commit_rows_max=25)) for _ in range(3)]
    assert [commit.rows for commit in commits] == [25, 25, 10]
    assert [commit.marks for commit in commits] == [{V: 0}, {V: 0}, {V: 1}]
    assert [commit.messages for commit in commits] == [0, 0, 1]


async def test_dead_letters_and_losses_move_the_watermark() -> None:
    queue = await waiting(
        Item(V, 4, missed=(1, 4)), Item(V, 8, dead=True, missed=(5, 7)), Item(R, 2, batches.policy_record())
    )
    commit = Commit()
    await take_ready(commit, queue, 100)
    assert commit.missed == [(V, 1, 4), (V, 5, 7)]
    assert commit.marks == {V: 8, R: 2}
    assert (commit.messages, commit.dead, len(commit.records)) == (2, 1, 1)
    assert isinstance(commit.records[0], PolicyRecord)
