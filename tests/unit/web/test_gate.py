"""Who is let in: every refusal of the gate, for HTTP and for WebSockets."""

import hmac
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from web.errors import SettingsError
from web.gate import Gate
from web.settings import WebSettings

TOKEN = "t" * 43
COOKIE = hmac.new(TOKEN.encode(), b"cookie", "sha256").hexdigest()
US = "http://127.0.0.1:7420"


async def seen(request: Request) -> Response:
    """What the page behind the gate gets to see."""
    return PlainTextResponse(str(request.url.query))


async def page(request: Request) -> Response:
    return HTMLResponse("<html><script>1</script><script type='module'>2</script></html>")


def gate(port: int = 7420, **fields: Any) -> Gate:
    settings = WebSettings(socket=Path("s"), run_dir=Path("r"), state=Path("t"), **fields)
    app = Starlette(routes=[Route("/page", page), Route("/{path:path}", seen)])
    return Gate(app, settings, port, TOKEN)


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gate()), base_url=US) as client:
        yield client


async def test_the_link_gives_a_cookie_and_an_address_without_the_token(browser: httpx.AsyncClient) -> None:
    entered = await browser.get(f"/flows?since=1h&token={TOKEN}&decision=deny")
    assert entered.status_code == 303
    assert entered.headers["location"] == "/flows?since=1h&decision=deny"
    cookie = entered.headers["set-cookie"]
    assert cookie.startswith(f"ztlens_7420={COOKIE}; ")
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    inside = await browser.get("/flows?since=1h")
    assert (inside.status_code, inside.text) == (200, "since=1h")


