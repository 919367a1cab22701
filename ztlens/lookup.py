"""Whom a command asks: the history (the running sink's, else the file), the collector."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztlens.config import Settings
from ztlens.errors import Missing

if TYPE_CHECKING:
    import pyarrow

    from sink.client import History


def history(settings: Settings, source: Path | None = None) -> "History":
    """Whatever answers for this installation, or the exported directory `source`.

    Raises SinkError, Missing if nothing was ever recorded.
    """
    from sink.client import History

    if source is not None:
        return History.on_export(source)
    if not (settings.run_dir / "sink.sock").exists() and not settings.database.exists():
        raise Missing(
            f"there is no history: neither a running sink nor {settings.database}",
            "start with `ztlens up -i INTERFACE`, or give --state DIR",
        )
    if settings.given("state") or settings.given("database"):
        return _of_database(settings)
    return History.find(settings.run_dir, settings.database)


def _of_database(settings: Settings) -> "History":
    """A state directory that was named is the one to read, even if the running sink has another."""
    from sink.client import History

    found = History.find(settings.run_dir, settings.database)
    path = found.status()["database"]["path"]
    return found if path == str(settings.database) else History.on_file(settings.database)


def ask(settings: Settings, sql: str, source: Path | None = None) -> "pyarrow.Table":
    """The answer to one statement."""
    with history(settings, source) as found:
        return found.sql(sql)


def collector_request(run_dir: Path, op: str, **arguments: Any) -> Any:
    """Ask the collector. Raises CollectorError."""
    from collector.control.client import request

    return request(run_dir, op, **arguments)


def sink_status(run_dir: Path) -> dict[str, Any]:
    """Ask the sink. Raises SinkError."""
    from sink.client import History

    return History.over_socket(run_dir / "sink.sock").status()


def sink_ledger(run_dir: Path) -> dict[str, Any]:
    """The sink's ledger. Raises SinkError."""
    from sink.client import History

    return History.over_socket(run_dir / "sink.sock").ledger()


def web_link(run_dir: Path) -> str:
    """The link that opens the page. Raises Missing when none answers."""
    import socket
    from urllib.parse import urlsplit

    try:
        link = (run_dir / "web.url").read_text(encoding="utf-8")
        parts = urlsplit(link)
        socket.create_connection((parts.hostname or "", parts.port or 0), 2.0).close()
    except OSError as error:
        raise Missing("no page answers", "start it with `ztlens up` or `ztlens web`") from error
    return link
