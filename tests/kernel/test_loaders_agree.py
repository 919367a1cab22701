"""The same packets to what either loader made: the same verdicts, events, counters and flows, to the byte.

The normal run has 20,000 generated packets. A long one:

    ZTLENS_LOADERS_PACKETS=1000000 ZTLENS_LOADERS_SEED=7 pytest tests/kernel/test_loaders_agree.py
"""

import os
from collections.abc import Iterator
from random import Random

import numpy as np
import pytest

from collector.kernel import libbpf
from collector.kernel.loader import LOADERS
from collector.kernel.private import MAX_PACKET, PrivateDatapath, private_datapath
from schemas.codes import EventKind, Mode, Reason
from tests.support.corpus import CORPUS
from tests.support.packets import A6, B6, A, B
from tests.support.rules import ANY, NO_POLICY, Rule, Rules, compile_rules

PACKETS = int(os.environ.get("ZTLENS_LOADERS_PACKETS", "20000"))
SEED = int(os.environ.get("ZTLENS_LOADERS_SEED", "1"))
BATCH = 500
"""Packets between two looks at what they caused."""
KNOBS = {"FLOWS_MAX": 4096, "RULES_MAX": 128, "CLASSES_MAX": 64, "PREFIXES_MAX": 1024, "RING_BYTES": 1 << 19}
SHORTEST = {b"\x08\x00": 34, b"\x86\xdd": 54}
"""By Ethernet type: what TC can be test-run with."""
NS = 1_000_000_000
ENDS = (f"{A}/32", f"{B}/32", "10.0.0.0/8", ANY, f"{A6}/128", f"{B6}/128", "fd00::/8")
PORTS = (ANY, "tcp/80", "tcp/22", "udp/53", "icmp/8", "icmpv6/128", "other/47", "sctp/6")


