"""Single words of policy.yaml → values: addresses, ports, protocols. Errors carry no place; `parse` adds it."""

import difflib
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

from policy.document import quoted
from policy.errors import PolicyError
from policy.model import BITS, EVERY_PORT, PortSpan, Prefix
from schemas.codes import PROTOCOLS, PortGroup
from schemas.structs import PORT_GROUPS

_MAPPED_LOW, _MAPPED_HIGH = 0xFFFF << 32, 0x1_0000_0000_0000 - 1
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?", re.ASCII)
_ADDRESS_LIKE = re.compile(r"[0-9.]*|.*[/:].*", re.ASCII | re.DOTALL)

WITH_PORTS = {"tcp": PortGroup.TCP, "udp": PortGroup.UDP, "sctp": PortGroup.SCTP}
WITH_TYPES = {"icmp": PortGroup.ICMP, "icmpv6": PortGroup.ICMPV6}
PROTOCOL_WORDS = (*WITH_PORTS, *WITH_TYPES, "any")
PORT_FORMS = "expected 443/tcp, 8000-8100/tcp, 53/any, tcp, icmp:8, icmpv6:128, proto:47 or any"


def nearest(word: str, valid: Iterable[str]) -> str:
    """The word of `valid` that `word` was probably meant to be, as a hint; "" if none is near."""
    if len(word) > 64:
        return ""
    candidates = [v for v in valid if abs(len(v) - len(word)) <= 4][:2000]
    found = difflib.get_close_matches(word, candidates, 1, 0.6)
    if not found:
        found = [v for v in candidates if v.lower() == word.lower()][:1]
    return f"did you mean {quoted(found[0])}?" if found else ""


def looks_like_address(word: str) -> bool:
    """Whether `word` was meant as an address or CIDR rather than a name."""
    return _ADDRESS_LIKE.fullmatch(word) is not None


def prefix(word: str) -> Prefix:
    """An address (`10.0.0.1`, `fd00::1`) or CIDR. Raises PolicyError, for host bits and IPv4-mapped IPv6 too."""
    address, slash, length_text = word.partition("/")
    family = 6 if ":" in address else 4
    bits = BITS[family]
    try:
        number = int.from_bytes(socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, address), "big")
    except (OSError, ValueError):
        raise PolicyError(f"{quoted(word)} is not an address or CIDR", _address_hint(address)) from None
    length = bits
    if slash:
        if _NUMBER.fullmatch(length_text) is None or int(length_text) > bits:
            hint = "write a mask as its number of one bits" if "." in length_text else ""
            message = f"{quoted(word)}: expected a length from 0 to {bits} after the slash"
            raise PolicyError(message, hint)
        length = int(length_text)
    result = Prefix(family, number, length)
    if family == 6 and length >= 96 and _MAPPED_LOW <= number <= _MAPPED_HIGH:
        inner = Prefix(4, number & 0xFFFFFFFF, length - 96)
        hint = f"write {inner}: such packets are malformed on the wire"
        raise PolicyError(f"{quoted(word)} is an IPv4-mapped IPv6 address", hint)
    if extra := number & ((1 << (bits - length)) - 1):
        network = Prefix(family, number ^ extra, length)
        hint = f"write {network} for the network or {Prefix(family, number, bits)} for the one address"
        raise PolicyError(f"{quoted(word)} has bits set behind its length", hint)
    return result


def _address_hint(address: str) -> str:
    if "%" in address:
        return "leave out the zone (%…): policy knows addresses, not interfaces"
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", address):
        return "four numbers from 0 to 255, without leading zeros"
    if re.fullmatch(r"[0-9.]+", address):
        return "an IPv4 address has four numbers, as in 10.0.0.1 or 10.0.0.0/8"
    return "expected for example 10.0.0.1, 10.0.0.0/8, fd00::1 or fd00::/64"


def integer(word: str, low: int, high: int) -> int | None:
    """`word` as a decimal number from `low` to `high`, else None. Leading zeros (octal to YAML) are refused."""
    if _NUMBER.fullmatch(word) is None:
        return None
    number = int(word)
    return number if low <= number <= high else None


