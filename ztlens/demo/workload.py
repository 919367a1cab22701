"""One machine of the demo: `python -m ztlens.demo.workload PREFIX NAME PARENT PATIENCE`, started by `traffic`.

It moves into its namespace, starts its servers, says so on stdout (`{"ready": true}`), waits for a line on stdin,
then goes round and round what its clients do. After each round it writes `{"rounds": n, "done": {what: n}, "failed":
{what: n}, "over": false}`. With the next line on stdin its clients fall silent (a last such line, `over` true) and its
servers go on, so that nobody's exchange is cut off. It ends when stdin closes; the kernel ends it when its parent dies.
"""

import asyncio
import contextlib
import ctypes
import functools
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from ztlens.demo import clients, netns, servers
from ztlens.demo.network import MACHINES, DemoNetwork, Machine

PR_SET_PDEATHSIG = 1
FAMILIES = (4, 6)
SCANNED = ("frontend", "api", "database", "cache")
SCANNED_PORTS = (22, 80, 443, 3306, 5432, 6379, 8080)
DENIED_PATIENCE = 0.5
"""Seconds for what policy denies: when it is enforced, nobody answers."""
PINGED_BYTES = 3000
"""More than an MTU: it travels in fragments."""

Step = tuple[str, Callable[[], Awaitable[object]]]
"""What it is called in the counts, and the exchange."""


def address(name: str, family: int) -> str:
    """Where the machine `name` is."""
    return MACHINES[name].address(family)


async def front_page(path: str, family: int) -> str:
    """The frontend: asks the api, which it finds by name."""
    body = await clients.http_get(await clients.resolve("api.demo", family), servers.API_PORT, path)
    return f"<html><body>{body}</body></html>\n"


async def api_item(path: str, family: int) -> str:
    """The api: the cache's copy, else the database's row, which then goes into the cache."""
    key = path.rpartition("/")[2]
    cache = functools.partial(clients.talk, address("cache", family), servers.CACHE_PORT)
    if (await cache(f"GET {key}\r\n".encode())) != b"$-1\r\n":
        return f"{key} (cached)"
    row = (await clients.talk(address("database", family), servers.DATABASE_PORT, f"GET {key}\n".encode())).decode()
    await cache(f"SET {key} {row}".encode())
    return row.strip()


async def start_servers(machine: Machine) -> None:
    """What `machine` offers, on both of its addresses."""
    where = [machine.address(family) for family in FAMILIES]
    match machine.name:
        case "frontend":
            await servers.serve_http(where, servers.HTTP_PORT, front_page)
        case "api":
            await servers.serve_http(where, servers.API_PORT, api_item)
            await servers.serve_udp(where, servers.STATSD_PORT, lambda _: None)
        case "database":
            await servers.serve_lines(where, servers.DATABASE_PORT, servers.database_answer)
        case "cache":
            await servers.serve_lines(where, servers.CACHE_PORT, servers.cache_answers())
        case "dns":
            await servers.serve_udp(where, servers.DNS_PORT, servers.dns_reply)


def visitor_steps(serial: Iterator[int], _: float) -> Iterator[Step]:
    """Pages, each item asked for twice, and a ping: all of it allowed."""
    for _ in range(5):
        item = next(serial)
        for family in (*FAMILIES, *FAMILIES):
            page = functools.partial(clients.http_get, address("frontend", family), servers.HTTP_PORT)
            yield f"page/v{family}", functools.partial(page, f"/item/{item}")
    for family in FAMILIES:
        yield f"ping/v{family}", functools.partial(clients.ping, address("frontend", family))


def frontend_steps(_: Iterator[int], patience: float) -> Iterator[Step]:
    """The shortcut somebody left in the code: past the api, straight into the database."""
    for family in FAMILIES:
        where = address("database", family), servers.DATABASE_PORT
        yield (
            f"shortcut/v{family}",
            functools.partial(clients.talk, *where, b"GET shortcut\n", patience=patience),
        )


