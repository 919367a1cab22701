"""The views, a module each."""

import hashlib
import importlib

from nicegui import app, context, ui
from starlette.requests import Request

from web.elements import STATIC
from web.first import painted
from web.live import Live
from web.page import VIEWS, Page, View
from web.settings import WebSettings
from web.shell import frame
from web.source import Source

MODULES = ("overview", "map", "matrix", "flows", "policy", "sql")
"""In the order of the header; the first is the page's own address."""
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="14" cy="14" r="9" fill="none"'
    ' stroke="#0f766e" stroke-width="4"/><path d="M21 21l8 8" stroke="#0f766e" stroke-width="4"/></svg>'
)


def serve(settings: WebSettings, source: Source, live: Live) -> None:
    """Every view at its address."""
    app.add_static_files("/static", STATIC, max_cache_age=31_536_000)
    mark = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()))).hexdigest()[:12]
    ui.add_head_html(
        f'<link rel="stylesheet" href="/static/ztlens.css?{mark}"><script src="/static/theme.js?{mark}"></script>',
        shared=True,
    )
    for name in MODULES:
        importlib.import_module(f"web.views.{name}")
    for view in VIEWS.values():
        _serve(view, settings, source, live)


def _serve(view: View, settings: WebSettings, source: Source, live: Live) -> None:
    async def opened(request: Request) -> None:
        page = Page(view, request.query_params.multi_items(), source, live, settings)
        context.client.on_delete(page.close)
        frame(page)
        await page.first()
        ui.add_body_html(painted(context.client.layout))

    # A page waits for its first answers itself; a process that is busy is no reason to tell that it took too long.
    ui.page(view.path, title=f"{view.title} · ztlens", response_timeout=60.0)(opened)
