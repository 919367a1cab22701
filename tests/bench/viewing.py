"""A process that views: python -m tests.bench.viewing SOCKET VIEWERS, until its standard input ends.

Each viewer follows live verdicts, every other one the denied ones alone, and asks what the page's first view asks each
second, as the page does while something is stored. Prints the verdicts seen, those left out, and the answers.
"""

import asyncio
import json
import sys
from collections import Counter

import httpx

EVERY = 1.0
"""Seconds between two questions of a viewer."""


async def _follow(http: httpx.AsyncClient, seen: Counter[str], denied: bool) -> None:
    async with http.stream("GET", "verdicts/live", params={"decision": "deny"} if denied else {}) as answer:
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: ") and name == "verdicts":
                seen["verdicts"] += line.count('"position"')
            elif line.startswith("data: ") and name == "dropped":
                seen["left out"] += json.loads(line[6:])["count"]


async def _ask(http: httpx.AsyncClient, seen: Counter[str], after: float) -> None:
    await asyncio.sleep(after)
    while True:
        answer = await http.get("overview", params={"since": "0"})
        seen["answers" if answer.status_code == 200 else "refused"] += 1
        await asyncio.sleep(EVERY)


async def _view(socket: str, count: int) -> None:
    transport = httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_connections=None))
    seen: Counter[str] = Counter()
    async with httpx.AsyncClient(transport=transport, base_url="http://sink/api/v1/", timeout=60) as http:
        tasks = [asyncio.create_task(_follow(http, seen, i % 2 == 1)) for i in range(count)]
        tasks += [asyncio.create_task(_ask(http, seen, EVERY * i / count)) for i in range(count)]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(_view(sys.argv[1], int(sys.argv[2])))
