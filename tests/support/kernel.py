"""What kernel tests share: frames, a policy made by hand, names for pins that nobody else has."""

import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from collector.kernel import pins
from collector.kernel.removal import remove_datapath
from schemas.codes import Decision
from schemas.structs import PORTS_PER_SLOT, RULE, SLOT, dtype
from tests.support.netns import Lab, write_sysctls

PREFIX = np.dtype(
    [("family", "u1"), ("length", "u1"), ("addr", "V16"), ("identity", "<u4"), ("source_class", "<u4"),
     ("destination_class", "<u4")]
)  # fmt: skip
KNOBS = {"FLOWS_MAX": 4096, "RING_BYTES": 65_536, "SWEEP_MAX": 8}
"""Small, quick to verify, and the same in most kernel tests: each set of knobs is compiled once a run."""
_serial = itertools.count()


@contextmanager
def instance() -> Iterator[Path]:
    """A directory for pins that only this test uses; whatever is pinned there at the end is detached and unpinned."""
    path = Path("/sys/fs/bpf/ztlens-test") / f"{os.getpid()}x{next(_serial)}"
    try:
        yield path
    finally:
        remove_datapath(path)
        for name in ("", "+new"):
            pins.remove_all(path.with_name(path.name + name))


def udp_frame(source: str, sport: int, destination: str, dport: int, payload: bytes = b"") -> bytes:
    """An Ethernet frame with a UDP datagram over IPv4 (no checksums)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + addresses
    return bytes(12) + b"\x08\x00" + ip + struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def compiled(
    *, prefixes: Sequence[tuple[str, int, int, int, int]] = (), rules: int = 0, classes: int = 1, seed: int = 0
) -> Any:
    """Something of the shape of policy.compile.Compiled, filled with numbers that say where they belong.

    `prefixes`: (IPv4 address, length, identity, source class, destination class).
    """
    numbers = np.random.default_rng(seed)
    table = np.zeros(len(prefixes), PREFIX)
    for i, (address, length, identity, source, destination) in enumerate(prefixes):
        table[i] = (4, length, np.void(bytes(12) + socket.inet_aton(address)), identity, source, destination)
    words = max(1, -(-rules // 64))
    bits = numbers.integers(0, 2, (3, classes, words * 64), np.uint8)
    bits[:, :, rules:] = 0
    vectors = np.packbits(bits, axis=2, bitorder="little").view(np.uint64)
    what = np.zeros(rules, dtype(RULE))
    what["decision"], what["sample"] = Decision.ALLOW, np.arange(rules)
    slot = np.zeros((), dtype(SLOT))
    slot["words"], slot["has_policy"], slot["default_decision"], slot["builtins"] = words, 1, Decision.DENY, 15
    return SimpleNamespace(
        policy=None, prefixes=table, ports=numbers.integers(0, classes, PORTS_PER_SLOT).astype(np.uint32),
        source_rules=vectors[0], destination_rules=vectors[1], port_rules=vectors[2], rules=what, slot=slot,
    )  # fmt: skip


def quiet_veth(lab: Lab, *, mtu: int = 1500) -> tuple[str, socket.socket]:
    """A namespace whose `veth0` nobody talks on by himself (no IPv6), and a raw socket that sends from its peer."""
    inner, outer = lab.namespace("in"), lab.namespace("out")
    for netns in (inner, outer):
        write_sysctls(netns, {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"})
    lab.link(inner, "veth0", outer, "veth1", mtu=mtu)
    wire = lab.open(outer, socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind(("veth1", 0))
    return inner, wire
