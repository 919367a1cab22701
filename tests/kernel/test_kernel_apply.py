"""Policies in the kernel's tables: what was compiled is there, in its slot, and nothing of the slot's last tenant."""

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from collector.errors import KernelError
from collector.kernel import slots
from collector.kernel.private import PrivateDatapath, private_datapath
from schemas.codes import Mode, RuleId
from schemas.structs import PORTS_PER_SLOT
from tests.support.kernel import compiled, udp_frame

KNOBS = {
    "FLOWS_MAX": 1024,
    "RING_BYTES": 65_536,
    "RULES_MAX": 128,
    "CLASSES_MAX": 16,
    "PREFIXES_MAX": 64,
    "SWEEP_MAX": 8,
}

RANGES, NODES = 256, 85
"""Room for 64 prefixes: 131 ranges, a tree of four levels."""


@pytest.fixture
def datapath(loader: str) -> Iterator[PrivateDatapath]:
    with private_datapath(KNOBS, loader=loader) as datapath:
        yield datapath


def tables(datapath: PrivateDatapath, slot: int) -> dict[str, Any]:
    handle = datapath.handle
    return {
        "ports": handle.ports.values[slot * PORTS_PER_SLOT : (slot + 1) * PORTS_PER_SLOT].copy(),
        **{
            name: getattr(handle, name).values[slot * 16 : (slot + 1) * 16].copy()
            for name in ("source_rules", "destination_rules", "port_rules")
        },
        "rules": handle.rules.values[slot * 128 : (slot + 1) * 128].copy(),
        "slot": handle.config.values["slots"][0, slot : slot + 1].copy(),
        "range_nodes": handle.range_nodes.values[slot * NODES : (slot + 1) * NODES].copy(),
        "ranges": handle.ranges.values[slot * RANGES : (slot + 1) * RANGES].copy(),
    }  # fmt: skip


def test_every_table_holds_what_was_compiled(datapath: PrivateDatapath) -> None:
    policy = compiled(
        prefixes=[("0.0.0.0", 0, 0, 5, 6), ("10.0.0.0", 8, 16, 1, 2), ("10.1.2.3", 32, 17, 3, 4)],
        rules=70, classes=9, seed=1,
    )  # fmt: skip
    datapath.apply(policy, 1)
    there = tables(datapath, 1)
    assert np.array_equal(there["ports"], policy.ports)
    for name in ("source_rules", "destination_rules", "port_rules"):
        wanted = np.zeros((16, 3), np.uint64)  # a word of summary, two of rules
        wanted[:9, 1:] = getattr(policy, name)
        wanted[:9, 0] = [sum(1 << word for word in range(2) if vector[word]) for vector in getattr(policy, name)]
        assert np.array_equal(there[name], wanted)
    assert np.array_equal(there["rules"][:70], policy.rules)
    assert not there["rules"][70:].view(np.uint8).any()
    slot = np.array(policy.slot).reshape(1)
    slot["levels"] = 2
    assert there["slot"].tobytes() == slot.tobytes()
    # ::, 0.0.0.0, 10.0.0.0, 10.1.2.3, 10.1.2.4, 11.0.0.0, and what follows IPv4; the last again and again.
    mapped = 0xFFFF << 32
    begins = [0, *(mapped + int.from_bytes(socket.inet_aton(a), "big") for a in
                   ("0.0.0.0", "10.0.0.0", "10.1.2.3", "10.1.2.4", "11.0.0.0")), mapped + (1 << 32)]  # fmt: skip
    begins += [begins[-1]] * 9
    nodes = there["range_nodes"]
    assert nodes[0].tolist() == [0] * 4 + begins[::4]
    assert nodes[1:5, :4].ravel().tolist() == [0] * 16
    assert nodes[1:5, 4:].ravel().tolist() == begins
    assert not nodes[5:].any()
    known = [(0, 0, 0), (0, 5, 6), (16, 1, 2), (17, 3, 4), (16, 1, 2), (0, 5, 6), *[(0, 0, 0)] * 250]
    assert there["ranges"].tolist() == known


