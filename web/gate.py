"""Who may see the page: whoever has the token, from an address that is ours, and from no other site.

Every request, a WebSocket's too, is looked at here before anything else sees it:

* `Host` must name this page: another name that leads here is somebody's DNS (rebinding). 403.
* `Origin`, when there is one, must be this page: another site's script is not ours. 403.
* The token comes once with the link, `?token=…`, and is answered with a cookie for this browser alone and the same
  address without it; programs send `Authorization: Bearer …`. Without: 403. The cookie is made from the token and does
  not tell it: browsers send a cookie to every port of a host, so another program may get to see it.

A link to a view from elsewhere arrives without the cookie (SameSite=Strict): such a navigation is sent round once more,
then it comes from the page itself.
"""

import hmac
import re
import secrets
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.settings import WebSettings

_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self';"
    " img-src 'self' data:; font-src 'self'; style-src 'self' 'unsafe-inline';"
    # NiceGUI compiles its templates in the browser, which needs eval; a script in the page's text needs this nonce.
    " script-src 'self' 'nonce-{nonce}' 'unsafe-eval'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_AGAIN = '<!doctype html><meta http-equiv="refresh" content="0"><title>ztlens</title>'
_SHUT = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>ztlens</title>'
    '<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 15vh auto; padding: 0 1em">'
    "<h1>No entry without the link</h1><p>Open the link that <code>sudo ztlens status</code> shows:"
    " it ends in <code>?token=…</code>. This browser remembers it from then on."
)
_SCRIPT = re.compile(rb"<script\b")


class Gate:
    """`app` behind the checks above. `port` is the one it listens on."""

    def __init__(self, app: ASGIApp, settings: WebSettings, port: int, token: str) -> None:
        self._app = app
        self._token = token
        self._name = f"ztlens_{port}"  # cookies know no ports, and there may be several pages on a host
        self._cookie = hmac.digest(token.encode(), b"cookie", "sha256").hex()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        own = (host, "127.0.0.1", "[::1]", "localhost")
        self._hosts = {f"{name}:{port}".lower() for name in (*own, *settings.names)}
        # Browsers leave the usual port out: here, or behind a proxy.
        self._hosts |= {name.lower() for name in (*settings.names, *(own if port == 80 else ()))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, send elsewhere, or let in."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        answer = self._answer(scope, Headers(scope=scope))
        if answer is None:
            await self._app(scope, receive, send if scope["type"] == "websocket" else _guarded(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        else:
            await answer(scope, receive, _guarded(send))

    def _answer(self, scope: Scope, headers: Headers) -> Response | None:
        """None: let it in."""
        names = headers.getlist("host")  # one, and ours: of two, another program may read the other
        if len(names) != 1 or names[0].lower() not in self._hosts:
            return _refusal(scope, "this is not the name of this page", "open the link that `ztlens status` shows")
        if not all(map(self._is_ours, headers.getlist("origin"))):
            return _refusal(scope, "another site asks", "open the link that `ztlens status` shows")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and scope["type"] == "http" and not scope["path"].startswith("/api/"):
            return self._entered(scope, headers, given[0], [pair for pair in query if pair[0] != "token"])
        if self._knows(headers):
            return None
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") == "navigate":
            return HTMLResponse(_AGAIN, headers={"cache-control": "no-store"})
        return _refusal(scope, "no token", "open the link of `ztlens status`, or send `Authorization: Bearer TOKEN`")

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:  # as of `http://[::1`
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() in self._hosts

    def _entered(self, scope: Scope, headers: Headers, given: str, rest: list[tuple[str, str]]) -> Response:
        """The browser gets its cookie, and the address without the token.

        Behind a proxy that says so the cookie is for TLS alone. Who else says so harms nobody but himself.
        """
        if not _same(given, self._token):
            return _refusal(scope, "this token is not the page's", "open the link that `ztlens status` shows")
        path = "/" + scope["path"].lstrip("/")  # `//elsewhere` would be another host
        answer = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(
            self._name, self._cookie, max_age=365 * 86400, httponly=True, samesite="strict", path="/",
            secure=headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower() == "https",
        )  # fmt: skip
        answer.headers["cache-control"] = "no-store"
        return answer

    def _knows(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(bearer.strip(), self._token):
            return True
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == self._name and _same(value, self._cookie) for name, _, value in cookies)


def _same(given: str, secret: str) -> bool:
    """In a time that tells nothing."""
    return hmac.compare_digest(given.encode(), secret.encode())


def _refusal(scope: Scope, error: str, hint: str) -> Response:
    """403, as HTML where a person may be looking."""
    if scope["path"].startswith("/api/"):
        return JSONResponse({"error": error, "hint": hint, "exit": 2}, 403)
    return HTMLResponse(_SHUT, 403, headers={"cache-control": "no-store"})


def _guarded(send: Send) -> Send:
    """Answers with our headers; each script of a HTML text gets the nonce that the policy names."""
    nonce = secrets.token_urlsafe(16)
    held: list[Message] = []  # the start of a HTML answer, whose length will change

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message["headers"] if pair[0] != b"content-length"]
            is_html = any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers)
            message["headers"] = (headers if is_html else message["headers"]) + [
                (name.encode(), value.encode()) for name, value in _HEADERS.items()
            ]
            message["headers"].append((b"content-security-policy", _POLICY.format(nonce=nonce).encode()))
            if is_html:
                held.append(message)
                return
        elif held:
            held.append(message)
            if message.get("more_body"):
                return
            body = b"".join(part["body"] for part in held[1:])
            body = _SCRIPT.sub(f'<script nonce="{nonce}"'.encode(), body)
            held[0]["headers"].append((b"content-length", str(len(body)).encode()))
            await send(held[0])
            message = {"type": "http.response.body", "body": body}
        await send(message)

    return guarded
