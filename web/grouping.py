"""How a map and a matrix group ends, by what they measure, and which flows an end stands for."""

from collections.abc import Mapping
from typing import Any

from web.elements import Field, choice
from web.page import Page
from web.show import LINES, amount

GROUPS = {"identity": "Identities", "network": "Networks", "address": "Addresses", "label": "A label"}
VOLUMES = {"flows": "Flows", "packets": "Packets", "bytes": "Bytes"}


def controls(page: Page) -> None:
    """The choices, which stand in the address."""
    choice("Group", GROUPS, page.get("group", "identity"), lambda value: page.set(group=value, chosen=None))
    choice("Measure", VOLUMES, page.get("by", "flows"), lambda value: page.set(by=value))
    key = Field("Label", page.get("label"), lambda value: page.set(label=value.strip()), placeholder="app")

    def moved() -> None:
        key.set_visibility(page.get("group") == "label")

    moved()
    page.moved.append(moved)


def asked(page: Page) -> dict[str, Any]:
    """Parameters of `map` and `matrix`."""
    group = page.get("group", "identity")
    label = {"label": page.get("label") or "app"} if group == "label" else {}
    return {**page.asked, "group": group, "by": page.get("by", "flows"), **label}


def end(page: Page, side: str, name: str) -> dict[str, str]:
    """The filter for flows with this end; `side`: `from` or `to`. Nothing for those without the label."""
    group = page.get("group", "identity")
    if group == "identity":
        return {f"{side}_identity": name}
    if group == "label":
        return {f"{side}_label": name} if name else {}
    return {f"{side}_ip": name}


def shown(name: str) -> str:
    """An end as people read it."""
    return name or "(none)"


def volume(split: Mapping[str, Any], by: str) -> int:
    """All of a Split, whatever was decided."""
    return sum(split[key][by] for key, _, _ in LINES)


def measured(count: int, by: str) -> str:
    """With its unit."""
    return amount(count) if by == "bytes" else f"{count:,} {by}"


def told(split: Mapping[str, Any], by: str) -> list[str]:
    """What a tooltip says of a Split, a line each."""
    return [f"{word}: {measured(split[key][by], by)}" for key, word, _ in LINES if split[key][by]]
