"""Where the nodes of a map are: the same for the same nodes, and there they stay while there is room.

Groups are discs on a ring, in the order of their names; within a disc nodes fill a spiral from the middle. A node that
comes later takes the next place of its group's spiral, so nothing that is on the screen moves.
"""

import ipaddress
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_GOLDEN = math.pi * (3 - math.sqrt(5))
STEP = 46.0
"""Distance between neighbours of a spiral, in the map's own unit."""
TURN = STEP * 0.9
"""A disc of n nodes has a radius of TURN √n."""
ALONE, ALONE_MOST = "\n", 12
"""Begins the name of a disc of one node without a group; so many of them at most."""
MOST = 2000
"""Places that are kept, those of nodes long gone, too. With more what is there would be small and far apart: all begins
anew."""
Point = tuple[float, float]


@dataclass
class Disc:
    """A group: its middle, its radius when it was laid out, and how many places are taken."""

    name: str
    x: float
    y: float
    radius: float
    taken: int = 0

    def next(self) -> Point:
        """The next place: Vogel's spiral."""
        distance, angle = TURN * math.sqrt(self.taken + 0.5), self.taken * _GOLDEN
        self.taken += 1
        return round(self.x + distance * math.cos(angle), 1), round(self.y + distance * math.sin(angle), 1)


@dataclass
class Layout:
    """Places by node; `place` adds those of new ones."""

    places: dict[str, Point] = field(default_factory=dict)
    discs: dict[str, Disc] = field(default_factory=dict)
    _disc_of: dict[str, str] = field(default_factory=dict)

    def place(self, groups: Mapping[str, str]) -> None:
        """Node → its group, of every node there is now; empty: none. A few without a group stand alone."""
        if len(self.places.keys() | groups.keys()) > max(MOST, len(groups)):
            for kept in (self.places, self.discs, self._disc_of):
                kept.clear()
        new = sorted(name for name in groups if name not in self.places)
        alone = {name: ALONE + name for name in new if not groups[name]}
        if len(alone) + sum(name.startswith(ALONE) for name in self.discs) <= ALONE_MOST:
            groups = {**groups, **alone}
        sizes = Counter(groups[name] for name in new)
        fresh = sorted(group for group in sizes if group not in self.discs)
        if fresh:
            self._add([(group, sizes[group]) for group in fresh])
        for name in new:
            self.places[name] = self.discs[groups[name]].next()
            self._disc_of[name] = groups[name]

    def groups(self, names: Sequence[str]) -> list[Disc]:
        """The discs of groups that more than one of `names` is in."""
        counted = Counter(self._disc_of[name] for name in names)
        return [disc for name, disc in self.discs.items() if name and counted[name] > 1]

    def spacing(self, names: Sequence[str], width: float, height: float) -> float:
        """From a node of a disc to the next, when the places of `names` are drawn on width × height, in its unit."""
        places = [self.places[name] for name in names] or [(0.0, 0.0)]
        wide, high = (max(values) - min(values) + STEP for values in zip(*places, strict=True))
        return TURN * math.sqrt(math.pi) * min(width / wide, height / high)

    def _add(self, groups: Sequence[tuple[str, int]]) -> None:
        """Discs of new groups: on a ring around what is there."""
        radii = [TURN * math.sqrt(size) + STEP * 0.6 for _, size in groups]
        if not self.discs and len(groups) == 1:
            self.discs[groups[0][0]] = Disc(groups[0][0], 0.0, 0.0, radii[0])
            return
        inner = max((math.hypot(disc.x, disc.y) + disc.radius for disc in self.discs.values()), default=0.0)
        around = sum(2 * radius + STEP * 0.6 for radius in radii)
        ring = max(around / (2 * math.pi), inner + max(radii) + STEP * 0.6 if inner else max(radii) * 1.2)
        at = -math.pi / 2
        for (group, _), radius in zip(groups, radii, strict=True):
            share = math.pi * 2 * (2 * radius + STEP * 0.6) / around
            at += share / 2
            # Wider than high, as screens are.
            self.discs[group] = Disc(group, round(1.7 * ring * math.cos(at), 1), round(ring * math.sin(at), 1), radius)
            at += share / 2


def group_of(name: str, labels: Mapping[str, str], key: str) -> str:
    """By the label `key`; an address by its network; else nothing."""
    if labels.get(key):
        return f"{key}={labels[key]}"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return ""
    return str(ipaddress.ip_network(f"{address}/{24 if address.version == 4 else 64}", strict=False))


def usual_key(labels: Sequence[Mapping[str, str]]) -> str:
    """The label that most have; empty: none has one."""
    counted = Counter(key for one in labels for key in one)
    return min(counted, key=lambda key: (-counted[key], key), default="")
