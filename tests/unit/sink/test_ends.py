"""Verdicts of an address, found the short way: the very rows a plain question over the view gives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from schemas.errors import InputError
from schemas.filters import Filters, predicate
from sink.client import History
from sink.history import ends
from sink.history.recent import place
from sink.store import Commit, memory_store, prepare
from tests.support import batches
from ztlens import show
from ztlens.verdicts import recorded, select

SECOND = 10**9
FIRST = batches.START + batches.CLOCK
CLIENT, SERVER, OTHER = b"\0" * 12 + b"\x0a\0\x01\x07", b"\0" * 12 + b"\x0a\0\x02\x05", b"\0" * 12 + b"\x0a\0\x03\x01"
SIX = b"\xfd" + b"\0" * 11 + b"\x0a\0\x01\x07"
MAPPED = b"\0" * 10 + b"\xff\xff" + b"\x0a\0\x01\x07"
PAIRS = [(CLIENT, SERVER, 4), (SERVER, CLIENT, 4), (CLIENT, CLIENT, 4), (OTHER, SERVER, 4), (SIX, SIX, 6),
         (SIX, MAPPED, 6), (CLIENT, SERVER, 6), (MAPPED, SIX, 6), (b"\xff" * 16, OTHER, 6)]  # fmt: skip


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    """Each of PAIRS at each of 40 seconds, all of a second at the same time, of two nodes; some without an address."""
    rows = np.concatenate(
        [
            batches.verdict(time=batches.START + second * SECOND, flow_id=1 + second * 16 + i, src=src, dst=dst,
                            family=family, decision=1 + (second + i) % 2)
            for second in range(40)
            for i, (src, dst, family) in enumerate(PAIRS)
        ]
        + [batches.untracked(time=batches.START + 41 * SECOND, family=0)]
    )  # fmt: skip
    store = memory_store()
    for node in ("n2", "n1"):
        store.append(Commit(batches=[prepare(batches.batch(rows, node=node, ring=f"ring-{node}"))]))
    yield History.on_store(store)
    store.close()


def plainly(history: History, asked: Filters) -> list[dict[str, Any]]:
    return list(show.records(history.sql(select(predicate(asked)))))


ASKED = {
    "either end": Filters(ip=("10.0.1.7",)),
    "opener": Filters(from_ip=("10.0.1.7",)),
    "responder": Filters(to_ip=(" 10.0.1.7 ",)),
    "both ends": Filters(from_ip=("10.0.1.7",), to_ip=("10.0.2.5",)),
    "either and one": Filters(ip=("10.0.1.7",), from_ip=("10.0.2.0/24",)),
    "either, of several": Filters(ip=("10.0.1.7", "10.0.3.1")),
    "opener, of several": Filters(from_ip=("10.0.1.7", "10.0.3.1"), to_ip=("10.0.2.5",)),
    "network": Filters(ip=("10.0.0.0/22",)),
    "not on its own bits": Filters(ip=("10.0.1.99/24",)),
    "all of IPv4": Filters(ip=("0.0.0.0/0",)),
    "all of IPv6": Filters(from_ip=("::/0",)),
    "IPv6": Filters(ip=("fd00::a00:107",)),
    "IPv6, half of it": Filters(ip=("fd00::/64",)),
    "IPv6, less than half": Filters(to_ip=("fc00::/7",)),
    "IPv6, more than half": Filters(ip=("fd00::a00:100/120",)),
    "the last": Filters(ip=("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",)),
    "mapped": Filters(ip=("::ffff:10.0.1.7",)),
    "low IPv6": Filters(from_ip=("::a00:107",)),
    "nobody": Filters(ip=("192.0.2.1",)),
    "and other words": Filters(ip=("10.0.1.7",), decision=("deny",), node=("n1",)),
    "by hand": Filters(ip=("10.0.1.7",), where=("COLUMNS('^src$') = dst OR verdicts.sport > 1",)),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_the_same_rows(history: History, asked: Filters) -> None:
    expected = plainly(history, asked)
    assert bool(expected) == (asked.ip != ("192.0.2.1",))
    assert list(recorded(history, asked, None)) == expected
    for last in (7, 100_000):
        assert list(recorded(history, asked, last)) == expected[-last:]


@pytest.mark.parametrize(("since", "until"), [(0, 1), (5, 8), (39, 100), (41, 42), (50, 60), (-9, 0)])
def test_borders_of_a_span(history: History, since: int, until: int) -> None:
    """A moment of many rows is in the span it begins, and not in the one it ends."""
    asked = Filters(ip=("10.0.1.7",))
    begin, end = FIRST + since * SECOND, FIRST + until * SECOND
    inside = [(row["time"], row["node"], row["position"]) for row in plainly(history, asked)]
    inside = [at for at in inside if begin <= at[0] < end]
    assert len(inside) == 6 * max(0, min(until, 40) - max(since, 0))
    rows, rest = ends.found(asked)
    assert rest == Filters()
    found = history.recent(since=begin, until=end, limit=1000, rows=rows)
    places = [place(found, i) for i in range(found.num_rows)]
    assert [(at.time, at.node, at.position) for at in places] == inside


def test_only_one_address_is_found() -> None:
    for asked in (Filters(decision=("deny",)), Filters(ip=("10.0.0.1", "10.0.0.2"))):
        assert ends.found(asked) == ("store.verdicts", asked)
    two = ("10.0.0.2", "10.0.0.3")
    assert ends.found(Filters(from_ip=("10.0.0.1",), to_ip=two, since="1h")) == (
        "(SELECT * FROM store.verdicts WHERE src_lo = 167772161::UBIGINT AND src_hi = 0::UBIGINT AND family = 4)",
        Filters(to_ip=two, since="1h"),
    )


def test_nonsense_is_no_address() -> None:
    with pytest.raises(InputError, match=r"'10\.0\.0' is not an address or prefix"):
        ends.found(Filters(ip=("10.0.0",)))
