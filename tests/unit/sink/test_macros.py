"""Addresses in SQL against Python's ipaddress."""

import ipaddress
import random

import duckdb
import pyarrow as pa
import pytest

from sink.store import Store


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


@pytest.mark.parametrize("text", ["10.0.0.256", "10.0.0", "x", "10.0.0.-1"])
def test_nonsense_is_no_address(memory: Store, text: str) -> None:
    with pytest.raises(duckdb.ConversionException):
        memory.cursor().execute("SELECT ip(?)", [text]).fetchall()


NETWORKS = ("0.0.0.0/0", "10.0.0.0/8", "10.1.2.0/23", "10.1.2.3", "10.1.2.3/32", "128.0.0.0/1", "10.1.3.9/24",
            "::/0", "fd00:2::/64", "fd00::/8", "8000::/1", "::1", "fd00:2::5/128", "2001:db8::/32")  # fmt: skip
MEMBERS = ("10.1.2.3", "10.1.3.9", "10.255.0.1", "11.0.0.0", "200.1.1.1", "0.0.0.0", "255.255.255.255", "::", "::1",
           "fd00:2::5", "fd00:2:0:1::", "fe80::1", "2001:db8:ffff::", "2001:db9::", "ffff::")  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_in_network_as_python_says(memory: Store, network: str) -> None:
    inside = ipaddress.ip_network(network, strict=False)
    given = [ipaddress.ip_address(text) for text in MEMBERS]
    table = pa.table({"text": MEMBERS, "family": pa.array([address.version for address in given], pa.uint8())})
    cursor = memory.cursor().register("given", table)
    cursor.execute(f"SELECT text FROM given WHERE in_network(ip(text), family, '{network}')")
    assert {text for (text,) in cursor.fetchall()} == {str(address) for address in given if address in inside}
