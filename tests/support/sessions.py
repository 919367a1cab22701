"""Made-up traffic with the locality of a real service: requests come in sessions and fan out, sizes repeat.

A visitor (Zipf over 20,000 addresses) opens one to four connections to one of eight frontends; behind each a frontend
asks one or two of twelve APIs, which look names up (UDP) and ask one of six databases and caches, all within some
milliseconds. A monitor scrapes every host each 15 s; an intruder scans now and then, and is denied. Ports of services'
own connections count up by two from an offset a pair (as Linux does), visitors' are random. Sizes belong to one of
thirty kinds of request; four in ten vary a little. Sweeps run each second and emit the ends of flows idle for their
time-out. Rows are in ring order. What is random is uniform: nothing is made more alike than it says here.
"""

import numpy as np

from schemas.codes import Decision, Direction, EventKind, Outcome, Reason, RuleId
from schemas.verdict import DTYPE

START = 3_600_000_000_000
VISITOR, FRONTEND, API, STORE, DNS, MONITOR, INTRUDER = range(7)
_BASE = {FRONTEND: 0x0A000100, API: 0x0A000200, STORE: 0x0A000300, DNS: 0x0A000400, MONITOR: 0x0A000500,
         INTRUDER: 0xC6336407, VISITOR: 0x50000000}  # fmt: skip
_IDLE = {6: 10e9, 17: 60e9}


