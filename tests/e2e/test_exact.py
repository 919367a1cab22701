"""Counts that are known beforehand, over every kind of link, from the wire to SQL: exact to the packet and the byte.

One `ztlens up` watches a host (tests/support/house.py); everything is sent, it goes down, the history answers.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import INTERFACES, House
from tests.support.installation import Installation
from tests.support.kernel import udp_frame
from tests.support.netns import Lab, wait_for
from tests.support.programs import statistics

POLICY = """
version: 1
default: deny
identities:
  gate: {addresses: [10.77.0.1, "fd77::1"]}
  peer: {addresses: [10.77.0.2, "fd77::2"]}
rules:
  - {name: no-telnet, from: peer, to: any, ports: [7002/udp], action: deny}
  - {name: talk, from: any, to: any, ports: [7001/udp, 7003/udp, 7005/udp, 7006/udp, 7007/udp], action: allow}
  - {name: streams, from: any, to: any, ports: [7100/tcp, 7101/tcp], action: allow}
"""
SIZES = [1 + i % 1400 for i in range(1237)]
UDP4, UDP6 = 14 + 20 + 8, 14 + 40 + 8
ETHERNET = 14
"""What a veth's own byte counters leave out."""


@dataclass
class Told:
    """What was sent (kept by the kernel's counters where only it knows), and the history after the end."""

    house: House
    one: Installation
    ledger: dict[str, Any] = field(default_factory=dict)
    counted: dict[str, dict[str, int]] = field(default_factory=dict)

    def flow(self, where: str) -> dict[str, Any]:
        (flow,) = self.one.flows(where)
        return flow


def differences(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in before}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, loader: str) -> Iterator[Told]:
    directory: Path = tmp_path_factory.mktemp("exact") / "one"
    with Lab() as lab:
        house = House(lab)
        with Installation(lab, directory, netns=house.host, interfaces=INTERFACES, loader=loader) as one:
            up = one.up("--policy", one.policy(POLICY))
            assert one.status()["loader"] == loader
            out = Told(house, one)
            send(out)
            one.json("mode", "enforce")
            dropped(out)
            out.ledger = one.down(up)
            assert one.leftovers() == [] and not one.run_dir.exists()
            yield out


def send(told: Told) -> None:
    house = told.house
    house.tell(house.peer, house.host, "10.77.0.1", port=7002, sizes=SIZES)
    house.tell(house.peer, house.host, "fd77::1", port=7002, sizes=SIZES[:311])
    house.talk(house.peer, house.host, "10.77.0.1", port=7001, count=101)
    house.talk(house.host, house.peer, "fd77::2", port=7003, count=103)
    house.talk(house.left, house.right, "10.77.2.2", port=7005, count=107)
    house.talk(house.bleft, house.bright, "10.77.3.3", port=7006, count=109)
    house.talk(house.bleft, house.left, "10.77.1.2", port=7007, count=113)
    house.inject(house.peer, "veth0", [tagged(7008, 1)] * 127, "rx")
    house.inject(house.peer, "veth0", [tagged(7009, 2)] * 131, "rx")
    house.inject(house.tagged, "veth9", [tagged(7010, 1)] * 137, "tx")
    before = statistics(house.host, "veth6")
    house.stream(house.quiet, house.host, "10.77.6.1", port=7100, there=300_001, back=700_001)
    told.counted["veth6"] = differences(before, settled(house.host, "veth6"))
    before, merged = statistics(house.far, "eth0"), statistics(house.host, "veth7")
    house.stream(house.host, house.far, "10.77.8.2", port=7101, there=3_000_001, back=5)
    told.counted["far"] = differences(before, settled(house.far, "eth0"))
    told.counted["veth7"] = differences(merged, settled(house.host, "veth7"))


def tagged(port: int, tags: int) -> bytes:
    """A datagram of 58 bytes to everybody, with one VLAN tag or two."""
    frame = udp_frame("10.77.5.2", 40_000, "10.77.5.1", port, bytes(58))
    return b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x05" + b"\x88\xa8\x00\x06\x81\x00\x00\x05"[8 - 4 * tags :] + frame[12:]


def settled(netns: str, interface: str) -> dict[str, int]:
    """Counters once the connection's last acknowledgement has come through: the same for half a second."""
    seen, since = statistics(netns, interface), time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        if (now := statistics(netns, interface)) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    wait_for(still, "counters that stand still")
    return seen


def dropped(told: Told) -> None:
    """53 datagrams that nobody receives; they are dropped once the interface has counted them."""
    house = told.house
    before = statistics(house.host, "veth0")["rx_packets"]
    sender = house.lab.udp(house.peer, "10.77.0.2", 41_004)
    for _ in range(53):
        sender.sendto(bytes(58), ("10.77.0.1", 7004))
    wait_for(lambda: statistics(house.host, "veth0")["rx_packets"] >= before + 53, "the datagrams to arrive")


def test_1237_datagrams_to_a_denied_port_are_one_flow(told: Told) -> None:
    flow = told.flow("dport = 7002 AND family = 4")
    assert (flow["packets"], flow["packets_original"], flow["packets_reply"]) == (1237, 1237, 0)
    assert flow["bytes"] == flow["bytes_original"] == sum(SIZES) + 1237 * UDP4
    assert (flow["decision"], flow["outcome"], flow["reason"], flow["rule"]) == ("deny", "passed", "rule", "no-telnet")
    assert (flow["src"], flow["dst"], flow["proto"]) == ("10.77.0.2", "10.77.0.1", "udp")
    assert (flow["src_identity"], flow["dst_identity"]) == ("peer", "gate")
    assert (flow["ended"], flow["midstream"], flow["aggregated"], flow["egress"]) == (True, False, False, False)
    assert [f for f in told.one.sql("SELECT * FROM violations WHERE dport = 7002 AND family = 4")] == [flow]


