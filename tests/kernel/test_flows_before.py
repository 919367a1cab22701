"""Conversations older than ztlens: nobody saw who began them, and no change of policy may hold that against them."""

import pytest

from schemas.codes import Flag, Mode
from tests.support.packets import A6, B6, A, B, Talk
from tests.support.rules import NO_POLICY, Rule, Rules, identity_of
from tests.support.workbench import DROP, NS, PASS, Workbench, differences

SSH = Rules((Rule("10.0.0.1/32", "10.0.0.2/32", "tcp/22", True), Rule("fd00::1/128", "fd00::2/128", "tcp/22", True)))
ENDS = pytest.mark.parametrize("ends", [(A, B), (A6, B6)], ids=["IPv4", "IPv6"])


@ENDS
@pytest.mark.parametrize("first", ["there", "back"])
@pytest.mark.parametrize("then", ["there", "back"])
def test_a_session_from_before_is_allowed_by_either_way(
    bench: Workbench, ends: tuple[str, str], first: str, then: str
) -> None:
    """No policy, the first segment seen from either end; then a policy, and enforcement, long after the window."""
    bench.fresh(NO_POLICY, Mode.MONITOR, midstream=10 * NS)
    talk = Talk("tcp", *ends, dport=22)
    assert bench.send(getattr(talk, first)("PA")).action == PASS
    bench.apply(SSH)
    bench.d.set_mode(Mode.ENFORCE)
    seen = bench.send(getattr(talk, then)("PA"), 20 * NS)
    assert seen.action == PASS
    (event,) = seen.events
    opener, responder = ends if first == "there" else ends[::-1]  # the orientation stays, and so do all totals
    named = {end: identity_of(SSH, f"{end}/{128 if ':' in end else 32}") for end in ends}
    assert differences(event, {
        "event": "change", "decision": "allow", "src": opener, "dst": responder, "flags": {Flag.MIDSTREAM.name.lower()},
        "src_identity": named[opener], "dst_identity": named[responder],
        "packets": (2, 0) if first == then else (1, 1),
    }) == {}  # fmt: skip
    bench.check()


@ENDS
@pytest.mark.parametrize("first", ["there", "back"])
def test_what_neither_way_allows_is_dropped(bench: Workbench, ends: tuple[str, str], first: str) -> None:
    bench.fresh(NO_POLICY, Mode.ENFORCE, midstream=10 * NS)
    talk = Talk("tcp", *ends, dport=23)
    bench.send(getattr(talk, first)("PA"))
    bench.apply(SSH)
    for way in ("there", "back"):
        assert bench.send(getattr(talk, way)("PA"), NS).action == DROP
    bench.check()


@pytest.mark.parametrize("after", [-1, 0, 1])
def test_only_what_was_seen_in_time(bench: Workbench, after: int) -> None:
    """A segment without a conversation after the window is nobody's reply, whatever the policy becomes."""
    bench.fresh(Rules(), Mode.ENFORCE, midstream=10 * NS)
    talk = Talk("tcp", dport=22)
    assert bench.send(talk.back("PA"), 10 * NS + after).action == DROP
    bench.apply(SSH)
    assert bench.send(talk.back("PA"), 11 * NS).action == (PASS if after < 0 else DROP)
    bench.check()


def test_who_was_seen_to_begin_stays_who_began(bench: Workbench) -> None:
    """A SYN, or a SYN+ACK, leaves nothing to guess."""
    for opening, way in (("S", "back"), ("SA", "there")):
        bench.fresh(NO_POLICY, Mode.ENFORCE, midstream=10 * NS)
        talk = Talk("tcp", dport=22)
        bench.send(getattr(talk, way)(opening))
        bench.apply(SSH)
        assert bench.send(talk.there("A"), NS).action == DROP, opening
