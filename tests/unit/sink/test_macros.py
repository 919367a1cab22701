"""Addresses in SQL against Python's ipaddress."""

import ipaddress
import random
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from sink.store import Store, memory_store


@pytest.fixture(scope="module")
def memory() -> Iterator[Store]:
    """One for all that ask."""
    store = memory_store()
    yield store
    store.close()


def addresses(count: int) -> list[int]:
    """IPv6 addresses with runs of zeros of every length at every place, and some by chance."""
    rng = random.Random(5952)
    out = [0, 1, (1 << 128) - 1, 0xFD << 120, 0xFFFF_0102_0304, 0x0102_0304, 1 << 127]
    for first in range(8):
        for past in range(first, 9):
            groups = [rng.randrange(1, 65536) for _ in range(8)]
            groups[first:past] = [0] * (past - first)
            out.append(int.from_bytes(b"".join(group.to_bytes(2, "big") for group in groups), "big"))
    for _ in range(count):
        groups = [rng.choice([0, 0, 0, rng.randrange(65536), rng.randrange(16)]) for _ in range(8)]
        out.append(int.from_bytes(b"".join(group.to_bytes(2, "big") for group in groups), "big"))
    return out


def test_ipv6_as_python_writes_it(memory: Store) -> None:
    given = addresses(5000)
    table = pa.table(
        {
            "hi": pa.array([number >> 64 for number in given], pa.uint64()),
            "lo": pa.array([number & ((1 << 64) - 1) for number in given], pa.uint64()),
            "text": [str(ipaddress.IPv6Address(number)) for number in given],
        }
    )
    cursor = memory.cursor().register("given", table)
    cursor.execute("SELECT count(*) FROM given")
    assert cursor.fetchone() == (len(given),)
    cursor.execute(
        "SELECT text, address_text(hi, lo, 6) FROM given WHERE address_text(hi, lo, 6) IS DISTINCT FROM text"
    )
    assert cursor.fetchall() == []
    cursor.execute("SELECT text FROM given WHERE ip(text) IS DISTINCT FROM address_number(hi, lo)")
    assert cursor.fetchall() == []


def test_ipv6_is_read_in_every_notation(memory: Store) -> None:
    cursor = memory.cursor()
    for text in ("::", "::1", "1::", "FD00::A", "0:0:0:0:0:0:0:1", "2001:0db8:0000::0001", "1:2:3:4:5:6:7:8", "1::8"):
        cursor.execute("SELECT ip(?)::VARCHAR", [text])
        assert cursor.fetchone() == (str(int(ipaddress.IPv6Address(text))),), text


def test_ipv4(memory: Store) -> None:
    cursor = memory.cursor()
    for text in ("0.0.0.0", "10.0.1.10", "127.0.0.1", "255.255.255.255", "192.168.86.250"):
        cursor.execute(
            "SELECT address_text(0::UBIGINT, $n::UBIGINT, 4), ip($text) = $n",
            {"n": int(ipaddress.IPv4Address(text)), "text": text},
        )
        assert cursor.fetchone() == (text, True)


def test_an_unknown_family_has_no_text(memory: Store) -> None:
    assert memory.cursor().execute("SELECT address_text(0::UBIGINT, 7::UBIGINT, 0)").fetchone() == (None,)


NONSENSE = ("10.0.0.256", "10.0.0", "10.0.0.1.2", "x", "", "10.0.0.-1", "10.0.0.01", " 10.0.0.1", ":", ":1", "fd00:::1",
            "a::b::c", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "::1:2:3:4:5:6:7:8", "12345::", "g::", "1_0::", "::1.2.3",
            "10.0.0.1::", "fd00::1/64")  # fmt: skip


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_address(memory: Store, text: str) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="is no address"):
        memory.cursor().execute("SELECT ip(?)", [text]).fetchall()
    for network in ("10.0.0.0/8", "0.0.0.0/0", "fd00::/8"):
        assert memory.cursor().execute("SELECT in_network(?, ?)", [text, network]).fetchall() == [(None,)]


NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.2.0/23", "10.1.2.3", "10.1.2.3/32", "128.0.0.0/1", "10.1.3.9/24",
            "::/0", "fd00:2::/64", "fd00::/8", "8000::/1", "::1", "fd00:2::5/128", "2001:db8::/32")  # fmt: skip
MEMBERS = ("10.1.2.3", "10.1.3.9", "10.255.0.1", "11.0.0.0", "200.1.1.1", "0.0.0.0", "255.255.255.255", "::", "::1",
           "fd00:2::5", "fd00:2:0:1::", "fe80::1", "2001:db8:ffff::", "2001:db9::", "ffff::")  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_in_network_as_python_says(memory: Store, network: str) -> None:
    """Of numbers and of text, with the network as a constant, which is worked out once, and as a value of a row."""
    inside = ipaddress.ip_network(network, strict=False)
    given = [ipaddress.ip_address(text) for text in MEMBERS]
    table = pa.table({
        "text": MEMBERS, "family": pa.array([address.version for address in given], pa.uint8()),
        "network": [network] * len(MEMBERS),
    })  # fmt: skip
    cursor = memory.cursor().register("given", table)
    expected = {str(address) for address in given if address in inside}
    for condition in (f"in_network(ip(text), family, '{network}')", f"in_network(text, '{network}')",
                      "in_network(ip(text), family, network)", "in_network(text, network)"):  # fmt: skip
        cursor.execute(f"SELECT text FROM given WHERE {condition}")
        assert {text for (text,) in cursor.fetchall()} == expected, condition


def test_any_address_in_any_network(memory: Store) -> None:
    rng = random.Random(1918)
    pairs = []
    for _ in range(3000):
        length, kind = rng.choice(((32, ipaddress.IPv4Address), (128, ipaddress.IPv6Address)))
        bits = rng.randrange(length + 1)
        base = rng.getrandbits(length)
        near = rng.getrandbits(length) >> rng.randrange(length)
        pairs.append((str(kind(base ^ near)), f"{kind(base)}/{bits}"))
    table = pa.table({"text": [text for text, _ in pairs], "network": [network for _, network in pairs]})
    cursor = memory.cursor().register("given", table)
    found = cursor.execute("SELECT text, network, in_network(text, network) FROM given").fetchall()
    for text, network, inside in found:
        assert inside == (ipaddress.ip_address(text) in ipaddress.ip_network(network, strict=False)), (text, network)
    assert 500 < sum(inside for _, _, inside in found) < 2500


@pytest.mark.parametrize(
    ("text", "network", "inside"),
    [
        ("::ffff:10.1.2.3", "10.0.0.0/8", True), ("::FFFF:a01:203", "10.0.0.0/8", True),
        ("0:0:0:0:0:ffff:10.1.2.3", "11.0.0.0/8", False), ("10.1.2.3", "::ffff:10.0.0.0/104", True),
        ("::ffff:10.1.2.3", "::ffff:10.0.0.0/104", True), ("11.1.2.3", "::ffff:10.0.0.0/104", False),
        ("::ffff:10.1.2.3", "::/0", False), ("10.1.2.3", "::/0", False), ("::a01:203", "10.0.0.0/8", False),
        (None, "10.0.0.0/8", None), ("10.1.2.3", None, None),
    ],
)  # fmt: skip
def test_a_mapped_address_is_the_one_it_stands_for(
    memory: Store, text: str | None, network: str | None, inside: bool | None
) -> None:
    found = memory.cursor().execute("SELECT in_network($t::VARCHAR, $n::VARCHAR)", {"t": text, "n": network}).fetchone()
    assert found == (inside,)


@pytest.mark.parametrize("network", ["x", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/8/8", "::/129", "10.0.0/8", "", "/8"])
def test_nonsense_is_no_network(memory: Store, network: str) -> None:
    for sql in ("SELECT in_network('10.0.0.1', $n)", "SELECT in_network(1::UHUGEINT, 4, $n)"):
        with pytest.raises(duckdb.InvalidInputException, match="is no network"):
            memory.cursor().execute(sql, {"n": network}).fetchall()
