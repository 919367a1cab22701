"""Options that choose verdicts, the same for every command that shows or sends them."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

import typer

from schemas.filters import Filters

Words = list[str] | None
_OPTIONS: dict[str, Any] = {
    "since": Annotated[str, typer.Option(metavar="T", help="From then on: 10m, 2h, RFC 3339 or a date.")],
    "until": Annotated[str, typer.Option(metavar="T", help="Before then.")],
    "decision": Annotated[Words, typer.Option("--decision", "--verdict", metavar="allow|deny")],
    "outcome": Annotated[Words, typer.Option(metavar="passed|dropped")],
    "from_ip": Annotated[Words, typer.Option(metavar="CIDR", help="Who opened the flow.")],
    "to_ip": Annotated[Words, typer.Option(metavar="CIDR", help="Whom it was opened to.")],
    "ip": Annotated[Words, typer.Option(metavar="CIDR", help="Either end.")],
    "from_identity": Annotated[Words, typer.Option(metavar="NAME")],
    "to_identity": Annotated[Words, typer.Option(metavar="NAME")],
    "identity": Annotated[Words, typer.Option(metavar="NAME", help="Either end.")],
    "from_label": Annotated[Words, typer.Option(metavar="KEY=VALUE")],
    "to_label": Annotated[Words, typer.Option(metavar="KEY=VALUE")],
    "port": Annotated[Words, typer.Option(metavar="PORT[/PROTO]", help="443, 443/tcp, 8000-8100.")],
    "protocol": Annotated[Words, typer.Option("--protocol", "--proto", metavar="PROTO")],
    "rule": Annotated[Words, typer.Option(metavar="NAME")],
    "reason": Annotated[Words, typer.Option(metavar="REASON")],
    "node": Annotated[Words, typer.Option(metavar="NAME")],
    "event": Annotated[Words, typer.Option(metavar="new|sample|change|end")],
    "direction": Annotated[Words, typer.Option(metavar="original|reply")],
    "where": Annotated[Words, typer.Option(metavar="SQL", help="A predicate over the columns of `verdicts`.")],
}
_WHOLE = {"rule", "node", "from_identity", "to_identity", "identity", "from_label", "to_label", "where"}
"""What may hold a comma; the others are lists of what is between commas."""


def filtered(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function whose second parameter is the Filters: the options above take its place."""
    hints = get_type_hints(function, include_extras=True)
    settings, _, *own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default="" if get_args(kind)[0] is str else None, annotation=kind
        )
        for name, kind in _OPTIONS.items()
    ]

    @functools.wraps(function)
    def run(given_settings: Any, **given: Any) -> None:
        asked = {name: _taken(name, given.pop(name)) for name in _OPTIONS}
        function(given_settings, Filters(**asked), **given)

    parameters = [settings, *own, *options]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    del run.__wrapped__
    return run


def _taken(name: str, given: Any) -> Any:
    if isinstance(given, str):
        return given
    if name in _WHOLE:
        return tuple(given or ())
    return tuple(part.strip() for text in given or () for part in text.split(",") if part.strip() or "," not in text)