def test_the_next_tenant_of_a_slot_finds_it_empty(datapath: PrivateDatapath) -> None:
    datapath.apply(compiled(prefixes=[("10.0.0.0", 8, 1, 1, 1)], rules=128, classes=16, seed=1), 1)
    datapath.apply(compiled(prefixes=[("10.9.0.0", 16, 2, 2, 2)], rules=3, classes=2, seed=2), 2)
    second = tables(datapath, 0)
    small = compiled(prefixes=[("10.8.0.0", 16, 3, 3, 3)], rules=1, classes=1, seed=3)
    datapath.apply(small, 3)
    third = tables(datapath, 1)
    assert third["ranges"]["identity"].nonzero()[0].tolist() == [2]
    assert not third["range_nodes"][5:].any()
    assert not third["source_rules"][1:].any()
    assert not third["rules"][1:].view(np.uint8).any()
    # The other slot, which in-flight packets may still be judged by, is as it was.
    again = tables(datapath, 0)
    assert all(np.array_equal(second[name], again[name]) for name in second)


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ({"rules": 129}, "129 rules"),
        ({"classes": 17}, "17 source classes"),
        ({"prefixes": [(f"10.0.0.{i}", 32, 1, 1, 1) for i in range(65)]}, "65 prefixes"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    datapath: PrivateDatapath, policy: dict[str, Any], what: str
) -> None:
    before = tables(datapath, 1)
    with pytest.raises(KernelError, match=what):
        datapath.apply(compiled(**policy), 1)
    after = tables(datapath, 1)
    assert datapath.revision == 0
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_each_slot_has_room_for_all_prefixes(datapath: PrivateDatapath) -> None:
    """64 prefixes of which each makes two ranges, in both slots."""
    most = [(f"10.0.{i}.0", 25, 1, 1, 1) for i in range(64)]
    for revision in (1, 2):
        datapath.apply(compiled(prefixes=most), revision)
    for slot in (0, 1):
        assert tables(datapath, slot)["ranges"]["identity"].sum() == 64


class Deaf(np.ndarray):
    """Takes no writes."""

    def __setitem__(self, *_: Any) -> None: ...


def test_a_table_that_reads_back_wrong_is_never_switched_to(
    datapath: PrivateDatapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = compiled(prefixes=[("10.0.0.0", 8, 1, 1, 1)], rules=2)
    tables = slots._tables
    monkeypatch.setattr(slots, "_tables", lambda *given: [(live.view(Deaf), wanted) for live, wanted in tables(*given)])
    with pytest.raises(KernelError, match="read back"):
        datapath.apply(policy, 1)
    assert datapath.revision == 0


def test_the_epoch_is_one_word(datapath: PrivateDatapath) -> None:
    datapath.set_mode(Mode.ENFORCE)
    datapath.apply(compiled(), 1)
    assert int(datapath.handle.config.values["epoch"][0]) == 1 << 32 | 1


def test_counters_are_kept_by_slot_and_revision(datapath: PrivateDatapath) -> None:
    frame = udp_frame("10.0.0.1", 1, "10.0.0.2", 53, bytes(18))
    for _ in range(3):
        datapath.run(frame)
    datapath.apply(compiled(), 1)  # no rules, default deny
    for _ in range(4):
        datapath.run(frame)
    datapath.apply(compiled(), 2)
    for _ in range(5):
        datapath.run(frame)
    assert datapath.rule_counters(0)["packets_passed"][RuleId.NO_POLICY] == 3
    assert datapath.rule_baseline(0)["packets_passed"][RuleId.NO_POLICY] == 3
    assert datapath.rule_counters(1)["packets_passed"][RuleId.DEFAULT] == 4
    assert datapath.rule_counters(0)["packets_passed"][RuleId.DEFAULT] == 5
    assert datapath.rule_baseline(0)["packets_passed"][RuleId.DEFAULT] == 0
    assert len(datapath.rule_counters(0)) == 128 + RuleId.FIRST
