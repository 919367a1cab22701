"""Numbers, times and decisions as people read them in a view."""

from datetime import datetime

from schemas import times

LINES = (("allowed", "allowed", "solid"), ("would_deny", "would deny", "dashed"), ("denied", "denied", "dotted"))
"""Of a Split: key, word, and how its line is drawn. Colour is never the only difference."""

MARKS = {"would_deny": "!", "denied": "×"}
"""Where there is no line to be drawn otherwise."""


def short(count: int | float) -> str:
    """`8,123`, `12.3 k`, `4.5 M`."""
    for unit in ("", " k", " M", " G"):
        if abs(count) < (100_000 if not unit else 1000):
            return f"{count:,.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:,.0f} T"


def amount(count: int) -> str:
    """Bytes."""
    return times.amount(count)


def clock(time: str) -> str:
    """`05:21:40` of RFC 3339."""
    return time[11:19]


def stamp(time: str) -> str:
    """`2026-11-22 05:21:40.123` of RFC 3339, UTC."""
    return time[:23].replace("T", " ").rstrip("Z")


def ago(time: str, now: str) -> str:
    """How long before `now`: `3s`, `4m10s`."""
    return times.ago(max(0.0, (_at(now) - _at(time)).total_seconds()))


def _at(time: str) -> datetime:
    """Microseconds are enough to look at."""
    return datetime.fromisoformat(time[:26].rstrip("Z") + "+00:00")


def denied_word(outcome: str) -> str:
    """What a denial did."""
    return "dropped" if outcome == "dropped" else "would drop"


def kind(row: dict[str, object]) -> str:
    """`allowed`, `would-deny` or `denied`: the style of a verdict or a flow."""
    if row["decision"] != "deny":
        return "allowed"
    return "denied" if row["outcome"] == "dropped" else "would-deny"


def endpoint(address: str | None, port: int, proto: str) -> str:
    """`10.0.1.10:443`, `[fd00::1]:443`; without a port where the protocol has none."""
    if not address:
        return "?"
    if proto not in ("tcp", "udp", "sctp"):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def service(port: int, proto: str) -> str:
    """As policy.yaml writes it: `443/tcp`, `icmp:8`, `proto:47`."""
    if proto in ("tcp", "udp", "sctp"):
        return f"{port}/{proto}"
    return f"{proto}:{port}" if proto in ("icmp", "icmpv6") else f"proto:{proto}"
