"""Reads rows of a difference between policies as people do: word by word, with the naive reader of policies."""

from typing import Any

from policy.diff import Row
from policy.model import Labels, Named, Reserved
from tests.support.naive_policy import NaivePolicy, Tuple, holds, port_matches


class NaiveRows:
    """Tells which rows a tuple is in. A name is that of the first policy that knows it."""

    def __init__(self, *policies: NaivePolicy) -> None:
        self.policies = policies

    def holds(self, row: Row, packet: Tuple) -> bool:
        return (
            self._among(row.source, packet.src)
            and self._among(row.destination, packet.dst)
            and any(port_matches(word, packet) for word in row.ports.terms)
            and not any(port_matches(word, packet) for word in row.ports.exclude)
        )

    def _among(self, side: Any, address: str) -> bool:
        return any(self._selects(term, address) for term in side.terms) and not any(
            self._selects(term, address) for term in side.exclude
        )

    def _selects(self, term: Any, address: str) -> bool:
        if isinstance(term, Named):
            policy = next(p for p in self.policies if term.name in p.identities)
            return policy.selects(term.name, address)
        if isinstance(term, Labels):
            pairs = dict(term.pairs)
            knowing = (
                p for p in self.policies for i in p.identities.values() if pairs.items() <= i.get("labels", {}).items()
            )
            return next(knowing).selects(pairs, address)
        if isinstance(term, Reserved):
            policy = next((p for p in self.policies if p.host), self.policies[0])
            return policy.selects(str(term), address)
        return holds([str(term)], address)
