"""The arrays: what the kernel is given, and how much of it."""

import numpy as np
import pytest

from policy.compile import compile_policy
from policy.errors import PolicyError
from policy.evaluate import evaluate
from policy.lookup import Lookup
from policy.regions import PREFIX_DTYPE
from schemas.codes import Decision, IdentityId, Reason, RuleId
from schemas.messages import IdentityInfo, RuleInfo
from schemas.structs import PORT_GROUPS, PORTS_PER_SLOT, RULE, SLOT, dtype
from tests.support.naive_policy import Judgement, Tuple
from tests.support.policies import columns, compiled, judge

POLICY = """
version: 1
identities:
  web: {labels: {app: web}, addresses: [10.0.1.10, "fd00:1::/64"]}
  db: {addresses: 10.0.2.0/24}
rules:
  - {name: b, from: web, to: db, ports: 80-81/tcp, action: allow, sample: 7}
  - {name: a, from: any, to: db, ports: [80/tcp, icmp:8], action: deny, report_only: true}
  - {name: c, to: 10.0.2.9, ports: 'proto:47', action: deny}
"""


def v4(text: str) -> bytes:
    return bytes(12) + bytes(int(part) for part in text.split("."))


def test_arrays_of_a_small_policy() -> None:
    """Rules in order of credit: c (bit 0), a (1), b (2)."""
    policy = compiled(POLICY)
    assert [rule.name for rule in policy.order] == ["c", "a", "b"]
    assert policy.rules.dtype == dtype(RULE)
    assert policy.rules.tolist() == [(2, 0, 0, 0), (2, 1, 0, 0), (1, 0, 0, 7)]
    assert policy.prefixes.dtype == PREFIX_DTYPE
    rows = [(r["family"], r["length"], bytes(r["addr"]), r["identity"]) for r in policy.prefixes]
    assert rows == [
        (4, 32, v4("10.0.1.10"), 16),
        (4, 24, v4("10.0.2.0"), 17),
        (4, 32, v4("10.0.2.9"), 17),
        (6, 64, bytes.fromhex("fd000001") + bytes(12), 16),
    ]
    sources = policy.source_rules[policy.prefixes["source_class"]]
    destinations = policy.destination_rules[policy.prefixes["destination_class"]]
    assert policy.source_rules[0].tolist() == [0b011]
    assert policy.destination_rules[0].tolist() == [0]
    assert sources.tolist() == [[0b111], [0b011], [0b011], [0b111]]
    assert destinations.tolist() == [[0], [0b110], [0b111], [0]]
    assert (len(policy.source_rules), len(policy.destination_rules)) == (2, 3)
    assert policy.ports.shape == (PORTS_PER_SLOT,)
    assert policy.ports.dtype == np.dtype("<u4")
    at = {name: first for name, (first, _) in PORT_GROUPS.items()}
    places = [at["TCP"] + 80, at["TCP"] + 81, at["TCP"] + 82, at["UDP"] + 80, at["ICMP"] + 8, at["OTHER"] + 47]
    assert policy.port_rules[policy.ports[places], 0].tolist() == [0b110, 0b100, 0, 0, 0b010, 0b001]
    assert len(policy.port_rules) == 5
    assert {a.dtype for a in (policy.source_rules, policy.destination_rules, policy.port_rules)} == {np.dtype("<u8")}
    assert policy.slot.dtype == dtype(SLOT)
    assert policy.slot.tolist() == (1, 0, 1, 2, 15)


def test_words_for_numbers() -> None:
    policy = compiled(POLICY)
    assert policy.rule_infos() == [
        RuleInfo(64, "c", "deny", False, "{name: c, to: 10.0.2.9, ports: 'proto:47', action: deny}"),
        RuleInfo(65, "a", "deny", True, POLICY.splitlines()[7].removeprefix("  - ")),
        RuleInfo(66, "b", "allow", False, "{name: b, from: web, to: db, ports: 80-81/tcp, action: allow, sample: 7}"),
    ]  # fmt: skip
    assert policy.identity_infos() == [
        IdentityInfo(16, "web", {"app": "web"}, ["10.0.1.10", "fd00:1::/64"]),
        IdentityInfo(17, "db", {}, ["10.0.2.0/24"]),
    ]
    names = {number: policy.rule_name(number) for number in (*(r for r in RuleId if r != RuleId.FIRST), 64, 66, 67)}
    assert names == {
        0: "default", 1: "no_policy", 2: "malformed", 3: "headless_fragment", 4: "icmp_unrelated", 16: "builtin:ndp",
        17: "builtin:mld", 18: "builtin:dhcp", 19: "builtin:dhcpv6", 64: "c", 66: "b", 67: "rule:67",
    }  # fmt: skip
    identities = [policy.identity_name(number) for number in (0, 1, 2, 16, 17, 18)]
    assert identities == ["world", "host", "identity:2", "web", "db", "identity:18"]


