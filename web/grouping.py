"""How a map and a matrix group ends, by what they measure, and which flows an end stands for."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from web.elements import Field, choice
from web.page import Page
from web.show import LINES, amount

GROUPS = {"identity": "Identities", "network": "Networks", "address": "Addresses", "label": "A label"}
FIELDS = (("label", "label", "Label", "app"), ("network", "prefix_4", "IPv4 prefix", "24"),
          ("network", "prefix_6", "IPv6 prefix", "64"))  # fmt: skip
"""What a group is told besides: group, parameter, label, and what it is unless it was typed."""
UNKNOWN = "unknown"
"""The address of what was malformed, as the API calls it."""
VOLUMES = {"flows": "Flows", "packets": "Packets", "bytes": "Bytes"}


def controls(page: Page) -> None:
    """The choices, which stand in the address."""
    choice("Group", GROUPS, page.get("group", "identity"), lambda value: page.set(group=value, chosen=None))
    choice("Measure", VOLUMES, page.get("by", "flows"), lambda value: page.set(by=value))
    fields = [
        (group, Field(said, page.get(name), partial(_typed, page, name), placeholder=usual))
        for group, name, said, usual in FIELDS
    ]

    def moved() -> None:
        for group, field in fields:
            field.set_visibility(page.get("group") == group)

    moved()
    page.moved.append(moved)


def asked(page: Page) -> dict[str, Any]:
    """Parameters of `map` and `matrix`."""
    group = page.get("group", "identity")
    told = {name: page.get(name) or usual for of, name, _, usual in FIELDS if of == group}
    return {**page.asked, "group": group, "by": page.get("by", "flows"), **told}


def _typed(page: Page, name: str, value: str) -> None:
    """People write a prefix with its slash."""
    page.set(**{name: value.strip().removeprefix("/")})


def end(page: Page, side: str, name: str) -> dict[str, str]:
    """The filter for flows with this end; `side`: `from` or `to`."""
    group = page.get("group", "identity")
    if group == "identity":
        return {f"{side}_identity": name}
    if group == "label":
        return {f"{side}_label": name or f"!{asked(page)['label']}"}
    return {"reason": "malformed"} if name == UNKNOWN else {f"{side}_ip": name}


def either_end(page: Page, name: str) -> dict[str, str]:
    """The filter for flows with this at either end. A label there is no such filter for: those that come from it."""
    group = page.get("group", "identity")
    if group == "identity":
        return {"identity": name}
    return end(page, "from", name) if group == "label" or name == UNKNOWN else {"ip": name}


def flows(page: Page, ends: Mapping[str, str]) -> str:
    """The address of the flows that the page's filters and these let through."""
    wanted: dict[str, str | list[str] | None] = {**page.filters, **ends}
    return page.address("flows", **wanted)


def shown(name: str) -> str:
    """An end as people read it."""
    return name or "(none)"


def volume(split: Mapping[str, Any], by: str) -> int:
    """All of a Split, whatever was decided."""
    return sum(split[key][by] for key, _, _ in LINES)


def worst(split: Mapping[str, Any]) -> int:
    """What was decided: index in LINES."""
    found = (i for i, (key, _, _) in reversed([*enumerate(LINES)]) if split[key]["flows"] or split[key]["packets"])
    return next(found, 0)


def tabled(of: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Those that are in a table of at most so many: of too many, what was denied before what was allowed."""
    return of if len(of) <= most else sorted(of, key=lambda one: -worst(one))[:most]


def said(of: Sequence[Mapping[str, Any]], most: int) -> str:
    """What such a table has, for who does not see the chart above it."""
    return "the table below says the same" + (f" of {most}, those denied first" if len(of) > most else "")


def left_out(found: Mapping[str, Any], ends: str, pairs: str) -> str:
    """What a map or a matrix has no room for; what was denied there must not go unseen."""
    left = found["left_out"]
    if not left["edges"]:
        return ""
    denied = ", ".join(f"{left[key]['flows']:,} {word}" for key, word, _ in LINES[1:] if left[key]["flows"])
    flows = f", flows: {denied}" if denied else ""
    return f"; the smallest are left out: {left['nodes']:,} {ends}, {left['edges']:,} {pairs}{flows}"


def measured(count: int, by: str) -> str:
    """With its unit."""
    return amount(count) if by == "bytes" else f"{count:,} {by}"


def told(split: Mapping[str, Any], by: str) -> list[str]:
    """What a tooltip says of a Split, a line each."""
    return [f"{word}: {measured(split[key][by], by)}" for key, word, _ in LINES if split[key][by]]