def test_the_commands_say_the_same(told: Told) -> None:
    flow = told.flow("dport = 7002 AND family = 4")
    expected = {"packets": 1237, "bytes": flow["bytes"], "decision": "deny", "reason": "rule", "rule": "no-telnet",
                "dport": 7002, "src": "10.77.0.2"}  # fmt: skip
    for command in ("flows", "violations"):
        (row,) = [r for r in told.one.json(command) if r["dport"] == 7002 and r["src"] == "10.77.0.2"]
        assert {key: row[key] for key in expected} == expected
    lines = told.one.run(
        "observe", "--port", "7002/udp", "--from-ip", "10.77.0.2", "--last", "100", "-o", "json"
    ).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    # An `end` is dated by the coarse clock, up to a tick behind: by time it may stand before the last sample.
    told_by = {row["event"]: row for row in rows}
    assert len(rows) == 3
    assert {event: row["packets"] for event, row in told_by.items()} == {"new": 1, "sample": 1000, "end": 1237}
    assert {key: told_by["end"][key] for key in expected} == expected


def test_ipv6(told: Told) -> None:
    flow = told.flow("dport = 7002 AND family = 6")
    assert (flow["packets"], flow["bytes"]) == (311, sum(SIZES[:311]) + 311 * UDP6)
    assert (flow["src"], flow["dst"], flow["rule"]) == ("fd77::2", "fd77::1", "no-telnet")
    assert (flow["src_identity"], flow["dst_identity"]) == ("peer", "gate")


@pytest.mark.parametrize(
    ("port", "count", "ends", "header"),
    [
        (7001, 101, ("10.77.0.2", "10.77.0.1"), UDP4),  # to the host
        (7003, 103, ("fd77::1", "fd77::2"), UDP6),  # from the host
        (7005, 107, ("10.77.1.2", "10.77.2.2"), UDP4),  # routed from one watched link to another
        (7006, 109, ("10.77.3.2", "10.77.3.3"), UDP4),  # bridged from one watched port to another
        (7007, 113, ("10.77.3.2", "10.77.1.2"), UDP4),  # out of a bridge, routed
    ],
)
def test_each_packet_once(told: Told, port: int, count: int, ends: tuple[str, str], header: int) -> None:
    """A host sees both directions of a conversation, each packet at one hook, however many it passes."""
    flow = told.flow(f"dport = {port}")
    assert (flow["src"], flow["dst"]) == ends
    assert (flow["decision"], flow["rule"]) == ("allow", "talk")
    assert (flow["packets_original"], flow["packets_reply"]) == (count, count)
    assert (flow["bytes_original"], flow["bytes_reply"]) == (count * (header + 58), count * (header + 29))


@pytest.mark.parametrize(
    ("port", "count", "tags", "egress"),
    [(7008, 127, 1, False), (7009, 131, 2, False), (7010, 137, 1, True)],  # at TC the tag is not in the frame
)
def test_vlan(told: Told, port: int, count: int, tags: int, egress: bool) -> None:
    flow = told.flow(f"dport = {port}")
    assert (flow["src"], flow["dst"], flow["reason"]) == ("10.77.5.2", "10.77.5.1", "default")
    assert (flow["packets"], flow["bytes"]) == (count, count * (UDP4 + 4 * tags + 58))
    assert flow["egress"] is egress


def test_a_connection_as_the_interface_counts_it(told: Told) -> None:
    flow, counted = told.flow("dport = 7100"), told.counted["veth6"]
    assert (flow["decision"], flow["rule"], flow["proto"]) == ("allow", "streams", "tcp")
    assert flow["packets_original"] == counted["rx_packets"]
    assert flow["bytes_original"] == counted["rx_bytes"] + ETHERNET * counted["rx_packets"]
    assert flow["packets_reply"] == counted["tx_packets"]
    assert flow["bytes_reply"] == counted["tx_bytes"] + ETHERNET * counted["tx_packets"]
    assert flow["bytes_reply"] > 700_001


def test_what_the_stack_sends_merged_counts_as_frames(told: Told) -> None:
    """TCP leaves the host in pieces of up to 64 KiB; far away an XDP program has counted them as they are on a wire."""
    flow, frames, merged = told.flow("dport = 7101"), told.counted["far"], told.counted["veth7"]
    assert merged["tx_packets"] < frames["rx_packets"], "nothing was merged: the test shows nothing"
    assert (flow["packets_original"], flow["packets_reply"]) == (frames["rx_packets"], 0)
    assert flow["bytes_original"] == frames["rx_bytes"] + ETHERNET * frames["rx_packets"]
    assert flow["egress"] is True


def test_dropped(told: Told) -> None:
    flow = told.flow("dport = 7004")
    assert (flow["packets"], flow["bytes"]) == (53, 53 * (UDP4 + 58))
    assert (flow["decision"], flow["outcome"], flow["reason"]) == ("deny", "dropped", "default")


def test_all_in_all(told: Told) -> None:
    """The sum of all flows and of what belongs to none is what was parsed."""
    (ring,) = told.ledger["rings"]
    (sums,) = told.one.sql("SELECT sum(packets) AS packets, count(*) FILTER (NOT ended) AS open FROM flows")
    assert sums == {"packets": ring["packets"]["flows"], "open": 0}
    assert ring["packets"]["flows"] + ring["packets"]["untracked"] == ring["packets"]["parsed"]
    assert (ring["events"]["lost"], ring["events"]["held_back"], ring["events"]["gaps"]) == (0, 0, [])
