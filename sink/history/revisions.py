"""What was in force where: the recorded revisions of every ring, with the names and addresses of their day."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from policy.errors import PolicyError
from policy.model import Identity, Policy
from policy.parse import parse
from policy.words import prefix
from schemas.codes import IdentityId
from sink.errors import QueryError

IN_FORCE = ("start", "revision", "mode")
"""Kinds of policy records that tell what decides from then on."""

Names = Mapping[int, str]
"""Number of a rule or an identity → name."""


@dataclass(frozen=True, eq=False)
class Revision:
    """One revision of one ring. `identities`: what names meant then; None: not recorded, as is `host`."""

    yaml: str
    hash: str
    rules: Names
    named: Names
    identities: Mapping[str, Identity] | None
    host: tuple[str, ...] | None

    def policy(self, node: str) -> Policy | None:
        """What its text says; None: there was no policy. Raises QueryError if the text is not known."""
        if not self.hash:
            return None
        if not self.yaml:
            raise QueryError(f"the text of the policy of {node} was not recorded: it is too large for a message",
                             "give its file with --against FILE")  # fmt: skip
        try:
            return parse(self.yaml, f"policy of {node}")
        except PolicyError as error:
            raise QueryError(str(error), "it was written for another version of ztlens") from error

    @property
    def builtins_off(self) -> frozenset[str]:
        """Built-in rules that were off."""
        if "builtins" not in self.yaml:  # the key would be there, and reading a long text costs a second
            return frozenset()
        policy = self.policy("")
        return policy.builtins_off if policy is not None else frozenset()


_UNKNOWN = Revision("", "", {}, {}, None, None)


class Revisions:
    """All that is recorded of the rings of `node`, or of all (None)."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, node: str | None = None) -> None:
        """Read it; equal rules and identities of many revisions are read once. Raises QueryError: no such node."""
        rings = cursor.execute("SELECT id, node FROM store.rings ORDER BY id").fetchall()
        self.nodes: dict[int, str] = {ring: name for ring, name in rings if node is None or name == node}
        """Ring → node."""
        if node is not None and not self.nodes:
            known = ", ".join(sorted({name for _, name in rings})) or "none"
            raise QueryError(f"no node is called {node!r}", f"recorded are: {known}")
        self._known = self._read(cursor)
        self._moments: dict[str, list[tuple[int, int, int]]] = {}
        times = cursor.execute(
            "SELECT epoch_ns(time), ring, revision FROM store.policy WHERE kind IN ? ORDER BY time", [list(IN_FORCE)]
        ).fetchall()
        for time, ring, revision in times:
            if ring in self.nodes:
                self._moments.setdefault(self.nodes[ring], []).append((time, ring, revision))

    def of(self, ring: int, number: int) -> Revision:
        """What is known of a revision; an empty one if nothing is."""
        return self._known.get((ring, number), _UNKNOWN)

    def last(self, ring: int) -> Revision | None:
        """The revision that came into force last on the ring's node; None: none is recorded."""
        moments = self._moments.get(self.nodes[ring])
        return self.of(*moments[-1][1:]) if moments else None

    def host(self, ring: int, number: int) -> tuple[str, ...] | None:
        """The node's own addresses in that revision; not recorded: those before it, else behind it; None: never."""
        own = self.of(ring, number).host
        if own is not None:
            return own
        moments = self._moments.get(self.nodes[ring], [])
        hosts = [(time, host) for time, *key in moments if (host := self.of(*key).host) is not None]
        begun = next((time for time, *key in moments if key == [ring, number]), 0)
        before = bisect_right([time for time, _ in hosts], begun)
        return hosts[max(0, before - 1)][1] if hosts else None

    def last_host(self, ring: int) -> tuple[str, ...] | None:
        """The node's own addresses as recorded last; None: never."""
        hosts = [
            host for _, *key in self._moments.get(self.nodes[ring], []) if (host := self.of(*key).host) is not None
        ]
        return hosts[-1] if hosts else None

    def _read(self, cursor: duckdb.DuckDBPyConnection) -> dict[tuple[int, int], Revision]:
        rows = cursor.execute(_REVISIONS, {"kinds": list(IN_FORCE), "first": int(IdentityId.FIRST)}).fetchall()
        rules: dict[str | None, Names] = {None: {}}
        identities: dict[str | None, tuple[Names, Mapping[str, Identity]]] = {None: ({}, {})}
        found = {}
        for ring, number, yaml, digest, rules_digest, identities_digest, host in rows:
            if ring not in self.nodes:
                continue
            key = {"ring": ring, "revision": number}
            if rules_digest not in rules:
                rules[rules_digest] = dict(cursor.execute(_RULES, key).fetchall())
            if identities_digest not in identities:
                given = cursor.execute(_IDENTITIES, key | {"first": int(IdentityId.FIRST)}).fetchall()
                identities[identities_digest] = (
                    {number: name for number, name, _, _ in given},
                    {
                        name: Identity(name, dict(labels), tuple([prefix(text) for text in addresses]))
                        for _, name, labels, addresses in given
                    },
                )
            named, meant = identities[identities_digest]
            slim = bool(digest) and not yaml  # too large for a message: recorded without texts and addresses
            found[ring, number] = Revision(
                yaml or "", digest or "", rules[rules_digest], named, None if slim else meant,
                None if slim or host is None else tuple(host),
            )  # fmt: skip
        return found


# Equal contents have equal digests: a node whose addresses move has many revisions of one policy.
_REVISIONS = f"""WITH told AS (
    SELECT ring, revision, arg_min(yaml, time) AS yaml, arg_min(hash, time) AS hash FROM store.policy
    WHERE kind IN $kinds GROUP BY ring, revision
), ruled AS (
    SELECT ring, revision, md5(string_agg(id || ' ' || name, chr(10) ORDER BY id)) AS rules FROM store.rules
    GROUP BY ring, revision
), named AS (
    SELECT ring, revision,
        md5(string_agg(concat_ws(' ', id, name, labels, addresses), chr(10) ORDER BY id)
            FILTER (id >= $first)) AS identities,
        any_value(addresses) FILTER (id = {int(IdentityId.HOST)}) AS host
    FROM store.identities GROUP BY ring, revision
)
SELECT ring, revision, yaml, hash, rules, identities, host
FROM told FULL JOIN ruled USING (ring, revision) FULL JOIN named USING (ring, revision)"""
_RULES = "SELECT id, name FROM store.rules WHERE ring = $ring AND revision = $revision"
_IDENTITIES = """SELECT id, name, labels, addresses FROM store.identities
    WHERE ring = $ring AND revision = $revision AND id >= $first ORDER BY id"""
