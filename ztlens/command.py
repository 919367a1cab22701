"""What every command shares: the options that choose an installation, and quiet ends.

`installation(app, "name")` registers a function whose first parameter is the Settings; the options `--state`,
`--run-dir`, `--database`, `--instance`, `--nats`, `--config` and `--debug` are added to its own; they may also stand
before the command.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ztlens import config

State = Annotated[str | None, typer.Option(metavar="DIR", help="Directory of everything that is kept.")]
RunDir = Annotated[str | None, typer.Option(metavar="DIR", help="Directory of sockets and locks.")]
Instance = Annotated[str | None, typer.Option(metavar="NAME", help="Which installation on this host.")]
Nats = Annotated[str | None, typer.Option(metavar="URL", help="Use this NATS server, not the bundled one.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings instead of /etc/ztlens.toml.")]
Database = Annotated[str | None, typer.Option(metavar="FILE", help="The DuckDB file instead of the state's.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
COMMON: dict[str, tuple[Any, Any]] = {
    "state": (State, None), "run_dir": (RunDir, None), "instance": (Instance, None),
    "database": (Database, None), "nats": (Nats, None),
    "config_file": (Config, None), "debug": (Debug, False),
}  # fmt: skip
LOADING = {
    "loader": Annotated[str | None, typer.Option(metavar="auto|core|bcc", help="What loads the kernel side.")],
}
"""An option of what loads it, for `installation`."""
_before: dict[str, Any] = {}
"""Common options given before the command's name."""


def remember(**options: Any) -> None:
    """Common options from in front of the command; those behind it win."""
    _before.clear()
    _before.update(options)


def installation(
    app: typer.Typer, name: str, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command. The function gets the Settings first, then its own options. `options`: setting → the
    annotation of an option for it, not among COMMON; the Settings have it already."""
    changing = options or {}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in list(signature.parameters.values())[1:]]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for key, (annotation, default) in ({key: (a, None) for key, a in changing.items()} | COMMON).items()
        ]

        @functools.wraps(function)
        def run(**given: Any) -> None:
            chosen = {key: given.pop(key) for key in COMMON}
            for key, value in _before.items():
                chosen[key] = chosen[key] or value
            file = chosen.pop("config_file")
            chosen.pop("debug")
            changed = {key: given.pop(key) for key in changing}
            function(with_options(config.load(chosen, file=file), **changed), **given)

        run.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *common]} | {"return": None}
        del run.__wrapped__
        app.command(name, **kwargs)(run)
        return function

    return register


def with_options(settings: config.Settings, **options: object) -> config.Settings:
    """`settings` with a command's own options (None: not given) on top, checked like any other."""
    values, origins = dict(settings.values), dict(settings.origins)
    for name, raw in options.items():
        if raw not in (None, []):  # an option that may be repeated is [] when it is not given
            values[name] = config.parsed(name, raw)
            origins[name] = f"--{name.replace('_', '-')}"
    return config.Settings(values, origins)