def test_no_policy_allows_everything() -> None:
    policy = compile_policy(None, host=["10.0.0.1"])
    assert policy.slot.tolist() == (1, 0, 0, 1, 15)
    assert policy.sizes() | {"bytes": 0} == {
        "rules": 0, "words": 1, "prefixes": 1, "source_classes": 1, "destination_classes": 1, "port_classes": 1,
        "bytes": 0,
    }  # fmt: skip
    assert (policy.rule_infos(), policy.identity_infos()) == ([], [])
    assert judge(policy, "10.0.0.1", "::1") == Judgement("allow", "no_policy", "no_policy", "host", "world")
    policy.check_capacity()


def test_empty_policy_denies_everything() -> None:
    policy = compiled("version: 1")
    assert policy.slot.tolist() == (1, 0, 1, 2, 15)
    assert judge(policy, "10.0.0.1", "10.0.0.2") == Judgement("deny", "default", "default", "world", "world")


def test_malformed_is_denied_with_its_reason() -> None:
    src, dst, family, proto, port = columns([Tuple("10.0.1.10", "10.0.2.1", 6, 80)] * 3)
    family[1] = 0
    for policy in (compiled(POLICY), compile_policy(None)):
        out = evaluate(policy, src, dst, family, proto, port)
        assert out["rule"][1] == RuleId.MALFORMED
        assert (out["decision"][1], out["reason"][1]) == (Decision.DENY, Reason.MALFORMED)
        assert (out["src_identity"][1], out["dst_identity"][1]) == (IdentityId.WORLD, IdentityId.WORLD)
        assert out["reason"][0] == out["reason"][2] != Reason.MALFORMED


def test_shapes_of_evaluate() -> None:
    policy = compiled(POLICY)
    empty = evaluate(policy, *columns([]))
    assert {name: (a.dtype.str, a.shape) for name, a in empty.items()} == {
        "rule": ("<u2", (0,)), "decision": ("|u1", (0,)), "reason": ("|u1", (0,)), "report_only": ("|b1", (0,)),
        "src_identity": ("<u4", (0,)), "dst_identity": ("<u4", (0,)),
    }  # fmt: skip
    src, dst, *rest = columns([Tuple("10.0.1.10", "10.0.2.1", 6, 80)] * 2)
    with pytest.raises(ValueError, match="of one length"):
        evaluate(policy, src, dst[:1], *rest)
    with pytest.raises(ValueError, match="V16"):
        evaluate(policy, src.view("u1"), dst, *rest)


def test_evaluate_reads_views_and_more_than_a_chunk() -> None:
    """Columns of a structured array are strided; 40,000 tuples are three chunks."""
    rows = np.zeros(40_000, [("src", "V16"), ("x", "u1"), ("dst", "V16")])
    one = columns([Tuple("10.0.1.10", "10.0.2.1", 6, 81), Tuple("10.0.1.11", "10.0.2.1", 6, 81)])
    rows["src"], rows["dst"] = np.resize(one[0], 40_000), one[1][0]
    rest = [np.resize(column, 40_000) for column in one[2:]]
    out = evaluate(compiled(POLICY), rows["src"], rows["dst"], *rest)
    assert out["rule"].reshape(-1, 2).T.tolist() == [[66] * 20_000, [0] * 20_000]


def test_labels_make_few_classes_of_many_addresses() -> None:
    """1,000 identities of ten addresses, ten labels, ten rules: eleven classes, whatever the number of addresses."""
    lines = ["version: 1", "identities:"]
    for i in range(1000):
        addresses = ", ".join(f"10.{i // 250}.{i % 250}.{j}" for j in range(10))
        lines.append(f"  i{i}: {{labels: {{app: a{i % 10}}}, addresses: [{addresses}]}}")
    lines += ["rules:", *(f"  - {{from: {{app: a{k}}}, to: {{app: a{9 - k}}}, action: allow}}" for k in range(10))]
    sizes = compiled("\n".join(lines)).sizes()
    assert (sizes["prefixes"], sizes["source_classes"], sizes["destination_classes"]) == (10_000, 11, 11)


