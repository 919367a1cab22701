"""SQL macros for addresses, so that a question needs no extension (DuckDB's `inet` is a download).

An address is a number of 128 bits with a family beside it; IPv4 stands in the low 32 bits.
"""

_SHIFTED = "(1::UHUGEINT << least({bits}, 127)::UHUGEINT)"


def _groups(half: str) -> str:
    """Four colon-led groups of lower-case hex without leading zeros: `:fd00:0:0:1`."""
    return " || ".join(f"':' || to_hex(({half} >> {shift}) & 65535)" for shift in (48, 32, 16, 0))


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
        [lower({_groups("hi")} || {_groups("lo")}) || ':'],
        lambda s: {_compressed("s")}), lambda t: {_TRIMMED})[1]""",
    """CREATE OR REPLACE MACRO address_text(hi, lo, family) AS CASE family
        WHEN 4 THEN (lo >> 24) || '.' || ((lo >> 16) & 255) || '.' || ((lo >> 8) & 255) || '.' || (lo & 255)
        WHEN 6 THEN ipv6_text(hi, lo) END""",
    "CREATE OR REPLACE MACRO address_number(hi, lo) AS (hi::UHUGEINT << 64::UHUGEINT) | lo::UHUGEINT",
    """CREATE OR REPLACE MACRO hex_number(digits) AS list_reduce(
        list_transform(string_split(digits, ''), lambda d: (instr('0123456789abcdef', d) - 1)::UHUGEINT),
        lambda a, d: a * 16 + d)""",
    """CREATE OR REPLACE MACRO ipv6_groups(part) AS
        CASE WHEN part = '' THEN []::VARCHAR[] ELSE string_split(part, ':') END""",
    """CREATE OR REPLACE MACRO ipv6_number(text) AS hex_number(array_to_string(list_transform(
        ipv6_groups(split_part(lower(text), '::', 1))
        || CASE WHEN contains(text, '::') THEN list_resize([]::VARCHAR[],
               8 - len(ipv6_groups(split_part(lower(text), '::', 1)))
                 - len(ipv6_groups(split_part(lower(text), '::', 2))),
               '0') ELSE [] END
        || ipv6_groups(split_part(lower(text), '::', 2)),
        lambda g: lpad(g, 4, '0')), ''))""",
    """CREATE OR REPLACE MACRO ipv4_number(text) AS (split_part(text, '.', 1)::UTINYINT::UHUGEINT << 24)
        + (split_part(text, '.', 2)::UTINYINT::UHUGEINT << 16) + (split_part(text, '.', 3)::UTINYINT::UHUGEINT << 8)
        + split_part(text, '.', 4)::UTINYINT::UHUGEINT""",
    # The text of an address as its number: compare `src_addr = ip('10.0.1.10')`.
    """CREATE OR REPLACE MACRO ip(text) AS
        CASE WHEN contains(text, ':') THEN ipv6_number(text) ELSE ipv4_number(text) END""",
    """CREATE OR REPLACE MACRO host_bits(network) AS CASE WHEN NOT contains(network, '/') THEN 0
        WHEN contains(network, ':') THEN 128 - split_part(network, '/', 2)::UTINYINT
        ELSE 32 - split_part(network, '/', 2)::UTINYINT END""",
    # in_network(src_addr, family, '10.0.0.0/8'): constants fold, two comparisons a row remain.
    f"""CREATE OR REPLACE MACRO in_network(address, family, network) AS
        family = CASE WHEN contains(network, ':') THEN 6 ELSE 4 END AND (host_bits(network) = 128 OR address BETWEEN
        ip(split_part(network, '/', 1)) // {_SHIFTED.format(bits="host_bits(network)")}
            * {_SHIFTED.format(bits="host_bits(network)")}
        AND ip(split_part(network, '/', 1)) // {_SHIFTED.format(bits="host_bits(network)")}
            * {_SHIFTED.format(bits="host_bits(network)")} + ({_SHIFTED.format(bits="host_bits(network)")} - 1))""",
)
"""Statements, in the order of what needs what."""
