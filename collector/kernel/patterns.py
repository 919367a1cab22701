"""Which interfaces are asked for: by name, or by a pattern such as `veth*` that takes in those that come later."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from collector.kernel.interface import Interface

_SPECIAL = frozenset("*?[")


def is_pattern(name: str) -> bool:
    """Whether `name` stands for any number of interfaces (fnmatch: `*`, `?`, `[…]`)."""
    return not _SPECIAL.isdisjoint(name)


def asked(interfaces: Sequence[Interface], names: Iterable[str]) -> dict[str, Interface]:
    """Those of `names` that are asked for, each as an interface of that name.

    What is said of a name goes before what is said of patterns; what several say of it adds up.
    """
    out = {}
    for name in names:
        said = [i.hooks for i in interfaces if i.name == name] or [
            i.hooks for i in interfaces if is_pattern(i.name) and fnmatchcase(name, i.name)
        ]
        if said:
            out[name] = Interface(name, said[0] if len(set(said)) == 1 else "both")
    return out


def waiting(interfaces: Sequence[Interface], names: Iterable[str]) -> list[str]:
    """Patterns that none of `names` matches."""
    names = list(names)
    patterns = [i.name for i in interfaces if is_pattern(i.name)]
    return [p for p in dict.fromkeys(patterns) if not any(fnmatchcase(name, p) for name in names)]
