"""What is wrong with a file, where, and what would have been right: a row a mistake."""

import hashlib
from pathlib import Path

import pytest

from policy.document import MAX_BYTES
from policy.errors import PolicyError
from policy.parse import parse
from policy.source import compile_text, read_text

HEAD = """version: 1
identities:
  web: {labels: {app: web, env: prod}, addresses: [10.0.1.10]}
  database: {labels: {app: db, env: prod}, addresses: [10.0.2.0/24]}
rules:
"""
RULE_LINE = 6

# An entry of `rules` in line 6, behind `  - `, so that its first character is in column 5; where, message, hint.
RULES: list[tuple[str, int, str, str]] = [
    ("{from: databse, action: allow}", 12, "`from`: no identity is called 'databse'", "did you mean 'database'?"),
    ("{from: ANY, action: allow}", 12, "`from`: no identity is called 'ANY'", "did you mean 'any'?"),
    ("{from: xyzzy, action: allow}", 12, "`from`: no identity is called 'xyzzy'", "define it under `identities`"),
    ("{from: {ap: web}, action: allow}", 13, "no identity has the label 'ap'", "did you mean 'app'?"),
    ("{from: {app: wep}, action: allow}", 18, "no identity has the label app: 'wep'", "did you mean 'web'?"),
    ("{from: {}, action: allow}", 12, "`from`: an empty selector", "write `any` for every address"),
    ("{from: [], action: allow}", 12, "`from` is an empty list: the rule could never match",
     "leave the key out for any"),
    ("{from: [[web]], action: allow}", 13, "`from`: a list inside a list", "write one list"),
    ("{to: , action: allow}", 10, "`to` has no value", "give one, or leave the key out"),
    ("{form: web, action: allow}", 6, "a rule has no key 'form'", "did you mean 'from'?"),
    ("{from: web}", 5, "the rule has no `action`", "add `action: allow` or `action: deny`"),
    ("{action: alow}", 14, "`action`: expected allow or deny, found 'alow'", "did you mean 'allow'?"),
    ("{action: [allow]}", 14, "`action`: expected a single value, found a list", ""),
    ("{from: web, proto: tcp, action: allow}", 24, "`proto` and `from` do not go together",
     "write the rule with from, to, ports or with src_ip, dst_ip, dst_port, proto"),
    ("{report_only: true, action: allow}", 19, "`report_only` is for rules that deny",
     "take it out, or write `action: deny`"),
    ("{report_only: yes, action: deny}", 19, "`report_only`: expected true or false, found 'yes'", ""),
    ("{report_only: 'true', action: deny}", 19, "`report_only`: expected true or false, found 'true'", ""),
    ("{sample: 0, action: deny}", 14, "`sample`: expected a number from 1 on: 1 in so many packets",
     "leave it out for the node's own"),
    ("{name: default, action: deny}", 12, "the rule name 'default' is reserved",
     "verdicts use it for what no rule decided"),
    ("{name: 'builtin:x', action: deny}", 12, "the rule name 'builtin:x' is reserved",
     "verdicts use it for what no rule decided"),
    ("{name: ' x', action: deny}", 12, "' x' is not a name", "1 to 128 printable characters, no space at either end"),
    ('{name: "a\\u202eb", action: deny}', 12, "'a\\u202eb' is not a name",
     "1 to 128 printable characters, no space at either end"),
    ("{from: 10.0.0.1/24, action: deny}", 12, "'10.0.0.1/24' has bits set behind its length",
     "write 10.0.0.0/24 for the network or 10.0.0.1 for the one address"),
    ("{from: 10.0.0.0/33, action: deny}", 12, "'10.0.0.0/33': expected a length from 0 to 32 after the slash", ""),
    ("{from: 10.0.0.0/255.0.0.0, action: deny}", 12,
     "'10.0.0.0/255.0.0.0': expected a length from 0 to 32 after the slash", "write a mask as its number of one bits"),
    ("{from: 10.0.0.256, action: deny}", 12, "'10.0.0.256' is not an address or CIDR",
     "four numbers from 0 to 255, without leading zeros"),
    ("{from: 10.0.0.01, action: deny}", 12, "'10.0.0.01' is not an address or CIDR",
     "four numbers from 0 to 255, without leading zeros"),
    ("{from: 10.0.0/8, action: deny}", 12, "'10.0.0/8' is not an address or CIDR",
     "an IPv4 address has four numbers, as in 10.0.0.1 or 10.0.0.0/8"),
    ("{from: 'fe80::1%eth0', action: deny}", 12, "'fe80::1%eth0' is not an address or CIDR",
     "leave out the zone (%…): policy knows addresses, not interfaces"),
    ("{from: '::ffff:10.0.0.1', action: deny}", 12, "'::ffff:10.0.0.1' is an IPv4-mapped IPv6 address",
     "write 10.0.0.1: such packets are malformed on the wire"),
    ("{from: '::ffff:10.0.0.0/104', action: deny}", 12, "'::ffff:10.0.0.0/104' is an IPv4-mapped IPv6 address",
     "write 10.0.0.0/8: such packets are malformed on the wire"),
    ("{from: 'fd00::1/64', action: deny}", 12, "'fd00::1/64' has bits set behind its length",
     "write fd00::/64 for the network or fd00::1 for the one address"),
    ("{src_ip: [10.0.0.1], action: deny}", 14, "`src_ip`: expected one address, CIDR or name, found a list",
     "for more write the rule with from, to, ports"),
    ("{ports: 80, action: deny}", 13, "'80' names no protocol", "say which protocol: 80/tcp, 80/udp or 80/any"),
    ("{ports: [tcp, 80/tpc], action: deny}", 19,
     "'tpc' is not a protocol: expected tcp, udp, sctp, icmp, icmpv6, any or 0-255", "did you mean 'tcp'?"),
    ("{ports: 0/tcp, action: deny}", 13, "'0/tcp': expected a port from 1 on", "for every port write tcp"),
    ("{ports: 65536/tcp, action: deny}", 13, "'65536': expected a port up to 65535, or a range",
     "as in 443, or 8000-8100 for a range; no leading zeros"),
    ("{ports: 080/tcp, action: deny}", 13, "'080': expected a port up to 65535, or a range",
     "as in 443, or 8000-8100 for a range; no leading zeros"),
    ("{ports: 90-80/tcp, action: deny}", 13, "'90-80': the range ends before it begins", "write 80-90"),
    ("{ports: 8/icmp, action: deny}", 13, "'8/icmp': icmp has types, not ports", "as in icmp:8, or icmp"),
    ("{ports: 'icmp:256', action: deny}", 13, "'256': expected a type up to 255, or a range",
     "as in 443, or 8000-8100 for a range; no leading zeros"),
    ("{ports: 'proto:256', action: deny}", 13, "'proto:256': expected a protocol number from 0 to 255",
     "as in proto:47"),
    ("{ports: 80/47, action: deny}", 13, "'80': protocol 47 has no ports",
     "leave the port out, or write ports: [proto:47]"),
    ("{ports: [], action: deny}", 13, "`ports` is an empty list: the rule could never match",
     "leave the key out for any"),
    ("{dst_port: 65536, action: deny}", 16, "'65536': expected a port up to 65535, or a range",
     "as in 443, or 8000-8100 for a range; no leading zeros"),
    ("{dst_port: 80, proto: 47, action: deny}", 16, "'80': protocol 47 has no ports",
     "leave the port out, or write ports: [proto:47]"),
    ("{proto: 256, action: deny}", 13, "'256' is not a protocol: expected tcp, udp, sctp, icmp, icmpv6, any or 0-255",
     "other protocols go by number, 0 to 255"),
    ("{proto: TCP, action: deny}", 13, "'TCP' is not a protocol: expected tcp, udp, sctp, icmp, icmpv6, any or 0-255",
     "did you mean 'tcp'?"),
    ("{action: deny, action: allow}", 20, "'action' is given twice", "the first is in line 6"),
    ("web", 5, "a rule: expected a mapping, found a single value", ""),
    ("{from: &a web, action: allow}", 12, "YAML anchors and aliases ('a') are not part of the language",
     "repeat the value, or use a label"),
    ("{from: *a , action: allow}", 12, "YAML anchors and aliases ('a') are not part of the language",
     "repeat the value, or use a label"),
    ("!!python/object:os.system {action: deny}", 5,
     "YAML tags ('tag:yaml.org,2002:python/object:os.system') are not part of the language", "write the plain value"),
    ("{from: !!str 10.0.0.1, action: deny}", 12,
     "YAML tags ('tag:yaml.org,2002:str') are not part of the language", "write the plain value"),
    ("{[from]: web}", 6, "a list cannot be a key", "expected a word, a colon and a value"),
    ("{~: web}", 6, "a key is missing before the colon", "expected a word, a colon and a value"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "column", "message", "hint"), RULES, ids=[row[0] for row in RULES])