@pytest.fixture
def both() -> Iterator[list[PrivateDatapath]]:
    """One of each loader, on one CPU: it is part of a flow's id."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    both = [private_datapath(KNOBS, judge=True, loader=loader, sample=3, budget=20) for loader in LOADERS]
    yield both
    for one in both:
        one.close()
    os.sched_setaffinity(0, cpus)


def random_rules(random: Random) -> Rules:
    if random.random() < 0.1:
        return NO_POLICY
    rules = []
    for _ in range(random.randrange(1, 100)):
        family = random.choice((ENDS[:4], ENDS[3:]))
        deny = random.random() < 0.4
        rules.append(
            Rule(random.choice(family), random.choice(family), random.choice(PORTS), not deny,
                 deny and random.random() < 0.3, random.choice((0, 0, 1, 5)))
        )  # fmt: skip
    return Rules(tuple(rules), builtins=random.randrange(16))


def generated(random: Random, numbers: np.random.Generator) -> Iterator[bytes]:
    """Packets of the corpus: as they are, with other ports or addresses, with damage, cut, with a trailer."""
    while True:
        frame = bytearray(random.choice(CORPUS))
        kind = random.random()
        if kind < 0.7:  # other conversations: the low bytes of addresses and ports, wherever they are
            for at in (29, 33, 35, 37, 37, 53, 55, 57):
                if at < len(frame) and random.random() < 0.15:
                    frame[at] = random.randrange(4)
        if kind > 0.4:
            for at in numbers.integers(12, min(len(frame), 140), random.randrange(4)):
                frame[at] = random.randrange(256)
        if random.random() < 0.05:
            del frame[random.randrange(14, len(frame)) :]
        if random.random() < 0.05:
            frame += random.randbytes(random.randrange(50))
        yield bytes(frame[:MAX_PACKET])


def rows(datapath: PrivateDatapath) -> np.ndarray:
    """The ring, emptied."""
    out = []
    while (events := datapath.read(65_536)) is not None:
        out.append(events.rows)
        datapath.release(events.start + len(events.rows) * datapath.stride)
    return np.concatenate(out) if out else np.zeros(0, datapath.handle.layout.events)


def table(datapath: PrivateDatapath) -> np.ndarray:
    """The flow table in an order of its own."""
    found = datapath.flows()
    return found[np.argsort(found["flow"]["id"], kind="stable")]


@pytest.mark.timeout(600 + PACKETS // 500)
def test_either_loaders_program_does_the_same(both: list[PrivateDatapath], capsys: pytest.CaptureFixture[str]) -> None:
    random, numbers = Random(SEED), np.random.default_rng(SEED)
    frames, sent, told, now = generated(random, numbers), 0, 0, 1000 * NS
    kinds: set[tuple[int, int]] = set()
    while sent < PACKETS:
        if sent % (BATCH * 4) == 0:
            rules = random_rules(random) if sent else NO_POLICY
            policy, mode = compile_rules(rules), random.choice(tuple(Mode))
            for one in both:
                one.apply(policy, one.next_revision)
                one.set_mode(mode)
                one.set_config(midstream_until=now + 2 * NS)
        actions: list[list[int]] = [[], []]
        for _ in range(BATCH):
            frame = next(frames)
            now += random.choice((1_000, 1_000_000, 20_000_000, 20_000_000_000 if random.random() < 0.02 else 0))
            for said, one in zip(actions, both, strict=True):
                said.append(one.run(frame, time_ns=now)[0])
        sent += BATCH
        assert actions[0] == actions[1], f"seed {SEED}, packets before {sent}"
        core, bcc = (rows(one) for one in both)
        assert core.tobytes() == bcc.tobytes(), f"seed {SEED}, events before packet {sent}"
        told += len(core)
        kinds |= set(zip(core["event"].tolist(), core["reason"].tolist(), strict=True))
        if sent % (BATCH * 4) == 0:
            same(both)
    same(both)
    core, bcc = (np.sort(end_all(one), order=["flow_id", "event"]) for one in both)
    assert [len(one.flows()) for one in both] == [0, 0]
    assert core.tobytes() == bcc.tobytes()
    assert {event for event, _ in kinds} == set(EventKind)
    assert {reason for _, reason in kinds} == set(Reason)
    counted = both[0].counters()
    assert all(counted[name] for name in ("non_ip", "untracked_unattributable", "samples_held_back", "budget_empty"))
    with capsys.disabled():
        print(f"\nboth loaders agree on {sent:,} packets and {told:,} events, seed {SEED}")


def end_all(datapath: PrivateDatapath) -> np.ndarray:
    """What all flows still owe and their ends, with a full bucket by the machine's clock, which the sweep's is."""
    states = datapath.handle.cpu_state
    one = states.read()
    one["tokens"] = one["refilled"] = 0
    libbpf.update(states.fd, np.zeros(1, np.uint32), one)
    datapath.set_config(budget=1_000_000)
    keys, flows = datapath.handle.flows.read()
    flows["last_seen"] = NS  # the capture's clock may be ahead of the machine's, and what was seen later is not over
    datapath.handle.flows.put(keys, flows)
    out = []
    while not out or (len(out[-1]) and len(datapath.flows())):  # the ring has not room for all of it
        datapath.end_all_flows()
        out.append(rows(datapath))
    return np.concatenate(out)


def same(both: list[PrivateDatapath]) -> None:
    """Counters, rule counters of both slots, and the flow table, every byte."""
    core, bcc = both
    assert core.counters() == bcc.counters()
    for slot in (0, 1):
        assert core.rule_counters(slot).tobytes() == bcc.rule_counters(slot).tobytes()
    assert table(core).tobytes() == table(bcc).tobytes()


def test_egress_does_the_same(both: list[PrivateDatapath]) -> None:
    """TC has the machine's clock: times differ, nothing else may."""
    random, numbers = Random(SEED), np.random.default_rng(SEED)
    policy = compile_rules(random_rules(random))
    for one in both:
        one.apply(policy, one.next_revision)
        one.set_config(budget=1_000_000_000, sample=1, timeouts=[3600 * NS] * 6)
    whole = filter(lambda one: len(one) >= SHORTEST.get(one[12:14], 15), generated(random, numbers))
    for frame, _ in zip(whole, range(2_000), strict=False):
        what = {"gso_segs": random.choice((0, 0, 3)), "wire_len": len(frame) + 60}
        assert len({one.run(frame, program="tc_egress", **what)[0] for one in both}) == 1
    core, bcc = (rows(one) for one in both)
    assert len(core) > 1_000
    core["time"] = bcc["time"] = 0
    assert core.tobytes() == bcc.tobytes()
    assert both[0].counters() == both[1].counters()
