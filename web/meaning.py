"""What one policy changes against another, by meaning: rows of `ztlens policy diff -o json`."""

from typing import Any

from web.elements import Table, cell, row, text

ROWS = 200
NAMES = 6
"""Names or ports in a cell."""
ACCESS = {"gained": "gained", "lost": "lost", "kept": "dim"}
"""Word → style."""


def meaning(found: dict[str, Any], same: str) -> None:
    """A table of http.Diff; `same`: what is said where there is nothing to tell."""
    if found["same"]:
        text(same, "p", "note")
        return
    for names, word in ((found["builtins_on"], "on"), (found["builtins_off"], "off")):
        for name in names:
            text(f"builtin:{name} is turned {word}", "p", "note")
    if not found["rows"]:
        return
    table = Table(
        "What changes by meaning",
        [("access", "Access", ""), ("from", "From", ""), ("to", "To", ""), ("ports", "Ports", "mono"),
         ("before", "Before", ""), ("after", "After", "")],
    )  # fmt: skip
    table.show([_row(i, one) for i, one in enumerate(found["rows"][:ROWS])])
    if len(found["rows"]) > ROWS:
        text(f"… and {len(found['rows']) - ROWS:,} more: `ztlens policy diff` tells them all.", "p", "note")


def _row(number: int, one: dict[str, Any]) -> dict[str, Any]:
    example = one["example"]
    return row(
        number,
        [
            cell(one["access"], kind=ACCESS.get(one["access"], "")), _brief(one["from"], one["from_except"]),
            _brief(one["to"], one["to_except"]), _brief(one["ports"], one["ports_except"]),
            cell(f"{one['before']}: {example['rule_before']}"), cell(f"{one['after']}: {example['rule_after']}"),
        ],
    )  # fmt: skip


def _brief(items: list[Any], without: list[Any]) -> dict[str, Any]:
    parts = [", ".join(map(_word, some)) for some in (items, without)]
    short = [_listed([_word(one) for one in some]) for some in (items, without)]
    return cell(" except ".join(filter(None, short)), hint=" except ".join(filter(None, parts)))


def _word(item: Any) -> str:
    """A term of policy.yaml."""
    return ", ".join(f"{key}: {value}" for key, value in item.items()) if isinstance(item, dict) else str(item)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")
