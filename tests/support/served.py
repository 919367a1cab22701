"""The sink's API over a store of the test's process, asked without a socket; and what it must say of made-up rows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.types import ASGIApp

from schemas import present
from schemas.codes import EventKind
from schemas.verdict import STRIDE
from sink import api
from sink.settings import SinkSettings
from sink.store import Store
from tests.support import batches
from tests.support.until import until

TOLD = {"running": True, "streams": {"VERDICTS": {"lag": 3}, "RECORDS": {"lag": 0}}, "notices": ["told"]}
"""What the sink says of itself."""


class Asker:
    """Asks; every answer is checked to be what was expected by its status alone."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def get(self, path: str, **query: Any) -> Any:
        """The document of an answer that must be there."""
        answer = await self.http.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **body: Any) -> Any:
        answer = await self.http.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, status: int, path: str, query: Any = None, body: Any = None) -> str:
        """What an error says; its shape is checked."""
        way = {"params": query} if body is None else {"content": body}
        answer = await self.http.request("GET" if body is None else "POST", f"/api/v1/{path}", **way)
        assert answer.status_code == status, (path, query, answer.text[:300])
        said = answer.json()
        assert set(said) == {"error", "hint", "exit"}
        assert said["hint"] and "\n" not in said["error"]
        assert said["exit"] in (2, 3)
        return str(said["error"])

    async def pages(self, path: str, key: str, **query: Any) -> list[Any]:
        """All of a list, page by page."""
        out: list[Any] = []
        page = await self.get(path, **query)
        out += page[key]
        while page["next"] is not None:
            page = await self.get(path, **query, cursor=page["next"])
            assert page[key]
            out += page[key]
        return out


@asynccontextmanager
async def asking(store: Store, **fields: Any) -> AsyncIterator[Asker]:
    """An Asker of `store`; `fields` of its settings."""

    async def status() -> dict[str, Any]:
        return TOLD

    given: dict[str, Any] = {"readers": 2, "query_timeout": 20.0} | fields
    made = api.Api(store, SinkSettings(Path("unused"), "", Path("unused"), **given), status)
    transport = httpx.ASGITransport(made.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://sink", timeout=60) as http:
        yield Asker(http)
    made.close()


@asynccontextmanager
async def listening(app: ASGIApp, socket: Path) -> AsyncIterator[Path]:
    """`app` on a Unix socket, by the sink's own server."""
    server = api.server(app)
    serving = asyncio.create_task(server.serve(sockets=[api.bind(socket)]))
    await until(lambda: server.started, "the server")
    try:
        yield socket
    finally:
        server.should_exit = True
        await serving


class Names:
    """Of tests.support.batches."""

    def rule(self, revision: int, number: int) -> str | None:
        return {rule.id: rule.name for rule in batches.RULES}.get(number) or present.reserved_rule(number)

    def identity(self, revision: int, number: int) -> str | None:
        known = {one.id: one.name for one in batches.IDENTITIES}
        return known.get(number) or present.reserved_identity(number)


def records(rows: np.ndarray, ring: int = 1) -> list[dict[str, Any]]:
    """Rows from the begin of ring r1 of node n1, as `verdicts` gives them, in their order."""
    out = []
    for i, row in enumerate(present.present(rows, Names(), batches.CLOCK, node="n1", ring="r1")):
        flow = f"{ring}-{row['flow_id']}" if row["flow_id"] else None
        kept = {name: value for name, value in row.items() if name not in ("time_ns", "flow_id")}
        out.append(kept | {"position": i * STRIDE, "flow": flow})
    return out


def flows(rows: np.ndarray) -> list[dict[str, Any]]:
    """The same as `flows` gives them, and `place`, that of the last event; in no order."""
    found: dict[str, dict[str, Any]] = {}
    for verdict in records(rows):
        name = verdict["flow"]
        if name is None:
            continue
        before = found.get(name)
        last = {key: value for key, value in verdict.items() if key not in ("time", "position", "event", "direction")}
        found[name] = last | {
            "first_seen": before["first_seen"] if before else verdict["time"],
            "last_seen": verdict["time"],
            "ended": verdict["event"] == EventKind.END.name.lower(),
            "events": before["events"] + 1 if before else 1,
            "place": verdict["position"],
        }
    return list(found.values())
