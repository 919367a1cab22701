"""The demo's servers: small, but each speaks its protocol on the wire, so a capture of the demo reads true.

HTTP/1.1 with one request a connection, a line database, the parts of RESP (Redis) a cache needs, DNS over UDP,
statsd over UDP. asyncio only: a machine of the demo is one light process.
"""

import asyncio
import ipaddress
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import cast

from ztlens.demo.network import MACHINES

HTTP_PORT, API_PORT, DATABASE_PORT, CACHE_PORT, DNS_PORT, STATSD_PORT = 80, 8080, 5432, 6379, 53, 8125
TYPE_OF_FAMILY = {4: 1, 6: 28}
"""DNS record types A and AAAA (RFC 1035, RFC 3596)."""
CACHE_ENTRIES = 1000

Handler = Callable[[str, int], Awaitable[str]]
"""(path, family of the visitor) → body."""
Line = Callable[[str], str]
"""One line in → one answer, its line ends included."""


async def serve_http(addresses: Iterable[str], port: int, handler: Handler) -> asyncio.Server:
    """Answer GET on `addresses`; a handler that fails is a 502, as of any gateway."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            family = 6 if ":" in writer.get_extra_info("peername")[0] else 4
            try:
                status, body = "200 OK", await handler(request.split(" ", 2)[1], family)
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                status, body = "502 Bad Gateway", f"{error}\n"
            content = body.encode()
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()
        except (OSError, EOFError, IndexError, asyncio.LimitOverrunError):
            pass  # a scanner: connects, says nothing or nonsense, goes
        finally:
            writer.close()

    return await asyncio.start_server(connection, list(addresses), port)


async def serve_lines(addresses: Iterable[str], port: int, answer: Line) -> asyncio.Server:
    """Answer line after line until the other side has had enough."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(answer(line.decode("latin-1").strip()).encode())
                await writer.drain()
        except (OSError, ValueError):
            pass  # reset, or a line beyond the reader's limit: not a client of ours
        finally:
            writer.close()

    return await asyncio.start_server(connection, list(addresses), port)


def database_answer(line: str) -> str:
    """`GET key` → a row; the table holds every key."""
    verb, _, key = line.partition(" ")
    return f"ROW {key} {'*' * 64}\n" if verb == "GET" and key else "ERROR what?\n"


def cache_answers() -> Line:
    """A cache of its own: inline RESP commands GET, SET, KEYS."""
    entries: dict[str, str] = {}

    def answer(line: str) -> str:
        verb, *arguments = line.split(" ", 2)
        match verb.upper(), arguments:
            case "GET", [key]:
                value = entries.get(key)
                return "$-1\r\n" if value is None else f"${len(value)}\r\n{value}\r\n"
            case "SET", [key, value]:
                if len(entries) >= CACHE_ENTRIES:
                    del entries[next(iter(entries))]
                entries[key] = value
                return "+OK\r\n"
            case "KEYS", _:
                return f":{len(entries)}\r\n"
        return "-ERR unknown command\r\n"

    return answer


def dns_query(serial: int, name: str, family: int) -> bytes:
    """A query for the A or AAAA record of `name`."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return (
        struct.pack("!6H", serial, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", TYPE_OF_FAMILY[family], 1)
    )


def dns_reply(query: bytes) -> bytes:
    """The reply to `query`: the address of `<machine>.demo`, or that there is no such name. ValueError: not a query."""
    end = query.find(b"\0", 12)
    if len(query) < 17 or end < 0 or len(query) < end + 5:
        raise ValueError("not a DNS query")
    machine = MACHINES.get(query[13 : 13 + query[12]].decode("latin-1"))
    kind = int.from_bytes(query[end + 1 : end + 3], "big")
    family = {number: family for family, number in TYPE_OF_FAMILY.items()}.get(kind)
    question = query[12 : end + 5]
    if machine is None or family is None:
        return query[:2] + struct.pack("!5H", 0x8583, 1, 0, 0, 0) + question
    address = ipaddress.ip_address(machine.address(family)).packed
    answer = struct.pack("!3HIH", 0xC00C, kind, 1, 60, len(address)) + address
    return query[:2] + struct.pack("!5H", 0x8580, 1, 1, 0, 0) + question + answer


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with `reply(datagram)`; None or ValueError: with nothing."""

    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self._reply = reply
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own does not inherit from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            reply = self._reply(data)
        except ValueError:
            return
        if reply and self._transport:
            self._transport.sendto(reply, addr)


async def serve_udp(addresses: Iterable[str], port: int, reply: Callable[[bytes], bytes | None]) -> None:
    """Answer datagrams on each of `addresses` (by name: a reply leaves with the address that was asked)."""
    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: Datagrams(reply), local_addr=(address, port))
