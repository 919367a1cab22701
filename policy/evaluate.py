"""What a compiled policy decides about tuples: the kernel's judgement, over arrays.

It judges the first packet of a conversation. State (replies, fragments, mid-stream TCP) and the built-in rules, which
look at more than a tuple, are the datapath's.
"""

import numpy as np

from policy.compile import Compiled
from policy.lookup import ADDRESS
from schemas.codes import PROTOCOLS, Decision, IdentityId, Reason, RuleId
from schemas.structs import PORT_GROUPS, PORTS_PER_SLOT

CHUNK = 16_384
"""Tuples at a time: the intermediate arrays stay in the second-level cache."""

# By protocol, + 256 over IPv6: ICMP of the other family has no types.
_PORT_BASE = np.tile(PORT_GROUPS["OTHER"][0] + np.arange(256, dtype=np.intp), 2)
_PORT_MASK = np.zeros(512, np.intp)
for _number, _word in PROTOCOLS.items():
    for _row in {"icmp": (_number,), "icmpv6": (_number + 256,)}.get(_word, (_number, _number + 256)):
        _PORT_BASE[_row], _size = PORT_GROUPS[_word.upper()]
        _PORT_MASK[_row] = _size - 1


def evaluate(  # noqa: PLR0917 – the five columns of a tuple
    compiled: Compiled, src: np.ndarray, dst: np.ndarray, family: np.ndarray, proto: np.ndarray, port: np.ndarray
) -> dict[str, np.ndarray]:
    """Judge n tuples: addresses V16[n] (IPv4 in the last 4 bytes), uint8[n] family and proto, uint16[n] port.

    `port` is the responder's, or the opener's ICMP type. Returns arrays of n: `rule` (uint16, RuleId.FIRST + index or
    a RuleId), `decision`, `reason` (uint8), `report_only` (bool), `src_identity`, `dst_identity` (uint32). A family
    other than 4 and 6 is malformed. Raises ValueError if the shapes do not agree.
    """
    n = len(src)
    family, proto, port = (np.asarray(a) for a in (family, proto, port))
    src, dst = (np.ascontiguousarray(a) for a in (src, dst))
    if src.dtype != ADDRESS or dst.dtype != ADDRESS:
        raise ValueError("addresses must be V16")
    if any(a.shape != (n,) for a in (src, dst, family, proto, port)):
        raise ValueError("src, dst, family, proto and port must be one-dimensional and of one length")
    out = {
        "rule": np.empty(n, "<u2"),
        "decision": np.empty(n, "u1"),
        "reason": np.empty(n, "u1"),
        "report_only": np.empty(n, bool),
        "src_identity": np.empty(n, "<u4"),
        "dst_identity": np.empty(n, "<u4"),
    }
    for begin in range(0, n, CHUNK):
        part = slice(begin, begin + CHUNK)
        columns = _judge(compiled, src[part], dst[part], family[part], proto[part], port[part])
        for name, column in columns.items():
            out[name][part] = column
    return out


def matching_rule(compiled: Compiled, source: np.ndarray, destination: np.ndarray, port: np.ndarray) -> np.ndarray:
    """Index of the first rule in order of credit per triple of classes (intp[n] each); -1: none. intp[n]."""
    tables = compiled.vectors
    out = np.full(len(source), -1, np.intp)
    for block in range(tables.source.blocks):
        # Which words can hold a common bit at all: most have none, so most tuples look at one word or two.
        words = tables.source.summary[block].take(source)
        words &= tables.destination.summary[block].take(destination)
        words &= tables.port.summary[block].take(port)
        left = np.flatnonzero((words != 0) & (out < 0)) if block else np.flatnonzero(words)
        words, s, d, p = (column.take(left) for column in (words, source, destination, port))
        while len(left):
            lowest = words & -words
            at = lowest_bit(lowest)
            word = at + 64 * block
            common = tables.source.flat.take(s * tables.words + word)
            common &= tables.destination.flat.take(d * tables.words + word)
            common &= tables.port.flat.take(p * tables.words + word)
            hit = common != 0
            found = common[hit]
            out[left[hit]] = 64 * word[hit] + lowest_bit(found & -found)
            words ^= lowest
            again = np.flatnonzero(~hit & (words != 0))
            left, words, s, d, p = (column.take(again) for column in (left, words, s, d, p))
    return out


def lowest_bit(isolated: np.ndarray) -> np.ndarray:
    """Number of the one bit that is set in each uint64, as intp: the exponent of its float64, which is exact."""
    return (isolated.astype("<f8").view("<i8") >> 52) - 1023


def port_places(family: np.ndarray, proto: np.ndarray, port: np.ndarray) -> np.ndarray:
    """Where a protocol and port (uint8[n], uint16[n]) over a family (uint8[n]) stand in `ports`: intp[n]."""
    row = ((family & 2).astype(np.intp) << 7) | proto
    return _PORT_BASE.take(row) + (port & _PORT_MASK.take(row))


def reachable_places(family: int) -> np.ndarray:
    """bool[PORTS_PER_SLOT]: where a packet of `family` can stand in `ports`."""
    mask = np.zeros(PORTS_PER_SLOT, bool)
    rows = slice(256) if family == 4 else slice(256, 512)
    for base, highest in zip(_PORT_BASE[rows], _PORT_MASK[rows], strict=True):
        mask[base : base + highest + 1] = True
    return mask


def _judge(  # noqa: PLR0917
    compiled: Compiled, src: np.ndarray, dst: np.ndarray, family: np.ndarray, proto: np.ndarray, port: np.ndarray
) -> dict[str, np.ndarray]:
    lookup = compiled.lookup
    src_rows, dst_rows = lookup.rows(src, family), lookup.rows(dst, family)
    columns = {"src_identity": lookup.identity.take(src_rows), "dst_identity": lookup.identity.take(dst_rows)}
    if compiled.policy is None:
        columns["rule"] = np.full(len(src), int(RuleId.NO_POLICY), "<u2")
        columns["decision"] = np.full(len(src), int(Decision.ALLOW), "u1")
        columns["reason"] = np.full(len(src), int(Reason.NO_POLICY), "u1")
        columns["report_only"] = np.zeros(len(src), bool)
    else:
        place = port_places(family, proto, port)
        found = matching_rule(
            compiled,
            lookup.source_class.take(src_rows),
            lookup.destination_class.take(dst_rows),
            compiled.ports.take(place),
        )
        tables = compiled.vectors  # index -1, the last entry, is the default
        columns |= {name: getattr(tables, name)[found] for name in ("rule", "decision", "reason", "report_only")}
    known = (family == 4) | (family == 6)
    if not known.all():
        malformed = {
            "rule": RuleId.MALFORMED, "decision": Decision.DENY, "reason": Reason.MALFORMED, "report_only": False,
            "src_identity": IdentityId.WORLD, "dst_identity": IdentityId.WORLD,
        }  # fmt: skip
        for name, value in malformed.items():
            columns[name][~known] = value
    return columns