def test_mistake_in_a_rule(rule: str, column: int, message: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(f"{HEAD}  - {rule}\n", "my.yaml")
    error = caught.value
    assert (error.line, error.column, error.message, error.hint) == (RULE_LINE, column, message, hint)
    assert str(error) == f"my.yaml:6:{column}: {message}"


# Whole files: line, column, message, hint.
FILES: list[tuple[str, int, int, str, str]] = [
    ("", 1, 1, "the file is empty", "begin with `version: 1`"),
    ("# nothing\n", 1, 1, "the file is empty", "begin with `version: 1`"),
    ("- a\n", 1, 1, "expected a mapping, found a list", "begin with `version: 1`"),
    ("rules: []\n", 1, 1, "`version` is missing", "begin with `version: 1`"),
    ("version: 2\n", 1, 10, "version '2' is not known", "this ztlens knows version 1"),
    ("version: 1\ndefault: drop\n", 2, 10, "`default`: expected allow or deny, found 'drop'", ""),
    ("version: 1\nrule: []\n", 2, 1, "a policy has no key 'rule'", "did you mean 'rules'?"),
    ("version: 1\nmode: enforce\n", 2, 1, "a policy has no key 'mode'",
     "expected builtins, default, identities, rules, version"),
    ("version: 1\nrules: {a: b}\n", 2, 8, "`rules`: expected a list, found a mapping", "begin each rule with `- `"),
    ("version: 1\nidentities: [web]\n", 2, 13, "`identities`: expected names with their addresses, found a list",
     "as in `web: {addresses: […]}`"),
    ("version: 1\nidentities: {world: {addresses: []}}\n", 2, 14, "the identity name 'world' is reserved",
     "reserved are any, world, host"),
    ("version: 1\nidentities: {10.0.0.1: {addresses: []}}\n", 2, 14, "'10.0.0.1' is not a name for an identity",
     "up to 63 letters, digits, `_`, `-` and `.`, and not an address"),
    ("version: 1\nidentities: {a b: {addresses: []}}\n", 2, 14, "'a b' is not a name for an identity",
     "up to 63 letters, digits, `_`, `-` and `.`, and not an address"),
    ("version: 1\nidentities:\n  a: {labels: {x: y}}\n", 3, 3, "identity 'a' has no `addresses`",
     "give a list of addresses and CIDRs; it may be empty"),
    ("version: 1\nidentities:\n  a: {addresses: [], label: {}}\n", 3, 22, "identity 'a' has no key 'label'",
     "did you mean 'labels'?"),
    ("version: 1\nidentities:\n  a: {addresses: []}\n  a: {addresses: []}\n", 4, 3, "'a' is given twice",
     "the first is in line 3"),
    ("version: 1\nidentities:\n  a: {addresses: [any]}\n", 3, 19, "'any' is not an address or CIDR",
     "expected for example 10.0.0.1, 10.0.0.0/8, fd00::1 or fd00::/64"),
    ("version: 1\nidentities:\n  a: {addresses: [{b: c}]}\n", 3, 19, "expected an address or CIDR, found a mapping",
     ""),
    ("version: 1\nbuiltins: {ndb: false}\n", 2, 12, "`builtins` has no key 'ndb'", "did you mean 'ndp'?"),
    ("version: 1\nbuiltins: {ndp: 0}\n", 2, 17, "`ndp`: expected true or false, found '0'", ""),
    ("version: 1\nrules:\n- {name: a, action: deny}\n- {name: a, action: allow}\n", 4, 3,
     "the rule 'a' is given twice", "the first is in line 3; take one out or give it another `name`"),
    ("version: 1\nrules:\n- {src_ip: 10.0.0.1, action: deny}\n- {from: 10.0.0.1, action: deny}\n", 4, 3,
     "the rule 'deny 10.0.0.1 to any any' is given twice",
     "the first is in line 3; take one out or give it another `name`"),
    ("version: 1\n---\nversion: 1\n", 2, 1, "a second YAML document begins here",
     "one policy a file: take out the `---`"),
    ("%YAML 1.1\n---\nversion: 1\n", 1, 1, "YAML directives (%…) are not part of the language", "take the line out"),
    ("version: 1\nrules:\n\t- a\n", 3, 1,
     "not valid YAML: while scanning for the next token, found character that cannot start any token",
     "indent with spaces, not tabs"),
    ("version: 1\nrules: [{from: ::1}]\n", 2, 16,
     "not valid YAML: while parsing a flow node, did not find expected node content",
     'quote IPv6 addresses that begin or end with a colon: "::1"'),
    ("version: 1\ndef\x07ault: deny\n", 2, 4, "character U+0007 is not allowed", "a policy is plain text in UTF-8"),
    ("version: 1\n\ud800", 2, 1, "character U+D800 is not allowed", "a policy is plain text in UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "column", "message", "hint"), FILES, ids=[ascii(row[0]) for row in FILES])
def test_mistake_in_a_file(text: str, line: int, column: int, message: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    error = caught.value
    assert (error.line, error.column, error.message, error.hint) == (line, column, message, hint)


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    with pytest.raises(FileNotFoundError):
        read_text(path)
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)
    path.write_bytes("version: 1\n# é\ndefault: é".encode() + b"\xff\n")
    with pytest.raises(PolicyError, match=r"p\.yaml:3:11: not UTF-8 text"):
        read_text(path)
    path.write_bytes("€".encode() * (MAX_BYTES // 3 + 2))  # cut inside a character
    with pytest.raises(PolicyError, match=r"p\.yaml:1:1: larger than 8 MiB"):
        read_text(path)
    path.write_bytes(b"\xef\xbb\xbfversion: 1\r\n")
    assert read_text(path) == "\ufeffversion: 1\r\n"  # as it is: the policy's hash is that of the file
    assert parse(read_text(path)).hash == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_too_large_carries_the_files_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyError, match=r"my\.yaml: the policy needs 1 rules, the kernel table has room for 0"):
        compile_text("version: 1\nrules: [{action: deny}]", "my.yaml", knobs={"RULES_MAX": 0})
    monkeypatch.setattr("policy.regions.MAX_CANDIDATES", 0)
    said = r"my\.yaml: too large: its selectors by label have more than 0 identities to look at"
    with pytest.raises(PolicyError, match=said):
        compile_text(f"{HEAD}  - {{from: {{app: web}}, to: {{app: db}}, action: deny}}\n", "my.yaml")


def test_an_identity_may_have_no_addresses_and_keys_may_be_empty() -> None:
    policy = parse("version: 1\nidentities: {a: {addresses: []}}\nrules:\n")
    assert (policy.identities[0].addresses, policy.rules) == ((), ())
    assert parse("version: 1\nidentities:\nrules: [{from_except: [], action: deny}]").identities == ()
