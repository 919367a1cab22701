"""A capture through the kernel program: each packet by test-run in private maps, no interface touched."""

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas import codes
from schemas.codes import EventKind, Mode, Reason
from ztlens import capture
from ztlens.errors import Missing

BUDGET = 1_000_000_000
MIDSTREAM_NS = 600 * 1_000_000_000
FIELDS = ("index", "src", "dst", "sport", "dport", "proto", "decision", "reason", "rule", "src_identity",
          "dst_identity", "outcome", "direction", "event")  # fmt: skip
NON_IP = dict.fromkeys(FIELDS) | {"decision": "allow", "reason": "non_ip", "outcome": "passed"}
_WORDS = {
    "decision": codes.words(codes.Decision), "reason": codes.words(codes.Reason), "outcome": codes.words(codes.Outcome),
    "direction": codes.words(codes.Direction), "event": codes.words(codes.EventKind),
}  # fmt: skip


def judge(file: Path, compiled: Any, mode: Mode = Mode.MONITOR, loader: str = "auto") -> Iterator[dict[str, Any]]:
    """One verdict a packet, in the capture's order, keys FIELDS; addresses are null when malformed.

    The clock is the capture's; where it steps back it stands still, as the kernel's would. Raises KernelError (no
    privilege, nothing to load), BadInput (no capture).
    """
    packets = capture.read(file)
    first = next(packets, None)  # before the kernel is asked for anything: a bad file is told at once
    if first is None:
        return
    from collector.kernel.private import private_datapath

    datapath = private_datapath(judge=True, loader=loader)
    try:
        datapath.apply(compiled, datapath.next_revision)
        datapath.set_mode(mode)
        datapath.set_config(sample=1, budget=BUDGET, midstream_until=first.time + MIDSTREAM_NS)
        clock = first.time
        for packet in _chain(first, packets):
            clock = max(clock, packet.time, 1)
            before = datapath.counters()["non_ip"] if not _ip(packet.frame) else None
            datapath.run(packet.frame, time_ns=clock)
            row = _row(datapath)
            if row is None:
                if before is None or datapath.counters()["non_ip"] == before:
                    raise Missing(
                        f"the kernel program gave no verdict for packet {packet.index}", "please report the capture"
                    )
                yield NON_IP | {"index": packet.index}
                continue
            yield {"index": packet.index} | _described(row, compiled)
    finally:
        datapath.close()


def _chain(first: capture.Captured, rest: Iterator[capture.Captured]) -> Iterator[capture.Captured]:
    yield first
    yield from rest


def _ip(frame: bytes) -> bool:
    """Whether a plain Ethernet header says IP; with VLAN tags the kernel's own count decides."""
    return frame[12:14] in (b"\x08\x00", b"\x86\xdd")


def _row(datapath: Any) -> Any:
    """The packet's own event: the last that is not the end of an older flow. Empties the ring."""
    row = None
    while (events := datapath.read(64)) is not None:
        kept = events.rows[events.rows["event"] != EventKind.END]
        if len(kept):
            row = kept[-1].copy()
        datapath.release(events.start + len(events.rows) * datapath.stride)
    return row


def _described(row: Any, compiled: Any) -> dict[str, Any]:
    # Of a malformed packet nothing that it says of itself can be relied on.
    known = int(row["family"]) in (4, 6) and int(row["reason"]) != Reason.MALFORMED
    proto = int(row["proto"])
    out: dict[str, Any] = {
        "src": _address(row["src"], row["family"]) if known else None,
        "dst": _address(row["dst"], row["family"]) if known else None,
        "sport": int(row["sport"]) if known else None, "dport": int(row["dport"]) if known else None,
        "proto": codes.PROTOCOLS.get(proto, str(proto)) if known else None,
        "rule": compiled.rule_name(int(row["rule"])),
        "src_identity": compiled.identity_name(int(row["src_identity"])) if known else None,
        "dst_identity": compiled.identity_name(int(row["dst_identity"])) if known else None,
    }  # fmt: skip
    for name, words in _WORDS.items():
        out[name] = words.get(int(row[name]), str(int(row[name])))
    return {name: out[name] for name in FIELDS[1:]}


def _address(raw: Any, family: int) -> str | None:
    data = bytes(raw.tobytes()) if hasattr(raw, "tobytes") else bytes(raw)
    if family == 4:
        return str(ipaddress.IPv4Address(data[12:]))
    return str(ipaddress.IPv6Address(data)) if family == 6 else None