@pytest.mark.parametrize(
    ("said", "secure"),
    [("https", True), ("HTTPS, http", True), ("http", False), ("http, https", False), (None, False)],
)
async def test_behind_tls_the_cookie_is_for_tls_alone(said: str | None, secure: bool) -> None:
    """As the proxy says that the browser came."""
    given = httpx.ASGITransport(gate(names=("lens.example.org",)))
    async with httpx.AsyncClient(transport=given, base_url="http://lens.example.org") as client:
        headers = {} if said is None else {"x-forwarded-proto": said}
        entered = await client.get("/", params={"token": TOKEN}, headers=headers)
    assert ("Secure" in entered.headers["set-cookie"].split("; ")) is secure


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cookie": "ztlens_7420="},
        {"cookie": "ztlens_7420=" + "x" * 64},
        {"cookie": f"ztlens_7420={TOKEN}"},
        {"authorization": f"Bearer {COOKIE}"},
        {"cookie": f"ztlens_7421={COOKIE}"},
        {"cookie": f"other={COOKIE}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"host": "evil.example:7420", "cookie": f"ztlens_7420={COOKIE}"},
        {"host": "127.0.0.1", "cookie": f"ztlens_7420={COOKIE}"},
        {"host": "127.0.0.1:7421", "cookie": f"ztlens_7420={COOKIE}"},
        {"host": "127.0.0.1:7420.evil.example", "cookie": f"ztlens_7420={COOKIE}"},
        {"host": "", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "http://evil.example", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "null", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "http://127.0.0.1:7421", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "http://127.0.0.1:7420@evil.example", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "file://127.0.0.1:7420", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "http://[::1", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "http://[x]:7420"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/v1/flows", "/_nicegui_ws/socket.io"])
async def test_refused(browser: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    """On every path; where a program asks, with the API's own form of an error."""
    answer = await browser.get(path, headers=headers)
    assert answer.status_code == 403
    assert TOKEN not in answer.text and COOKIE not in answer.text
    if path.startswith("/api/"):
        assert sorted(answer.json()) == ["error", "exit", "hint"]


@pytest.mark.parametrize(
    "headers",
    [
        {"cookie": f"a=b; ztlens_7420={COOKIE}"},
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer {TOKEN}", "host": "localhost:7420"},
        {"cookie": f"ztlens_7420={COOKIE}", "origin": US},
        {"cookie": f"ztlens_7420={COOKIE}", "host": "[::1]:7420", "origin": "http://[::1]:7420"},
    ],
)
async def test_let_in(browser: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await browser.get("/x?y=1", headers=headers)).text == "y=1"


async def test_a_wrong_token_gives_nothing(browser: httpx.AsyncClient) -> None:
    for given in ("", "x", TOKEN[:-1], TOKEN + "x", "ü" * 43, COOKIE):
        answer = await browser.get("/", params={"token": given})
        assert answer.status_code == 403 and "set-cookie" not in answer.headers


async def test_a_token_in_the_address_of_the_api_is_none(browser: httpx.AsyncClient) -> None:
    """It would stand in logs and histories of programs."""
    assert (await browser.get(f"/api/v1/flows?token={TOKEN}")).status_code == 403


async def test_the_way_in_leads_nowhere_else(browser: httpx.AsyncClient) -> None:
    for path in ("//evil.example/", "///evil.example"):
        request = httpx.Request("GET", httpx.URL(US).copy_with(raw_path=f"{path}?token={TOKEN}".encode()))
        assert (await browser.send(request)).headers["location"].startswith("/evil.example")


async def test_a_link_from_elsewhere_is_sent_round_once(browser: httpx.AsyncClient) -> None:
    """The cookie does not come with it; the second time the page itself asks."""
    elsewhere = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = await browser.get("/flows", headers=elsewhere)
    assert answer.status_code == 200 and 'http-equiv="refresh"' in answer.text
    assert (await browser.get("/flows", headers=elsewhere | {"sec-fetch-site": "same-origin"})).status_code == 403
    assert (await browser.get("/flows", headers=elsewhere | {"sec-fetch-mode": "cors"})).status_code == 403


async def test_scripts_need_the_nonce_of_their_answer(browser: httpx.AsyncClient) -> None:
    nonces = set()
    for _ in range(2):
        answer = await browser.get("/page", headers={"authorization": f"Bearer {TOKEN}"})
        policy = answer.headers["content-security-policy"]
        found = re.search(r"script-src 'self' 'nonce-([\w-]{22})' 'unsafe-eval'$", policy)
        assert found and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        tags = re.findall(r"<script[^>]*>", answer.text)
        assert tags == [f'<script nonce="{found[1]}">', f"<script nonce=\"{found[1]}\" type='module'>"]
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        nonces.add(found[1])
    assert len(nonces) == 2


async def handshake(given: Gate, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What a WebSocket that comes with these headers is answered."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    raw = [(name.encode(), value.encode()) for name, value in ({"host": "127.0.0.1:7420"} | headers).items()]
    scope = {"type": "websocket", "path": "/_nicegui_ws/socket.io", "query_string": b"", "headers": raw}
    await given(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example", "cookie": f"ztlens_7420={COOKIE}"},
        {"origin": "http://[::1", "cookie": f"ztlens_7420={COOKIE}"},
        {"host": "evil.example:7420", "cookie": f"ztlens_7420={COOKIE}"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
async def test_a_websocket_is_refused_before_it_is_accepted(headers: dict[str, str]) -> None:
    assert await handshake(gate(), headers) == [{"type": "websocket.close", "code": 1008}]


async def test_names_by_which_it_is_reached() -> None:
    given = gate(listen="0.0.0.0:7420", names=("lens.example.org",))
    known = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(given), base_url=US) as client:
        for host, status in (
            ("lens.example.org:7420", 200), ("lens.example.org", 200), ("LENS.example.org", 200),
            ("127.0.0.1:7420", 200), ("x.lens.example.org", 403), ("lens.example.org:80", 403),
        ):  # fmt: skip
            assert (await client.get("/x", headers=known | {"host": host})).status_code == status, host
        proxied = known | {"host": "lens.example.org", "origin": "https://lens.example.org"}
        assert (await client.get("/x", headers=proxied)).status_code == 200


async def test_on_the_usual_port_browsers_name_none() -> None:
    known = {"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1"}
    for port, status in ((80, 200), (7420, 403)):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate(port)), base_url=US) as client:
            assert (await client.get("/x", headers=known)).status_code == status


@pytest.mark.parametrize("listen", ["0.0.0.0:7420", "[::]:7420", "192.0.2.1:7420", "example.org:7420"])
def test_other_addresses_than_loopback_need_a_name(listen: str) -> None:
    with pytest.raises(SettingsError, match="where others reach it") as error:
        gate(listen=listen)
    assert "--web-names" in error.value.hint


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:7420", "localhost:7420"])
def test_loopback_needs_none(listen: str) -> None:
    gate(listen=listen)