@lru_cache(maxsize=512)
def protocol_spans(word: str) -> tuple[PortSpan, ...]:
    """All ports of a protocol: `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, `any` or 0–255. Raises PolicyError."""
    if word == "any":
        return EVERY_PORT
    group = {**WITH_PORTS, **WITH_TYPES}.get(word)
    if group is None:
        number = integer(word, 0, 255)
        if number is None:
            hint = nearest(word, PROTOCOL_WORDS) or "other protocols go by number, 0 to 255"
            raise PolicyError(f"{quoted(word)} is not a protocol: expected {', '.join(PROTOCOL_WORDS)} or 0-255", hint)
        known = PROTOCOLS.get(number)
        if known is None:
            return (PortSpan(PortGroup.OTHER, number, number),)
        group = PortGroup[known.upper()]
    whole = PortSpan(group, 0, PORT_GROUPS[group.name][1] - 1)
    if group in WITH_TYPES.values():
        number = next(n for n, known in PROTOCOLS.items() if known == group.name.lower())
        return (whole, PortSpan(PortGroup.OTHER, number, number))  # over the other family it has no types
    return (whole,)


@lru_cache(maxsize=4096)
def port_spans(word: str) -> tuple[PortSpan, ...]:
    """An entry of `ports`. Raises PolicyError."""
    if word in PROTOCOL_WORDS:
        return protocol_spans(word)
    if "/" in word:
        ports, _, protocol = (part.strip() for part in word.partition("/"))
        if protocol in WITH_TYPES:
            raise PolicyError(f"{quoted(word)}: {protocol} has types, not ports", f"as in {protocol}:8, or {protocol}")
        if ports == "0":
            raise PolicyError(f"{quoted(word)}: expected a port from 1 on", f"for every port write {protocol}")
        return spans_of(ports, protocol)
    head, colon, tail = (part.strip() for part in word.partition(":"))
    if colon and head in WITH_TYPES:
        return spans_of(tail, head)
    if colon and head == "proto":
        if integer(tail, 0, 255) is None:
            raise PolicyError(f"{quoted(word)}: expected a protocol number from 0 to 255", "as in proto:47")
        return protocol_spans(tail)
    if _RANGE.fullmatch(word):
        hint = f"say which protocol: {word}/tcp, {word}/udp or {word}/any"
        raise PolicyError(f"{quoted(word)} names no protocol", hint)
    raise PolicyError(f"{quoted(word)} is not a port: {PORT_FORMS}", nearest(word, PROTOCOL_WORDS))


@lru_cache(maxsize=4096)
def spans_of(ports: str, protocol: str) -> tuple[PortSpan, ...]:
    """`ports` (`80`, `8000-8100`) of `protocol` as `protocol_spans` knows it, but `any` is tcp, udp and sctp.

    For icmp and icmpv6 these are types. Raises PolicyError.
    """
    groups = [*WITH_PORTS.values()] if protocol == "any" else [protocol_spans(protocol)[0].group]
    highest = PORT_GROUPS[groups[0].name][1] - 1
    if groups[0] == PortGroup.OTHER:
        message = f"{quoted(ports)}: protocol {protocol} has no ports"
        raise PolicyError(message, f"leave the port out, or write ports: [proto:{protocol}]")
    match = _RANGE.fullmatch(ports)
    first = integer(match[1], 0, highest) if match else None
    last = integer(match[2] or match[1], 0, highest) if match else None
    if first is None or last is None:
        what = "port" if highest == 65535 else "type"
        hint = "as in 443, or 8000-8100 for a range; no leading zeros"
        raise PolicyError(f"{quoted(ports)}: expected a {what} up to {highest}, or a range", hint)
    if first > last:
        raise PolicyError(f"{quoted(ports)}: the range ends before it begins", f"write {last}-{first}")
    return tuple(PortSpan(group, first, last) for group in groups)
