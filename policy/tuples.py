"""Recorded tuples, and what is known of their addresses: what a suggestion is made from."""

from dataclasses import dataclass

import numpy as np

from policy.compile import compile_policy
from policy.evaluate import port_places
from policy.model import BITS, Identity, Named, Policy, Prefix, Reserved, Term
from policy.words import prefix
from schemas.codes import Decision, IdentityId

SUMS = ("flows", "packets", "bytes")


@dataclass(frozen=True)
class Tuples:
    """n tuples, each once: `src`, `dst` V16 (IPv4 in the last 4 bytes), `family`, `proto` uint8, `port` uint16 (the
    responder's, or the opener's ICMP type); of each the sums, int64, and when it was seen, ns since 1970 UTC, int64."""

    src: np.ndarray
    dst: np.ndarray
    family: np.ndarray
    proto: np.ndarray
    port: np.ndarray
    flows: np.ndarray
    packets: np.ndarray
    bytes: np.ndarray
    first_seen: np.ndarray
    last_seen: np.ndarray

    def __len__(self) -> int:
        return len(self.src)

    @property
    def places(self) -> np.ndarray:
        """Where protocol and port stand in `Compiled.ports`: intp[n]."""
        return port_places(self.family, self.proto, self.port)

    def ends(self) -> tuple["Addresses", np.ndarray, np.ndarray]:
        """All addresses, and which of them each tuple's source and destination is: intp[n] each."""
        halves = np.concatenate([np.ascontiguousarray(end).view(">u8").reshape(-1, 2) for end in (self.src, self.dst)])
        rows = np.column_stack([np.tile(self.family.astype("<u8"), 2), halves])
        distinct, at = np.unique(rows, axis=0, return_inverse=True)
        raw = np.ascontiguousarray(distinct[:, 1:].astype(">u8")).view("V16").ravel()
        at = at.reshape(-1)
        return Addresses(distinct[:, 0].astype("u1"), raw), at[: len(self)], at[len(self) :]


@dataclass(frozen=True)
class Addresses:
    """Distinct addresses in order: `family` uint8, `raw` V16."""

    family: np.ndarray
    raw: np.ndarray

    def prefixes(self) -> list[Prefix]:
        """Each as the prefix that holds it alone."""
        pairs = zip(self.family.tolist(), self.raw, strict=True)
        return [Prefix(family, int.from_bytes(raw.tobytes(), "big"), BITS[family]) for family, raw in pairs]


@dataclass(frozen=True)
class Known:
    """Names there are for addresses: `identities` of a policy, `host`: the node's own addresses; and the built-in rules
    that are off."""

    identities: tuple[Identity, ...] = ()
    host: tuple[str, ...] = ()
    builtins_off: frozenset[str] = frozenset()

    def meaning(self) -> dict[Term, tuple[Prefix, ...]]:
        """Each name with its addresses, in the order of the file, `host` last."""
        found: dict[Term, tuple[Prefix, ...]] = {Named(one.name): one.addresses for one in self.identities}
        return found | {Reserved.HOST: tuple(prefix(address) for address in self.host)}

    def terms(self, addresses: Addresses) -> list[Term | None]:
        """The name that verdicts show of each address: of the longest prefix; None: it has none."""
        compiled = compile_policy(Policy(1, Decision.DENY, self.identities, (), "", ""), host=self.host)
        rows = compiled.lookup.rows(addresses.raw, addresses.family)
        named: dict[int, Term] = {
            IdentityId.FIRST + i: Named(identity.name) for i, identity in enumerate(self.identities)
        }
        named[int(IdentityId.HOST)] = Reserved.HOST
        return [named.get(number) for number in compiled.lookup.identity.take(rows).tolist()]
