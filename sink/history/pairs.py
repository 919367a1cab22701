"""SQL of sums by pair: who spoke to whom, and what was decided by which rule."""

from schemas.tables import PAIR_KEYS, PAIR_SUMS

KEYS = tuple(name for name, _ in PAIR_KEYS)
SUMS = tuple(name for name, _ in PAIR_SUMS)
TOTALS = SUMS[1:]
COLUMNS = ", ".join(("ring", "time", *KEYS, *SUMS, "first_seen", "last_seen"))
"""Of a roll-up, in order."""
MINUTE, HOUR = 60_000_000_000, 3_600_000_000_000
ALIKE = "ORDER BY time, dst_hi, dst_lo, dport, src_hi, src_lo"
"""Rows in this order take a quarter less room than as they come."""
FOR_EVER = (1 << 63) - 2
"""The last moment a TIMESTAMP_NS can say; the one after it means infinity."""

_JUDGED = ", ".join(KEYS[:-1])
_SUM_MOST = (1 << 62) - 1


def total(of: str, only: str = "") -> str:
    """SQL: the sum of numbers, of those for which `only` holds; of none 0.

    Forged numbers cannot make it more than its type holds: that would be an error in every answer it is part of.
    """
    where = f" FILTER ({only})" if only else ""
    return f"least(coalesce(sum({of}){where}, 0), {_SUM_MOST})::UBIGINT"


_SUMMED = ", ".join(f"{total(name)} AS {name}" for name in SUMS)


def within(first: int, past: int, time: str = "time") -> str:
    """Condition: the column `time` is in [first, past), ns since 1970."""
    return f"{time} >= make_timestamp_ns({first}) AND {time} < make_timestamp_ns({past})"


def uncounted(ring: int, first: int, past: int, later: int) -> str:
    """Condition: what events at [first, past) of a ring add is in no roll-up; `later`: where its roll-ups end.

    Before that end they fill a gap, and the totals of a flow with later events are counted already.
    """
    where = f"ring = {ring} AND position >= {first} AND position < {past}"
    if later > past:
        where += f""" AND NOT flow_id IN (
            SELECT flow_id FROM store.verdicts
                WHERE ring = {ring} AND position >= {past} AND position < {later} AND flow_id <> 0
            UNION ALL SELECT flow_id FROM store.open_flows WHERE ring = {ring} AND position >= {past})"""
    return where


def judged(ring: int, where: str) -> str:
    """Rows, in parentheses, of what the events `where` of a ring say, not rolled up yet, and the flows open before."""
    return f"""(SELECT ring, position, {_JUDGED} FROM store.verdicts WHERE {where}
        UNION ALL SELECT ring, position, {_JUDGED} FROM store.open_flows WHERE ring = {ring})"""


def added(verdicts: str, duplicate: str = "false", also: str = "") -> str:
    """Rows, in parentheses, of the table `increments` with the verdict each belongs to (`verdicts`: see `judged`).

    `duplicate` is that column's expression; `also` joins what it needs.
    """
    keys = ", ".join(f"v.{name}" for name in KEYS[:-1])
    sums = ", ".join(f"i.{name}" for name in SUMS)
    return f"""(SELECT v.ring, i.time, {keys}, {duplicate} AS duplicate, {sums}, i.time AS first_seen,
        i.time AS last_seen, i.event FROM increments AS i JOIN {verdicts} AS v ON v.position = i.judged {also})"""


def summed(rows: str, length: int, first: int = 0, past: int = FOR_EVER, more: str = "") -> str:
    """SELECT of the columns of a roll-up (`more` behind them): `rows` in [first, past) by `length` ns of time."""
    return f"""SELECT ring, make_timestamp_ns(epoch_ns(time) // {length} * {length}) AS time, {", ".join(KEYS)},
        {_SUMMED}, min(first_seen) AS first_seen, max(last_seen) AS last_seen {more} FROM {rows}
        WHERE {within(first, past)} GROUP BY ALL"""
