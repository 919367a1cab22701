"""SQL macros for addresses, so that a question needs no extension (DuckDB's `inet` is a download).

An address is a number of 128 bits with a family beside it; IPv4 stands in the low 32 bits. Of text there is one number
for both families, `address_key`: IPv4 as IPv6 maps it, so that a mapped address is the IPv4 address it stands for.
What stands in a question as a constant (a network) is worked out once, not for every row. A macro is text put in for
text: what it names twice is planned twice, and milliseconds of that are most of a small question's time.
"""

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = f"{_OCTET}([.]{_OCTET}){{3}}"
_BITS = ("[^:/]*/(3[0-2]|[12]?[0-9])", "[^/]*:[^/]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9])")
"""The text of a network with its prefix length, of either family."""
_MAPPED = "(65535::UHUGEINT << 32)"
_NO_NETWORK = "text_number(split_part(network, '/', 1)) IS NULL OR host_bits(network) IS NULL"
_COMPLAINT = "error('in_network: ' || network || ' is no network')"
"""NULL where `network` is."""
_GROUPS = "([0-9a-f]{1,4}(:[0-9a-f]{1,4})*)"
_IPV6 = f"{_GROUPS}|{_GROUPS}?::{_GROUPS}?"
"""Where `::` stands for what is missing of the eight groups."""
_ALL_ONES = f"'{(1 << 128) - 1}'::UHUGEINT"


_GROUPS_OF = ", ".join(f"({half} >> {shift}) & 65535" for half in ("hi", "lo") for shift in (48, 32, 16, 0))


def _compressed(text: str) -> str:
    """RFC 5952, 4.2: `text` (`:g1:…:g8:`), its longest run of two or more zero groups, the first if equal, as `::`."""
    cases = " ".join(
        f"WHEN contains({text}, '{':0' * run}:') THEN regexp_replace({text}, '{':0' * run}:', '::')"
        for run in range(8, 1, -1)
    )
    return f"CASE {cases} ELSE {text} END"


_TRIMMED = "regexp_replace(regexp_replace(t, '^:([^:])', '\\1'), '([^:]):$', '\\1')"

