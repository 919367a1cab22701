"""What the demo's clients say on the wire: one coroutine an exchange.

Each raises OSError (refused, unreachable), TimeoutError or EOFError when it gets no answer, ValueError when the answer
is not what was asked for.
"""

import asyncio
import itertools
import os
import socket
import struct

from ztlens.demo.network import MACHINES
from ztlens.demo.servers import DNS_PORT, dns_query

PATIENCE = 5.0
"""Seconds an exchange that is allowed may take: only a stalled machine needs them."""

_serial = itertools.count(1)


async def talk(address: str, port: int, question: bytes, *, patience: float = PATIENCE) -> bytes:
    """Connect, send `question`, read what comes until the other side closes or a line has come."""
    async with asyncio.timeout(patience):
        reader, writer = await asyncio.open_connection(address, port)
        try:
            if not question:
                return b""
            writer.write(question)
            answer = await (reader.read() if question.startswith(b"GET /") else reader.readline())
        finally:
            writer.close()
    if not answer:
        raise EOFError(f"{address} closed without an answer")
    return answer


async def http_get(address: str, port: int, path: str) -> str:
    """The body of `path`; ValueError unless the status is 200."""
    host = f"[{address}]" if ":" in address else address
    answer = (await talk(address, port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())).decode()
    head, _, body = answer.partition("\r\n\r\n")
    if not head.startswith("HTTP/1.1 200 "):
        raise ValueError(f"http://{host}:{port}{path}: {head.splitlines()[0]}: {body.strip()}")
    return body


async def _ask(address: str, port: int, question: bytes, patience: float) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect((address, port))
        await loop.sock_sendall(asking, question)
        async with asyncio.timeout(patience):
            return await loop.sock_recv(asking, 4096)


async def ask_udp(address: str, port: int, question: bytes, *, patience: float = PATIENCE, tries: int = 3) -> bytes:
    """Send a datagram, wait for one; again when none comes. ConnectionRefusedError: ICMP says nobody listens."""
    for _ in range(tries - 1):
        try:
            return await _ask(address, port, question, patience)
        except TimeoutError:
            continue
    return await _ask(address, port, question, patience)


async def resolve(name: str, family: int) -> str:
    """The address of `name` as the demo's DNS gives it, asked over the same family."""
    serial = next(_serial) & 0xFFFF
    reply = await ask_udp(MACHINES["dns"].address(family), DNS_PORT, dns_query(serial, name, family))
    if reply[:2] != serial.to_bytes(2, "big") or int.from_bytes(reply[6:8], "big") != 1:
        raise ValueError(f"no address for {name}")
    return socket.inet_ntop(*((socket.AF_INET, reply[-4:]) if family == 4 else (socket.AF_INET6, reply[-16:])))


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


async def ping(address: str, *, size: int = 56, patience: float = PATIENCE) -> None:
    """One ICMP echo with `size` (even) bytes; more than the MTU goes in fragments."""
    loop = asyncio.get_running_loop()
    number, serial = os.getpid() & 0xFFFF, next(_serial) & 0xFFFF
    if ":" in address:
        family, protocol, request, reply, header = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, 0
    else:
        family, protocol, request, reply, header = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, 20
    echo = struct.pack("!BBHHH", request, 0, 0, number, serial) + bytes(size)
    # The kernel fills in the checksum of ICMPv6 alone (RFC 3542, 3.1).
    echo = echo[:2] + _checksum(echo).to_bytes(2, "big") + echo[4:]
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.setblocking(False)
        raw.connect((address, 0))
        await loop.sock_sendall(raw, echo)
        async with asyncio.timeout(patience):
            while True:  # a raw socket hears all ICMP from there
                heard = (await loop.sock_recv(raw, 65536))[header:]
                if heard[0] == reply and heard[4:8] == struct.pack("!HH", number, serial):
                    return
