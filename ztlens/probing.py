"""Asks the kernel program what it makes of a tuple: a frame made for it, run by test-run in private maps."""

import ipaddress
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from schemas import codes
from schemas.structs import KNOBS

if TYPE_CHECKING:
    from policy.compile import Compiled
    from policy.explain import Explanation

SPORT = 40_000
"""The opener's port, or the id of an ICMP query: none that a built-in rule asks for."""
HOP_LIMIT = 64
FIELDS = ("decision", "reason", "rule", "src_identity", "dst_identity")
_ETHERNET = bytes(12)
_TCP, _UDP, _SCTP = 6, 17, 132
_SYN = 2


def opening_frame(src: bytes, dst: bytes, proto: int, port: int, sport: int = SPORT) -> bytes:
    """The Ethernet frame that opens a conversation; addresses are packed, 4 or 16 bytes; `port` is the type of ICMP.
    Checksums are 0: nothing in the datapath looks at them."""
    over4 = len(src) == 4
    if proto == _TCP:
        body = struct.pack("!HHIIBBHHH", sport, port, 1, 0, 5 << 4, _SYN, 65535, 0, 0)
    elif proto == _UDP:
        body = struct.pack("!HHHH", sport, port, 8, 0)
    elif proto == _SCTP:
        body = struct.pack("!HHII", sport, port, 0, 0)
    elif proto == (1 if over4 else 58):
        body = struct.pack("!BBHHH", port, 0, 0, sport, 1)
    else:
        body = bytes(8)
    if over4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, HOP_LIMIT, proto, 0)
        return _ETHERNET + b"\x08\x00" + head + src + dst + body
    head = struct.pack("!IHBB", 6 << 28, len(body), proto, HOP_LIMIT)
    return _ETHERNET + b"\x86\xdd" + head + src + dst + body


def kernel_answers(
    compiled: "Compiled", explained: "Iterable[Explanation]", loader: str = "auto"
) -> list[dict[str, Any]]:
    """FIELDS and `report_only` as the kernel program says them of each tuple. Raises KernelError; takes seconds."""
    from collector.errors import KernelError
    from collector.kernel.private import SMALL_KNOBS, private_datapath

    out = []
    knobs = SMALL_KNOBS | _room_for(compiled)
    with private_datapath(knobs, loader=loader, sample=1, budget=1_000_000_000) as datapath:
        datapath.apply(compiled, datapath.revision + 1)
        for one in explained:
            src, dst = (ipaddress.ip_address(text).packed for text in (one.src, one.dst))
            datapath.run(opening_frame(src, dst, one.proto, one.port))
            events = datapath.read(16)
            if events is None:
                raise KernelError("the kernel program gave no verdict", "please report the policy and the tuple")
            datapath.release(events.start + len(events.rows) * datapath.stride)
            out.append(described(events.rows[-1], compiled))
            flows = datapath.handle.flows
            flows.remove(flows.read()[0])  # the next tuple may be this one's reply
    return out


def described(row: Any, compiled: "Compiled") -> dict[str, Any]:
    """An event's judgement in words."""
    return {
        "decision": codes.word(codes.Decision(int(row["decision"]))),
        "reason": codes.word(codes.Reason(int(row["reason"]))),
        "rule": compiled.rule_name(int(row["rule"])),
        "src_identity": compiled.identity_name(int(row["src_identity"])),
        "dst_identity": compiled.identity_name(int(row["dst_identity"])),
        "report_only": bool(int(row["flags"]) & codes.Flag.REPORT_ONLY),
    }


def agrees(one: "Explanation", kernel: dict[str, Any]) -> bool:
    """Whether the kernel says the same. What it refuses before it looks at addresses has no identities there."""
    unseen = {"src_identity", "dst_identity"} if kernel["reason"] == "icmp_unrelated" else set()
    return all(getattr(one, name) == kernel[name] for name in (*FIELDS, "report_only") if name not in unseen)


def _room_for(compiled: "Compiled") -> dict[str, int]:
    """Knobs that a policy needs beyond the defaults."""
    sizes = compiled.sizes()
    classes = max(sizes["source_classes"], sizes["destination_classes"], sizes["port_classes"])
    needed = {"RULES_MAX": sizes["rules"], "CLASSES_MAX": classes, "PREFIXES_MAX": sizes["prefixes"]}
    defaults = {knob.name: knob.default for knob in KNOBS}
    return {name: -(-n // 64) * 64 for name, n in needed.items() if n > defaults[name]}
