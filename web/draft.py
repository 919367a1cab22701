"""Drafts of a policy, and what an audit said of them. They are in this process's memory alone, by the id in an address.

Who keeps the address keeps the draft, through all views and a reload, until the page is restarted or KEPT others were
touched since.
"""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

KEPT = 50
SHOWN = 200
"""Entries of each list of an audit that are kept; the sums are of all."""
LISTS = {"newly_denied": "Newly denied", "newly_allowed": "Newly allowed", "uncertain": "Cannot be told"}
"""Of the document of `ztlens audit -o json` → heading."""


@dataclass(frozen=True)
class Sums:
    """Of a list, or of what did not change."""

    entries: int = 0
    flows: int = 0
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Change:
    """Flows between two identities that the draft would newly deny and newly allow; `crossing` are counted too."""

    newly_denied: int = 0
    newly_allowed: int = 0

    def plus(self, other: "Change") -> "Change":
        """Both."""
        return Change(self.newly_denied + other.newly_denied, self.newly_allowed + other.newly_allowed)


Key = tuple[str, str, int, str]
"""Source identity, destination identity, port, protocol."""


@dataclass(frozen=True)
class Audited:
    """What an audit said of `text` in [since, until) (ns; None: open)."""

    text: str
    since: int | None
    until: int | None
    judged: Sums
    unchanged: Sums
    sums: dict[str, Sums]
    entries: dict[str, list[dict[str, Any]]]
    changes: dict[Key, Change]

    def pairs(self) -> dict[tuple[str, str], Change]:
        """Changes by (source identity, destination identity)."""
        out: dict[tuple[str, str], Change] = {}
        for (source, destination, _, _), change in self.changes.items():
            out[source, destination] = out.get((source, destination), Change()).plus(change)
        return out


@dataclass
class Draft:
    """A text, and its last audit."""

    text: str = ""
    audited: Audited | None = field(default=None)


class Drafts:
    """Draft by id, those touched last."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Draft] = OrderedDict()

    def new(self) -> str:
        """The id of an empty one."""
        name = secrets.token_urlsafe(9)
        self._known[name] = Draft()
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return name

    def get(self, name: str) -> Draft | None:
        """None: there is no such draft, or no longer."""
        if name not in self._known:
            return None
        self._known.move_to_end(name)
        return self._known[name]

    def discard(self, name: str) -> None:
        """Forget it."""
        self._known.pop(name, None)


DRAFTS = Drafts()
"""Of this process."""


def audited(text: str, since: int | None, until: int | None, found: dict[str, Any]) -> Audited:
    """From the document of `ztlens audit -o json`."""
    changes: dict[Key, Change] = {}
    for name in ("newly_denied", "newly_allowed"):
        for entry in found[name]:
            key = (entry["src_identity"], entry["dst_identity"], entry["dport"], entry["proto"])
            change = Change(**{name: entry["flows"] + entry["crossing"]})
            changes[key] = changes.get(key, Change()).plus(change)
    return Audited(
        text, since, until, _sums(found), _sums(found["unchanged"]),
        {name: _total(found[name]) for name in LISTS}, {name: found[name][:SHOWN] for name in LISTS}, changes,
    )  # fmt: skip


def _sums(of: dict[str, Any], entries: int = 0) -> Sums:
    return Sums(entries, of["flows"], of["packets"], of["bytes"])


def _total(entries: list[dict[str, Any]]) -> Sums:
    total = {name: sum(entry[name] for entry in entries) for name in ("flows", "packets", "bytes")}
    return _sums(total, len(entries))
