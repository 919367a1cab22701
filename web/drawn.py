"""What a draft would change, as the map and the matrix draw it: between identities, by the draft's last audit."""

from collections.abc import Callable
from typing import Any

from web.draft import DRAFTS, Audited, Change
from web.elements import box, button, link, text
from web.page import Page
from web.show import short

Cells = dict[tuple[int, int], Change]
"""Index of the source, index of the destination → change."""
Pairs = dict[tuple[str, str], Change]
NAMED = 8
"""Pairs that are named beside the legend."""


def _audited(page: Page) -> Audited | None:
    draft = DRAFTS.get(page.get("draft"))
    return draft.audited if draft and page.get("group", "identity") == "identity" else None


def pairs(page: Page) -> Pairs:
    """Of the draft in the address, if its ends are what is drawn."""
    done = _audited(page)
    return done.pairs() if done else {}


def changes(page: Page, found: dict[str, Any]) -> Cells:
    """The same for the cells of http.Matrix, whose columns may be of one port each."""
    done = _audited(page)
    if done is None:
        return {}
    by_pair = done.pairs()
    out: Cells = {}
    for one in found["cells"]:
        source, column = found["sources"][one["source"]], found["destinations"][one["destination"]]
        if column["port"] is None:
            change = by_pair.get((source, column["id"]))
        else:
            change = done.changes.get((source, column["id"], column["port"], column["proto"]))
        if change is not None:
            out[one["source"], one["destination"]] = change
    return out


def told(change: Change | None) -> list[tuple[str, int, str, str]]:
    """(word, flows, style, sign) of each thing that would change."""
    if change is None:
        return []
    both = (("newly denied", change.newly_denied, "lost", "−"), ("newly allowed", change.newly_allowed, "gained", "+"))
    return [one for one in both if one[1]]


def strip(page: Page) -> Callable[[Pairs, set[tuple[str, str]]], None]:
    """Room for what is said of a draft; to be told the changes, and which pairs are drawn."""
    room = box("div", "notices")
    shown: list[object] = [None]

    def tell(found: Pairs, drawn: set[tuple[str, str]]) -> None:
        state = (page.get("draft"), page.get("group"), tuple(found.items()), len(drawn.intersection(found)))
        if state == shown[0]:
            return
        shown[0] = state
        room.clear()
        if page.get("draft"):
            with room, box("div", "legend draft"):
                _say(page, found, drawn)

    return tell


def _say(page: Page, found: Pairs, drawn: set[tuple[str, str]]) -> None:
    text("Draft:", "strong")
    if page.get("group", "identity") != "identity":
        text("an audit tells of identities; group by them to see it")
    elif not found:
        text("it was not audited, or would change nothing")
    for sign, word, style in (("−", "newly denied", "lost"), ("+", "newly allowed", "gained")):
        some = [(pair, count) for pair, change in found.items() for name, count, _, _ in told(change) if name == word]
        if some:
            box("span", f"patch {style}")
            named = ", ".join(f"{source} → {target} {short(count)}" for (source, target), count in some[:NAMED])
            text(f"{sign} {word}: {named}" + (f" and {len(some) - NAMED:,} more pairs" if len(some) > NAMED else ""))
    missing = len(found.keys() - drawn)
    if missing:
        text(f"({missing:,} of these pairs are not drawn: filters, another time, or too small)", "span", "note")
    link("The draft", page.address("policy"), "button")
    button("Leave it out", lambda: page.set(draft=None), "quiet")
