"""History in the order of its stamps, a window at a time: memory is that of a few windows, however long the history.

A window is a stretch of time. How long it is follows from how many verdicts the one before held, and how long the
question took; one that holds far too many is cut and asked again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from schemas.codes import IdentityId, RuleId
from schemas.messages import IdentityInfo, PolicyRecord, RuleInfo
from schemas.present import reserved_identity, reserved_rule
from schemas.tables import VERDICT_COLUMNS
from schemas.verdict import DTYPE

if TYPE_CHECKING:
    import pyarrow

    from sink.client import History

TARGET = 100_000
"""Verdicts a window should hold."""
MOST = 4 * TARGET
"""Verdicts a window may hold; more only if one nanosecond does."""
GROWTH = 8
SLOW = 1.0
"""Seconds a question may take before windows shrink."""
REVISIONS = 64
"""Revisions whose names are kept; others are asked for again."""

T = TypeVar("T")
RingKey = tuple[str, str]
"""Node and ring."""
_COLUMNS = ", ".join(f"s.{name}" for name, _ in VERDICT_COLUMNS)


Columns = dict[str, np.ndarray]
"""Verdicts: the columns of schemas.verdict, `time` in ns since 1970 UTC, and `position`, in bytes of the ring; (n,)."""
Part = list[tuple[RingKey, Columns]]
"""What goes out together: some verdicts of each ring, in the order of time; the ring of the earliest first."""


@dataclass(frozen=True)
class Window:
    """Verdicts in the order of time, node, ring, position.

    `ring` u4 of shape (n,): keys of `rings`. `policies`: the names behind the numbers of these verdicts.
    """

    columns: Columns
    ring: np.ndarray
    rings: dict[int, RingKey]
    policies: list[PolicyRecord] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ring)

    @property
    def time(self) -> np.ndarray:
        """Stamps, i8."""
        return self.columns["time"].view("i8")

    def by_ring(self) -> Part:
        """All of it."""
        if len(self.rings) == 1:
            return [(next(iter(self.rings.values())), self.columns)]
        numbers, firsts = np.unique(self.ring, return_index=True)
        return [
            (self.rings[number], taken(self.columns, np.flatnonzero(self.ring == number)))
            for number in numbers[np.argsort(firsts)].tolist()
        ]

    def parts(self, span: int | None) -> Iterator[Part]:
        """Stretches of up to `span` ns from the first stamp of each; all of it if None."""
        rings = self.by_ring()
        if span is None:
            yield rings
            return
        at, begun = 0, [0] * len(rings)
        while at < len(self):
            end = self.time[at] + span
            at = int(np.searchsorted(self.time, end))
            part = []
            for i, (key, columns) in enumerate(rings):
                first, begun[i] = begun[i], int(columns["time"].searchsorted(np.uint64(end)))
                if begun[i] > first:
                    part.append((key, cut(columns, first, begun[i])))
            yield sorted(part, key=lambda of_ring: of_ring[1]["time"][0])


def cut(columns: Columns, first: int, past: int) -> Columns:
    """Verdicts [first, past); no copy."""
    return {name: column[first:past] for name, column in columns.items()}


def taken(columns: Columns, index: np.ndarray) -> Columns:
    """Those of `index`, in its order."""
    return {name: column.take(index) for name, column in columns.items()}


def rows(columns: Columns) -> np.ndarray:
    """As one structured array of schemas.verdict.DTYPE."""
    out = np.empty(len(columns["position"]), DTYPE)
    for name in DTYPE.names or ():
        out[name] = columns[name]
    return out


class Names:
    """schemas.present.Names of one ring."""

    def __init__(self) -> None:
        self._rules: dict[tuple[int, int], str] = {}
        self._identities: dict[tuple[int, int], str] = {}

    @staticmethod
    def by_ring(policies: list[PolicyRecord]) -> dict[RingKey, "Names"]:
        """Of each ring that a record is about."""
        out: dict[RingKey, Names] = {}
        for record in policies:
            names = out.setdefault((record.node, record.ring), Names())
            names._rules.update({(record.revision, rule.id): rule.name for rule in record.rules})
            names._identities.update({(record.revision, one.id): one.name for one in record.identities})
        return out

    def rule(self, revision: int, number: int) -> str | None:
        return reserved_rule(number) if number < RuleId.FIRST else self._rules.get((revision, number))

    def identity(self, revision: int, number: int) -> str | None:
        if number < IdentityId.FIRST:
            return reserved_identity(number)
        return self._identities.get((revision, number))


class Reader:
    """Windows of what satisfies `predicate` over the view `verdicts`. Not thread-safe.

    `history` is called for each window anew, and closed before the window is handed on.
    """

    def __init__(self, history: "Callable[[], AbstractContextManager[History]]", predicate: str = "TRUE") -> None:
        self._open = history
        self._predicate = predicate
        self._rings: dict[int, RingKey] = {}
        self._policies: OrderedDict[tuple[int, int], PolicyRecord | None] = OrderedDict()

    def windows(self, since: int | None = None, until: int | None = None) -> Iterator[Window]:
        """From `since`, before `until` (ns since 1970 UTC), up to the newest there is now. Raises SinkError."""
        from sink.history import moments

        moments.check(since, until)
        with self._open() as history:
            bounds = _one(
                history,
                "SELECT epoch_ns(min(time)) AS first, epoch_ns(max(time)) AS last, count(*) AS n"
                f" FROM store.verdicts AS s WHERE {_between(since, until)}",
            )
        if not bounds["n"]:
            return
        at, end = int(bounds["first"]), int(bounds["last"]) + 1
        width = max(1, (end - at) * TARGET // int(bounds["n"]))
        while at < end:
            past = min(end, at + width)
            window = None
            with self._open() as history:
                begun = time.monotonic()
                found = history.sql(self._question(at, past))
                n, seconds = found.num_rows, time.monotonic() - begun
                if n > MOST and past - at > 1:
                    width = max(1, (past - at) // 4)
                    continue
                if n:
                    window = self._window(history, found)
            if window:
                yield window
            grow = min(GROWTH, TARGET / max(1, n), SLOW / max(1e-9, seconds))
            width = max(1, int((past - at) * max(1 / GROWTH, grow)))
            at = past

    def _question(self, at: int, past: int) -> str:
        span = _between(at, past)
        limit = f" LIMIT {MOST + 1}" if past - at > 1 else ""
        if self._predicate == "TRUE":
            return f"SELECT {_COLUMNS} FROM store.verdicts AS s WHERE {span}{limit}"
        return f"""SELECT {_COLUMNS} FROM store.verdicts AS s WHERE {span} AND (s.ring, s.position) IN (
            SELECT r.id, w.position FROM (
                SELECT node, ring, position FROM verdicts WHERE {_between(at, past, "")} AND ({self._predicate})
            ) AS w JOIN store.rings AS r ON r.node = w.node AND r.ring = w.ring){limit}"""

    def _window(self, history: "History", found: "pyarrow.Table") -> Window:
        from sink.store.rows import wire_columns

        columns = wire_columns(found) | {"position": found["position"].to_numpy()}
        ring = found["ring"].to_numpy()
        pairs = np.unique(ring.astype("u8") << np.uint64(32) | columns["revision"]).tolist()
        present = {pair >> 32 for pair in pairs}
        if not self._rings.keys() >= present:
            table = history.sql("SELECT id, node, ring FROM store.rings")
            self._rings = {row["id"]: (row["node"], row["ring"]) for row in table.to_pylist()}
        policies = [record for pair in pairs if (record := self._policy(history, pair >> 32, pair & 0xFFFFFFFF))]
        given = Window(columns, ring, {number: self._rings[number] for number in present}, policies)
        order = self._order(given)
        return replace(given, columns=taken(columns, order), ring=ring.take(order))

    def _order(self, given: Window) -> np.ndarray:
        """Stamps are nearly in order and hardly ever alike, which a stable sort makes use of."""
        order = np.argsort(given.time, kind="stable")
        stamps = np.take(given.time, order)
        if (stamps[1:] != stamps[:-1]).all():
            return order
        by_name = sorted(self._rings, key=self._rings.__getitem__)
        rank = np.zeros(max(by_name) + 1, "u4")
        rank[by_name] = np.arange(len(by_name))
        return np.lexsort((given.columns["position"], rank[given.ring], given.time))

    def _policy(self, history: "History", ring: int, revision: int) -> PolicyRecord | None:
        """A revision of a ring with its names; None if nothing was ever recorded of it."""
        key = ring, revision
        if key in self._policies:
            self._policies.move_to_end(key)
        else:
            self._policies[key] = self._asked(history, ring, revision)
            while len(self._policies) > REVISIONS:
                self._policies.popitem(last=False)
        return self._policies[key]

    def _asked(self, history: "History", ring: int, revision: int) -> PolicyRecord | None:
        of_revision = f"ring = {ring} AND revision = {revision}"
        rules = history.sql(f"SELECT id, name, action, report_only, text FROM store.rules WHERE {of_revision}")
        identities = history.sql(f"SELECT id, name, labels, addresses FROM store.identities WHERE {of_revision}")
        record = _one(
            history,
            f"""SELECT min(epoch_ns(time)) AS time, arg_min(mode, time) AS mode, arg_min("default", time) AS "default",
            arg_min(hash, time) AS hash, arg_min(yaml, time) AS yaml, arg_min(who, time) AS who
            FROM store.policy WHERE {of_revision} AND kind IN ('start', 'revision')""",
        )
        if record["time"] is None and not rules.num_rows and not identities.num_rows:
            return None
        node, name = self._rings[ring]
        known: dict[str, Any] = {"time": 0, "mode": ""} | {k: v for k, v in record.items() if v is not None}
        return PolicyRecord(
            v=1, kind="revision", node=node, ring=name, revision=revision,
            rules=[RuleInfo(**row) for row in rules.to_pylist()],
            identities=[IdentityInfo(**row) for row in identities.to_pylist(maps_as_pydicts="lossy")],
            **known,
        )  # fmt: skip


def _one(history: "History", sql: str) -> dict[str, Any]:
    row: dict[str, Any] = history.sql(sql).to_pylist()[0]
    return row


def _between(since: int | None, until: int | None, table: str = "s.") -> str:
    bounds = [f"{table}time >= make_timestamp_ns({since})"] if since is not None else []
    bounds += [f"{table}time < make_timestamp_ns({until})"] if until is not None else []
    return " AND ".join(bounds) or "TRUE"


async def ahead(given: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same; the next one is being made while one is used."""
    iterator = aiter(given)
    reading = asyncio.ensure_future(anext(iterator, None))
    try:
        while (one := await reading) is not None:
            reading = asyncio.ensure_future(anext(iterator, None))
            yield one
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await reading