def test_prefixes_that_say_nothing_new_are_left_out() -> None:
    policy = compiled("""
version: 1
identities: {net: {addresses: [10.0.0.0/8, 10.1.0.0/16, 10.1.2.3]}}
rules: [{from: [net, 10.0.0.0/9, 192.0.2.1], to: [10.1.2.3, 10.1.0.0/16], from_except: 192.0.2.1, action: allow}]
""")
    kept = [(bytes(row["addr"]), row["length"]) for row in policy.prefixes]
    assert kept == [(v4("10.0.0.0"), 8), (v4("10.1.0.0"), 16)]


def test_first_of_rules_far_apart() -> None:
    """More than 64 words need a second word of summary: rules from 4,096 on stand there. `z`, the last, always fits."""
    rules = "".join(f"  - {{name: r{i:04}, from: 10.{i >> 8}.{i & 255}.1, action: allow}}\n" for i in range(4300))
    policy = compiled(f"version: 1\nrules:\n{rules}  - {{name: z, action: allow}}\n")
    assert policy.sizes()["words"] == 68
    found = [judge(policy, f"10.{i >> 8}.{i & 255}.1", "::1").rule for i in (0, 63, 64, 4095, 4096, 4200, 4299)]
    assert found == ["r0000", "r0063", "r0064", "r4095", "r4096", "r4200", "r4299"]
    assert judge(policy, "10.0.0.2", "::1").rule == "z"


CAPACITY = [
    ({"RULES_MAX": 2}, "the policy needs 3 rules, the kernel table has room for 2",
     "set RULES_MAX = 64 under [knobs] in the settings (2 now), and start the collector anew"),
    ({"CLASSES_MAX": 4}, "the policy needs 5 port classes, the kernel table has room for 4",
     "set CLASSES_MAX = 64 under [knobs] in the settings (4 now), and start the collector anew"),
    ({"CLASSES_MAX": 1, "PREFIXES_MAX": 3}, "the policy needs 2 source classes, the kernel table has room for 1",
     "set CLASSES_MAX = 64 and PREFIXES_MAX = 64 under [knobs] in the settings (1 and 3 now), and start the collector "
     "anew"),
    ({"PREFIXES_MAX": 3}, "the policy needs 4 prefixes, the kernel table has room for 3",
     "set PREFIXES_MAX = 64 under [knobs] in the settings (3 now), and start the collector anew"),
]  # fmt: skip


@pytest.mark.parametrize(("knobs", "message", "hint"), CAPACITY)
def test_capacity(knobs: dict[str, int], message: str, hint: str) -> None:
    policy = compiled(POLICY)
    policy.check_capacity({"RULES_MAX": 3, "CLASSES_MAX": 5, "PREFIXES_MAX": 4})
    policy.check_capacity()
    with pytest.raises(PolicyError) as caught:
        policy.check_capacity(knobs)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_more_than_any_table_should_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.regions.MAX_MATRIX_BYTES", 4 * 8)
    with pytest.raises(PolicyError, match="too large: 64 rules over more than 4 distinct kinds"):
        compiled(POLICY)


def test_bad_host_address_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"'10\.0\.0' is not an address or CIDR"):
        compile_policy(None, host=["10.0.0"])


LOOKUP = [
    ("0.0.0.0/0", "0.0.0.0", 1), ("0.0.0.0/0", "255.255.255.255", 1), ("255.255.255.255", "255.255.255.255", 1),
    ("255.255.255.255", "255.255.255.254", 0), ("0.0.0.0", "0.0.0.0", 1), ("0.0.0.0", "0.0.0.1", 0),
    ("128.0.0.0/1", "127.255.255.255", 0), ("128.0.0.0/1", "128.0.0.0", 1),
    ("::/0", "::", 1), ("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1), ("::/0", "0.0.0.0", 0),
    ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1),
    ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", 0),
    ("fd00::/64", "fd00::ffff:ffff:ffff:ffff", 1), ("fd00::/64", "fd00:0:0:1::", 0),
    ("fd00::/65", "fd00::8000:0:0:0", 0),
    ("fd00::8000:0:0:0/65", "fd00::7fff:ffff:ffff:ffff", 0), ("fd00::8000:0:0:0/65", "fd00::8000:0:0:0", 1),
]  # fmt: skip


@pytest.mark.parametrize(("prefix", "address", "row"), LOOKUP)
def test_lookup_at_the_ends_of_the_line(prefix: str, address: str, row: int) -> None:
    table = compiled(f'version: 1\nidentities: {{a: {{addresses: "{prefix}"}}}}').prefixes
    src, _, family, *_ = columns([Tuple(address, address, 6, 0)])
    assert Lookup.of(table).rows(src, family).tolist() == [row]