MACROS: tuple[str, ...] = (
    f"""CREATE OR REPLACE MACRO ipv6_text(hi, lo) AS list_transform(list_transform(
        [printf('{":%x" * 8}:', {_GROUPS_OF})],
        lambda s: {_compressed("s")}), lambda t: {_TRIMMED})[1]""",
    """CREATE OR REPLACE MACRO address_text(hi, lo, family) AS CASE family
        WHEN 4 THEN (lo >> 24) || '.' || ((lo >> 16) & 255) || '.' || ((lo >> 8) & 255) || '.' || (lo & 255)
        WHEN 6 THEN ipv6_text(hi, lo) END""",
    # IPv4 has no high half, and a cast costs half of what a shift does.
    """CREATE OR REPLACE MACRO address_number(hi, lo) AS CASE WHEN hi = 0 THEN lo::UHUGEINT
        ELSE (hi::UHUGEINT << 64::UHUGEINT) | lo::UHUGEINT END""",
    # NULL for what is no address, as of `ipv6_number`. Lambdas serve to work something out once; but a pattern inside
    # one would be compiled anew for every row.
    f"""CREATE OR REPLACE MACRO ipv4_number(text) AS CASE WHEN regexp_full_match(text, '{_IPV4}') THEN list_reduce(
        list_transform(string_split(text, '.'), lambda d: d::UBIGINT), lambda a, d: a * 256 + d)::UHUGEINT END""",
    # The last 32 bits may be written as IPv4 is: `::ffff:10.0.0.1`. These are added.
    """CREATE OR REPLACE MACRO ipv6_plain(text) AS lower(regexp_replace(text, '[^:]*[.].*$', '0:0'))""",
    # `plain` with a `0:` for each of the eight groups that its `::` stands for, where an empty one is 0, too.
    """CREATE OR REPLACE MACRO ipv6_filled(plain) AS
        replace(plain, '::', ':' || repeat('0:', 8 - length(regexp_replace(plain, '[^:]', '', 'g'))))""",
    f"""CREATE OR REPLACE MACRO ipv6_number(text) AS CASE WHEN regexp_full_match(ipv6_plain(text), '{_IPV6}')
        THEN list_transform([string_split(ipv6_filled(ipv6_plain(text)), ':')], lambda groups:
            CASE WHEN len(groups) = 8 THEN list_reduce(
                list_transform(groups, lambda g: ('0x0' || g)::UINTEGER::UHUGEINT), lambda a, g: a * 65536 + g) END)[1]
            + CASE WHEN contains(text, '.') THEN ipv4_number(split_part(text, ':', -1)) ELSE 0::UHUGEINT END END""",
    """CREATE OR REPLACE MACRO text_number(text) AS
        CASE WHEN contains(text, ':') THEN ipv6_number(text) ELSE ipv4_number(text) END""",
    # The text of an address as its number: compare `src_addr = ip('10.0.1.10')`.
    # A CASE is worked out before the question runs, where a coalesce with an error is not.
    """CREATE OR REPLACE MACRO ip(text) AS CASE WHEN text_number(text) IS NULL
        THEN error('ip: ' || text || ' is no address') ELSE text_number(text) END""",
    f"""CREATE OR REPLACE MACRO address_key(text) AS
        CASE WHEN contains(text, ':') THEN ipv6_number(text) ELSE ipv4_number(text) + {_MAPPED} END""",
    f"""CREATE OR REPLACE MACRO host_bits(network) AS CASE WHEN NOT contains(network, '/') THEN 0
        WHEN regexp_full_match(network, '{_BITS[0]}') THEN 32 - split_part(network, '/', 2)::UTINYINT
        WHEN regexp_full_match(network, '{_BITS[1]}') THEN 128 - split_part(network, '/', 2)::UTINYINT END""",
    # Whether two numbers differ in nothing but the network's host bits.
    f"""CREATE OR REPLACE MACRO within(number, inside, network) AS
        xor(number, inside) <= {_ALL_ONES} >> (128 - host_bits(network))::UHUGEINT""",
    # The octets that all addresses of an IPv4 network begin with, as text; empty if there are none.
    """CREATE OR REPLACE MACRO network_octets(network) AS CASE WHEN contains(network, ':') THEN '' ELSE
        array_to_string(string_split(split_part(network, '/', 1), '.')[1:(32 - host_bits(network)) // 8], '.') END""",
    # in_network(src, '10.0.0.0/8'): NULL for what is no address. In an IPv4 network most texts need no number: the
    # octets they begin with tell. No IPv6 network but a mapped one holds IPv4 addresses.
    # in_network(src_addr, family, '10.0.0.0/8'): two comparisons a row.
    f"""CREATE OR REPLACE MACRO in_network(address, network) AS CASE
            WHEN {_NO_NETWORK} THEN {_COMPLAINT}
            WHEN NOT contains(address, ':') AND NOT starts_with(address, network_octets(network))
                THEN CASE WHEN regexp_full_match(address, '{_IPV4}') THEN false END
            ELSE within(address_key(address), address_key(split_part(network, '/', 1)), network)
                AND (address_key(split_part(network, '/', 1)) >> 32 = 65535
                    OR NOT within({_MAPPED}, address_key(split_part(network, '/', 1)), network)
                    OR address_key(address) >> 32 <> 65535)
            END,
        (address, family, network) AS CASE WHEN {_NO_NETWORK} THEN {_COMPLAINT}
            ELSE family = CASE WHEN contains(network, ':') THEN 6 ELSE 4 END
                AND within(address, text_number(split_part(network, '/', 1)), network) END""",
)
"""Statements, in the order of what needs what."""