def cache_steps(_: Iterator[int], __: float) -> Iterator[Step]:
    """A metric to statsd at the api: one datagram, no answer, IPv4 only."""

    async def metric() -> None:
        with contextlib.suppress(TimeoutError):
            await clients.ask_udp(address("api", 4), servers.STATSD_PORT, b"cache.entries:1|c", patience=0.01, tries=1)

    yield "metric/v4", metric


def intruder_steps(_: Iterator[int], patience: float) -> Iterator[Step]:
    """Everything a compromised machine tries first. All but the public web page is denied."""
    for family, name in itertools.product(FAMILIES, SCANNED):
        for port in SCANNED_PORTS:
            yield (
                f"scan/v{family}",
                functools.partial(clients.talk, address(name, family), port, b"", patience=patience),
            )
    for family in FAMILIES:
        for name, port, question in (
            ("database", servers.DATABASE_PORT, b"GET passwords\n"),
            ("cache", servers.CACHE_PORT, b"KEYS *\r\n"),
        ):
            yield (
                f"steal-{name}/v{family}",
                functools.partial(clients.talk, address(name, family), port, question, patience=patience),
            )
        lookup = servers.dns_query(1, "database.demo", family)
        for what, port in (("lookup", servers.DNS_PORT), ("snmp", 161)):
            ask = functools.partial(clients.ask_udp, address("dns", family), port, lookup)
            yield f"{what}/v{family}", functools.partial(ask, patience=patience, tries=1)
        ping = functools.partial(clients.ping, address("database", family), patience=patience)
        yield f"ping/v{family}", ping
        yield f"big-ping/v{family}", functools.partial(ping, size=PINGED_BYTES)


Steps = Callable[[Iterator[int], float], Iterator[Step]]
"""Given serial numbers for items, and seconds to wait for what policy denies."""
ROUNDS: dict[str, tuple[Steps, float, int]] = {
    "visitor": (visitor_steps, 0.05, 1),
    "frontend": (frontend_steps, 0.2, 1),
    "cache": (cache_steps, 0.2, 1),
    "intruder": (intruder_steps, 0.15, 5),
}
"""Machine → steps of a round, seconds of rest after each step, steps at a time: about 150 requests a second."""


class Clients:
    """A machine's rounds and what came of each step."""

    def __init__(self, name: str, patience: float) -> None:
        self._patience = patience
        self._steps, self._rest, self._width = ROUNDS[name]
        self._serial = itertools.count(1)
        self._rounds = 0
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def report(self, *, over: bool = False) -> None:
        """A line on stdout."""
        said = {"rounds": self._rounds, "done": self._done, "failed": self._failed, "over": over}
        print(json.dumps(said), flush=True)

    async def _work(self, steps: Iterator[Step]) -> None:
        for what, exchange in steps:
            try:
                await exchange()
            except (OSError, TimeoutError, EOFError, ValueError):
                self._failed[what] += 1
            else:
                self._done[what] += 1
            await asyncio.sleep(self._rest)

    async def run(self) -> None:
        """Rounds, until cancelled."""
        while True:
            steps = self._steps(self._serial, self._patience)
            async with asyncio.TaskGroup() as group:
                for _ in range(self._width):
                    group.create_task(self._work(steps))
            self._rounds += 1
            self.report()


async def live(machine: Machine, patience: float) -> None:
    """Serve until stdin ends; in between, from line to line, go round."""
    await start_servers(machine)
    loop = asyncio.get_running_loop()
    told = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    print(json.dumps({"ready": True}), flush=True)
    if not await told.readline():
        return
    if machine.name in ROUNDS:
        going = Clients(machine.name, patience)
        task = loop.create_task(going.run())
        await told.readline()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        going.report(over=True)
    await told.read()


def main() -> None:
    """The process: arguments PREFIX NAME PARENT-PID PATIENCE (seconds for what policy denies)."""
    prefix, name, parent, patience = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    netns.enter(DemoNetwork(prefix).namespace(name))
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: so are we
        asyncio.run(live(MACHINES[name], patience))


if __name__ == "__main__":
    main()