def _flows(sessions: int, seconds: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Columns of flows: begin (ns), from/to (kind << 24 | number), dport, proto, lasting (ns), kind of request."""
    parts: list[tuple[np.ndarray, ...]] = []

    def add(*columns: object) -> None:
        parts.append(tuple(np.broadcast_to(column, len(columns[0])) for column in columns))  # type: ignore[arg-type]

    begin = np.sort(rng.random(sessions)) * seconds * 1e9
    visitor = rng.zipf(1.25, sessions) % 20_000
    frontend, url = rng.integers(0, 8, sessions), rng.zipf(1.5, sessions) % 30
    each = np.repeat(np.arange(sessions), rng.integers(1, 5, sessions))
    at = begin[each] + rng.exponential(3e6, len(each))
    add(
        at,
        VISITOR << 24 | visitor[each],
        FRONTEND << 24 | frontend[each],
        443,
        6,
        rng.lognormal(18.5, 1, len(each)),
        url[each],
    )
    asked = np.repeat(each, rng.integers(1, 3, len(each)))
    at = begin[asked] + 5e6 + rng.exponential(2e6, len(asked))
    api = (url[asked] * 7 + rng.integers(0, 2, len(asked))) % 12
    add(
        at, FRONTEND << 24 | frontend[asked], API << 24 | api, 8080, 6, rng.lognormal(16.5, 0.7, len(asked)), url[asked]
    )
    add(
        at + 2e5,
        API << 24 | api,
        DNS << 24 | rng.integers(0, 2, len(asked)),
        53,
        17,
        rng.lognormal(13, 0.4, len(asked)),
        api,
    )
    store = (url[asked] + api) % 6
    add(
        at + 1e6,
        API << 24 | api,
        STORE << 24 | store,
        np.where(store < 3, 5432, 6379),
        6,
        rng.lognormal(15.5, 0.7, len(asked)),
        url[asked],
    )
    hosts = np.concatenate([FRONTEND << 24 | np.arange(8), API << 24 | np.arange(12), STORE << 24 | np.arange(6)])
    rounds = np.arange(0, seconds, 15.0) * 1e9
    at = (
        np.repeat(rounds, len(hosts))
        + np.tile(np.arange(len(hosts)) * 2e6, len(rounds))
        + rng.exponential(1e5, len(rounds) * len(hosts))
    )
    add(at, MONITOR << 24, np.tile(hosts, len(rounds)), 9100, 6, rng.lognormal(16, 0.1, len(at)), 29)
    ports = np.tile(np.arange(1, 200), max(1, int(seconds // 120)))
    at = np.repeat(rng.random(len(ports) // 199) * seconds * 1e9, 199) + ports * 1e6
    add(at, INTRUDER << 24, hosts[ports * 5 % len(hosts)], ports, 6, 1.0, 0)
    names = ("begin", "source", "target", "dport", "proto", "lasting", "kind")
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def sessions(count: int, *, seconds: float = 600.0, seed: int = 1) -> np.ndarray:
    """Rows of about 22 events a session over `seconds`: each flow's `new`, for half of TCP a `sample`, its `end`."""
    rng = np.random.default_rng(seed)
    flows = _flows(count, seconds, rng)
    order = np.argsort(flows["begin"], kind="stable")
    flows = {name: column[order] for name, column in flows.items()}
    n = len(order)
    source, target, kind = flows["source"].astype("i8"), flows["target"].astype("i8"), flows["kind"].astype("i8")
    denied = source >> 24 == INTRUDER
    tcp = flows["proto"] == 6
    pair = np.unique(source * 65536 + target % 65536 + (target >> 24 << 40), return_inverse=True)[1]
    by_pair = np.argsort(pair, kind="stable")
    nth = np.empty(n, "i8")
    starts = np.concatenate([[0], np.cumsum(np.bincount(pair))])
    nth[by_pair] = np.arange(n) - starts[pair[by_pair]]
    sport = 32768 + (rng.integers(0, 28000, pair.max() + 1)[pair] + 2 * nth) % 28232
    visiting = source >> 24 == VISITOR
    sport[visiting] = rng.integers(1024, 65535, int(visiting.sum()))
    varies = rng.random(n) < 0.4
    size = {
        "packets_original": np.where(tcp, 5 + kind % 9, 1),
        "packets_reply": np.where(tcp, 4 + kind % 11, 1),
        "bytes_original": np.where(tcp, 620 + kind * 97, 74 + kind) + varies * rng.integers(0, 300, n),
        "bytes_reply": np.where(tcp, 900 + kind * 2371, 130 + kind) + varies * rng.integers(0, 2000, n),
    }
    size["packets_original"] = np.where(denied, 1, size["packets_original"])
    size["bytes_original"] = np.where(denied, 74, size["bytes_original"])
    size["packets_reply"], size["bytes_reply"] = size["packets_reply"] * ~denied, size["bytes_reply"] * ~denied

    def events(which: np.ndarray, at: np.ndarray, kind_: EventKind, share: float) -> np.ndarray:
        rows = np.zeros(len(which), DTYPE)
        rows["time"] = (START + at).astype("u8")
        rows["flow_id"] = (which % 2).astype("u8") << np.uint64(48) | (which // 2 + 1).astype("u8")
        for name, end in (("src", source[which]), ("dst", target[which])):
            number = np.array([_BASE[k] for k in range(7)])[end >> 24] + (end & 0xFFFFFF)
            raw = np.zeros((len(which), 16), "u1")
            raw[:, 12:] = number.astype(">u4").view("u1").reshape(-1, 4)
            rows[name] = raw.view("V16").ravel()
            rows[f"{name}_identity"] = np.array([0, 16, 17, 18, 19, 20, 0])[end >> 24]
        for name, total in size.items():
            rows[name] = np.maximum((total[which] * share).astype("u8"), np.uint64("original" in name))
        rows["revision"], rows["family"], rows["outcome"], rows["event"] = 1, 4, Outcome.PASSED, kind_
        rows["sport"], rows["dport"], rows["proto"] = sport[which], flows["dport"][which], flows["proto"][which]
        rows["ifindex"] = 3 + (target[which] >> 24)
        no = denied[which]
        rows["decision"] = np.where(no, Decision.DENY, Decision.ALLOW)
        rows["reason"] = np.where(no, Reason.DEFAULT, Reason.RULE)
        rows["rule"] = np.where(no, RuleId.DEFAULT, RuleId.FIRST + (target[which] >> 24))
        rows["direction"] = Direction.REPLY if kind_ == EventKind.SAMPLE else Direction.ORIGINAL
        seen = 2 if kind_ == EventKind.NEW else 0x1B
        rows["tcp_flags_original"] = np.where(tcp[which], np.where(no, 2, seen), 0)
        rows["tcp_flags_reply"] = np.where(tcp[which] & ~no, 0 if kind_ == EventKind.NEW else 0x1B, 0)
        return rows

    every = np.arange(n)
    sampled = every[tcp & ~denied & (rng.random(n) < 0.5)]
    last = flows["begin"] + flows["lasting"]
    swept = np.ceil((last + np.where(tcp, _IDLE[6], _IDLE[17])) / 1e9) * 1e9 + rng.random(n) * 2e7
    parts = [
        (events(every, flows["begin"], EventKind.NEW, 0.0), flows["begin"]),
        (events(sampled, (flows["begin"] + flows["lasting"] / 2)[sampled], EventKind.SAMPLE, 0.5),
         (flows["begin"] + flows["lasting"] / 2)[sampled]),
        (events(every, last, EventKind.END, 1.0), swept),
    ]  # fmt: skip
    rows = np.concatenate([part[0] for part in parts])
    return rows[np.argsort(np.concatenate([part[1] for part in parts]), kind="stable")]
