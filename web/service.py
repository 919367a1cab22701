"""The page's process: listens, makes a view for whoever opens one, until SIGTERM or SIGINT."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from starlette.routing import Route

from web.errors import SettingsError
from web.gate import Gate
from web.live import Live
from web.passing import Passing
from web.published import published, told
from web.settings import WebSettings
from web.source import Source
from web.token import token

log = logging.getLogger("ztlens.web")
IDLE = 150
"""Seconds an idle connection is kept: longer than by most proxies and programs, so that it is they who end it."""


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to `run`, and says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises nothing: `should_exit` is set when it fails."""
        await super().startup(sockets)
        self.answers.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing to capture."""
        yield


def bind(settings: WebSettings) -> socket.socket:
    """A listening socket. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((settings.host, settings.port))
        server.listen(128)
    except (OSError, OverflowError) as error:
        server.close()
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(
            f"the page cannot listen on {settings.host}:{settings.port}: {why}",
            "choose another: --web HOST:PORT, port 0 for any free one",
        ) from error
    return server


def address(settings: WebSettings, port: int, secret: str) -> str:
    """The link that lets a browser in."""
    name = settings.names[0] if settings.names else settings.host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/?token={secret}"


def application(settings: WebSettings, source: Source, live: Live, passing: Passing) -> FastAPI:
    """All that is behind the gate. Once a process: NiceGUI has one application. Raises WebError."""
    from nicegui import app as pages  # noqa: PLC0415 (a second: not for who only wants the settings)
    from nicegui import ui  # noqa: PLC0415

    from web import cookbook, views  # noqa: PLC0415

    cookbook.queries()  # an installation without it does not start
    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    # An application takes every method: the sink's word is the answer to those that it refuses.
    outer.router.routes.append(Route("/api/{path:path}", passing))
    views.serve(settings, source, live)
    ui.run_with(
        outer, title="ztlens", dark=None, tailwind=False, gzip_middleware_factory=None, show_welcome_message=False,
        reconnect_timeout=20.0, language="en-US", favicon=views.ICON, binding_refresh_interval=None,
    )  # fmt: skip
    pages.on_exception(lambda error: log.error("in a page: %s", error, exc_info=error))
    return outer


async def run(settings: WebSettings, ready: asyncio.Event | None = None) -> None:
    """Be the page. Raises WebError when it cannot start."""
    listener = bind(settings)
    port: int = listener.getsockname()[1]
    secret = token(settings.state)
    source, passing = Source(settings.socket), Passing(settings.socket)
    live = Live(settings.socket)
    gate = Gate(application(settings, source, live, passing), settings, port, secret)
    config = uvicorn.Config(
        gate, lifespan="on", access_log=False, log_config=None, proxy_headers=False, server_header=False,
        timeout_keep_alive=IDLE, timeout_graceful_shutdown=1, ws_max_size=1 << 20, ws_per_message_deflate=False,
    )  # fmt: skip
    server = _Server(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(server.serve(sockets=[listener])), asyncio.create_task(live.run())]
    stopping = asyncio.create_task(stop.wait())
    try:
        await server.answers.wait()
        link = address(settings, port, secret)
        tasks.append(asyncio.create_task(published(settings.run_dir, link)))
        log.info("%s", told(link))
        if ready is not None:
            ready.set()
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        server.should_exit = True
        for task in (*tasks[1:], stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
        await source.close()
        await passing.close()
