"""Random damage to good packets: the kernel and the reference parser agree, and the books balance."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.corpus import CORPUS
from tests.support.packets import A6, B6, A, B, Talk, ping
from tests.support.reference_parser import Parsed, parse
from tests.support.workbench import Workbench, differences

KNOWN = [Talk(p, *ends).there("S") for p in ("tcp", "udp") for ends in ((A, B), (A6, B6))] + [ping(A, B), ping(A6, B6)]
"""Flows that are there before: what the corpus' ICMP errors are about."""


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A packet of the corpus with up to 6 bytes changed, perhaps cut or with a trailer."""
    frame = bytearray(draw(st.sampled_from(CORPUS)))
    interesting = st.sampled_from([0, 1, 4, 6, 17, 43, 44, 51, 58, 59, 60, 64, 69, 79, 96, 128, 132, 255])
    places = st.integers(12, min(len(frame) - 1, 140))
    for at, value in draw(st.lists(st.tuples(places, st.one_of(interesting, st.integers(0, 255))), max_size=6)):
        frame[at] = value
    if draw(st.integers(0, 3)) == 0:
        del frame[draw(st.integers(14, len(frame))) :]
    if draw(st.integers(0, 3)) == 0:
        frame += draw(st.binary(max_size=50))
    return bytes(frame)


def expected(parsed: Parsed, known: dict) -> dict:
    """What the event says of a packet, when `known` flows are there (key → (src, sport), the opener)."""
    if parsed.kind == "malformed":
        return {"reason": "malformed", "event": "sample", "rule": 2}
    ends = {n: getattr(parsed, n) for n in ("family", "proto", "src", "dst", "sport", "dport")}
    if parsed.kind == "later_fragment":
        return ends | {"reason": "headless_fragment", "event": "sample"}
    if parsed.kind.startswith("icmp_"):
        if parsed.key not in known:
            return ends | {"reason": "icmp_unrelated", "event": "sample"}
        return {"reason": "no_policy", "event": "sample", "packets": (1, 1), "src": known[parsed.key].src}
    if parsed.key in known:
        opener = known[parsed.key]
        forth = (opener.src, opener.sport) == (parsed.src, parsed.sport) or parsed.src == parsed.dst
        return {"src": opener.src, "dst": opener.dst, "direction": "original" if forth else "reply"}
    if parsed.tcp_flags & 0x12 == 0x12:  # SYN+ACK first seen: a reply
        swapped = {"src": "dst", "dst": "src", "sport": "dport", "dport": "sport"}
        return {"event": "new", "packets": (0, 1)} | {n: ends[other] for n, other in swapped.items()}
    return ends | {"event": "new", "packets": (1, 0)}


@settings(max_examples=1500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_damaged_packets(bench: Workbench, frame: bytes) -> None:
    bench.fresh()
    parsed, known = parse(frame), {}
    if parsed.kind == "icmp_error" or parsed.key is not None:
        for other in KNOWN:
            bench.send(other)
            opener = parse(other)
            known[opener.key] = opener
    seen = bench.send(frame)
    bench.check()
    if parsed.kind == "non_ip":
        assert (seen.events, bench.counters()["non_ip"]) == ([], 1)
        return
    event = seen.events[-1]
    if parsed.tcp_flags & 0x12 == 2 and parsed.key in known and known[parsed.key].src != parsed.src:
        # A SYN without ACK from the responder: one conversation ends, the next begins.
        assert (seen.kinds, event["src"]) == (["end", "new"], parsed.src)
        return
    assert (len(seen.events), differences(event, expected(parsed, known))) == (1, {})
