"""Policy files made to hurt. `hostile(seed, index)` is always the same file, so that one number brings a failure back.

A family is a function of a random.Random that gives a file's bytes. What becomes of them is known for two thirds:
`TAKEN` files mean what they say, `REFUSED` ones have exactly one thing wrong that cannot be right, `EITHER` are files
that random damage left right or wrong.
"""

import ipaddress
import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import yaml

from tests.support.policies import as_yaml
from tests.support.random_policies import random_policy

TAKEN, REFUSED, EITHER = "taken", "refused", "either"
MEGABYTE = 1_000_000
CANARY = "/tmp/ztlens-test-tag-was-run"
"""What some tags would make, if anybody ran them."""

Family = Callable[[Random], bytes | str]


@dataclass(frozen=True)
class Hostile:
    """`raw`: the file; `fate`: TAKEN, REFUSED or EITHER; `family`: the name of what made it."""

    raw: bytes
    family: str
    fate: str


_FAMILIES: dict[str, tuple[Family, str, int]] = {}


def _family(fate: str, weight: int = 4) -> Callable[[Family], Family]:
    """Register a family; `weight`: how often it is chosen. Large files have a small one."""

    def add(make: Family) -> Family:
        _FAMILIES[make.__name__.removeprefix("_")] = make, fate, weight
        return make

    return add


def hostile(seed: int, index: int) -> Hostile:
    """File number `index` of `seed`."""
    random = Random(f"{seed}/{index}")
    names = list(_FAMILIES)
    (name,) = random.choices(names, [weight for _, _, weight in _FAMILIES.values()])
    make, fate, _ = _FAMILIES[name]
    made = make(random)
    return Hostile(made if isinstance(made, bytes) else made.encode(), name, fate)


def _valid(random: Random) -> dict[str, Any]:
    """With an identity and a rule at least, each side in either form."""
    policy = random_policy(random)
    policy["identities"]["web"] = {"labels": {"app": "web"}, "addresses": ["10.9.0.0/16", "fd09::/64"]}
    policy["rules"] += [
        {"name": "nested", "from": ["web", "10.0.0.0/8"], "to": {"app": "web"}, "ports": ["80/tcp"], "action": "deny"},
        {"name": "flat", "src_ip": "web", "dst_ip": "10.9.0.1", "dst_port": 53, "proto": "udp", "action": "allow"},
    ]
    return policy


def _nested(policy: dict[str, Any]) -> dict[str, Any]:
    return policy["rules"][-2]


def _flat(policy: dict[str, Any]) -> dict[str, Any]:
    return policy["rules"][-1]


# ---- right, however it looks


@_family(TAKEN, 8)
def _plain(random: Random) -> str:
    return as_yaml(_valid(random))


@_family(TAKEN)
def _as_json(random: Random) -> str:
    return json.dumps(_valid(random), indent=random.choice([None, 1, 4]))


@_family(TAKEN)
def _as_flow(random: Random) -> str:
    width = random.choice([20, 80, 10_000])
    return yaml.safe_dump(json.loads(json.dumps(_valid(random))), default_flow_style=True, width=width, sort_keys=True)


@_family(TAKEN)
def _mark_and_line_ends(random: Random) -> str:
    text = as_yaml(_valid(random)).replace("\n", random.choice(["\n", "\r\n", "\r"]))
    return random.choice(["", "\ufeff"]) + text


@_family(TAKEN)
def _unicode_names(random: Random) -> str:
    policy = _valid(random)
    names = [
        "é",
        "e\u0301",
        "日本語",
        "правило",
        "😀",
        "a b",
        "ß",
        "ﬀ",
        "Ⅷ",
        "İ",
        "١",
        "-",
        "null",
        "1.5",
        "x" * 128,
        "a: b",
    ]
    for rule, name in zip(reversed(policy["rules"]), random.sample(names, len(names)), strict=False):
        rule["name"] = name
    policy["identities"]["web"]["labels"] = {"app": random.choice(names[:12])}
    _nested(policy)["to"] = dict(policy["identities"]["web"]["labels"])
    return as_yaml(policy)


@_family(TAKEN)
def _overlapping_prefixes(random: Random) -> str:
    policy = _valid(random)
    base = random.getrandbits(32)
    everything = [str(ipaddress.ip_network((base, length), strict=False)) for length in range(33)]
    for number in range(3):
        chosen = random.sample(everything, random.randrange(1, 33))
        policy["identities"][f"o{number}"] = {"labels": {"app": "web"}, "addresses": chosen + chosen[:2]}
    policy["rules"].append({"name": "o", "from": "o0", "from_except": ["o1", "world"], "action": "deny"})
    return as_yaml(policy)


@_family(TAKEN, 1)
def _much_of_nothing(random: Random) -> str:
    filler = random.choice(["#\n", "# " + "é" * 70 + "\n", "\n", "#" + "x" * 1000 + "\n"])
    return filler * (2 * MEGABYTE // len(filler.encode())) + as_yaml(_valid(random))


@_family(TAKEN, 1)
def _many_rules(random: Random) -> str:
    policy = _valid(random)
    for number in range(random.randrange(300, 900)):
        source, port = f"10.{number >> 8}.{number & 255}.0/24", 1 + number * 7 % 65535
        policy["rules"].append({"name": f"m{number}", "from": source, "ports": f"{port}/tcp", "action": "allow"})
    return json.dumps(policy)


@_family(TAKEN, 1)
def _many_addresses(random: Random) -> str:
    policy = _valid(random)
    policy["identities"]["web"]["addresses"] = [
        ".".join(str(random.randrange(256)) for _ in range(4)) for _ in range(random.randrange(5_000, 20_000))
    ]
    return json.dumps(policy)


# ---- wrong in one way


def _put(key_of: Callable[[dict[str, Any]], tuple[dict[str, Any], str]], values: list[Any]) -> Family:
    """A valid file with a value of `values` in the place that `key_of` names."""

    def make(random: Random) -> str:
        policy = _valid(random)
        owner, key = key_of(policy)
        owner[key] = random.choice(values)
        return json.dumps(policy)

    return make


_ODD: list[Any] = [[[]], {"a": {}}, [{}], [None], {"a": [1]}, -1, 1.5, 1e300, 10**40, "", " ", "\0", "\x7f", "\ud800"]
_ADDRESSES = [
    "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/08", "10.0.0", "10.0.0.256", "010.0.0.1",
    "::ffff:10.0.0.1", "::ffff:0:0/96", "fd00::1/64", "fd00::/129", "fe80::1%eth0", ":::", "1::2::3", "10.0.0.1 ",
    "10.0.0.1/", "/8", "10.0.0.0/255.0.0.0",
    "0x0a000001", "167772161", "١٠.0.0.1", "10.0.0.0/" + "9" * 1000, "9" * MEGABYTE, ":" * MEGABYTE,
]  # fmt: skip
_PORTS = [
    "80", "0/tcp", "65536/tcp", "90-80/tcp", "80-/tcp", "-80/tcp", "1-2-3/tcp", "80/tpc", "80/", "/tcp", "080/tcp",
    "icmp:256", "icmp:9-8", "80/icmp", "icmp:", "proto:256", "proto:-1", "proto:tcp", "tcp:80", "80/47", "٣/tcp",
    "1" * MEGABYTE + "/tcp", "80" + " " * MEGABYTE, "1-" * 100_000 + "/tcp", 80, True, None, "any/any",
]  # fmt: skip
_NAMES = ["", "any", "world", "host", "10.0.0.1", "a b", "é", "n" * 64, "-a", "a/b", "a:b", "\t"]
for _name, _place, _values in (
    ("odd_version", lambda p: (p, "version"), [0, 2, 1.0, "1.", "one", None, [1], {"1": 1}, 10**30, True]),
    ("odd_default", lambda p: (p, "default"), ["drop", "Deny", "ALLOW", True, None, ["deny"], 1, *_ODD]),
    ("odd_identities", lambda p: (p, "identities"), ["web", ["web"], 1, [], {"web": []}, {"web": None}, {"web": {}}]),
    ("odd_identity", lambda p: (p["identities"], "web"), [{"addresses": {}}, {"labels": {}}, {"x": []}, *_ODD[:8]]),
    ("odd_rules", lambda p: (p, "rules"), ["deny", {"a": 1}, 1, [[]], [None], ["deny"], [{}], [{"action": []}]]),
    ("odd_rule_name", lambda p: (_nested(p), "name"),
     [None, "", " a", "a ", "a\nb", "\u202e", "\u200b", "\ufeff", "x" * 129, "x" * MEGABYTE, "default", "builtin:ndp",
      "builtin:x", "rule:1", "malformed", ["a"], {"a": "b"}, "\ud800", "\0", "\x1b[2J"]),
    ("odd_selector", lambda p: (_nested(p), "from"),
     [[], {}, None, "nobody", "wbe", ["web", []], {"app": "nothing"}, {"nothing": "web"}, {"app": None},
      {"app": ["web"]}, [["web"]], "web ", "WEB", "any,web", 0, *_ADDRESSES]),
    ("odd_exception", lambda p: (_nested(p), "to_except"), [None, {}, "nobody", [[]], [{}], *_ADDRESSES]),
    ("odd_ports", lambda p: (_nested(p), "ports"), [[], {}, [[]], [{}], [""], *_PORTS, *([p] for p in _PORTS)]),
    ("odd_flat_address", lambda p: (_flat(p), "src_ip"), [[], ["web"], {"app": "web"}, None, *_ADDRESSES]),
    ("odd_flat_port", lambda p: (_flat(p), "dst_port"),
     [-1, 65536, 10**20, 1.5, "80/tcp", "9-8", "", [], {}, None, "1" * MEGABYTE, "http", "0x50", "1e3", "0-", True]),
    ("odd_flat_protocol", lambda p: (_flat(p), "proto"), [256, -1, "tpc", "TCP", "", [], {}, None, 47, "6.0", 10**30]),
    ("odd_action", lambda p: (_nested(p), "action"), ["Allow", "drop", "", None, True, {}, "deny ", "a" * MEGABYTE]),
    ("odd_report_only", lambda p: (_nested(p), "report_only"), ["true", "yes", "on", 1, 0, None, [], {}, "TRUE", "y"]),
    ("odd_sample", lambda p: (_nested(p), "sample"), [0, -1, 2**32, 1.5, 1e3, "many", None, [], {}, True, 10**4000]),
    ("odd_labels", lambda p: (p["identities"]["web"], "labels"), [None, [], "a", 1, {"": "a"}, {"a": ""}, {"a b": "c"},
     {"é": "a"}, {"a": "\t"}, {"a": "x" * 129}, {"x" * 129: "a"}, {"a": {}}, {"a": None}, {"a": ["b"]}]),
    ("odd_addresses", lambda p: (p["identities"]["web"], "addresses"),
     [None, {}, [[]], [None], [{}], "web", ["any"], *_ADDRESSES, *([a] for a in _ADDRESSES)]),
    ("odd_builtins", lambda p: (p, "builtins"),
     [[], "ndp", 1, {"npd": True}, {"ndp": "true"}, {"ndp": 1}, {"ndp": None}, {"all": False}, {"ndp": []}]),
):  # fmt: skip
    _FAMILIES[_name] = _put(_place, _values), REFUSED, 4


@_family(REFUSED)
def _unknown_keys(random: Random) -> str:
    policy = _valid(random)
    owner = random.choice([policy, _nested(policy), _flat(policy), policy["identities"]["web"]])
    owner[
        random.choice(["mode", "form", "src", "Name", "action ", "<<", "=", "__proto__", "x" * MEGABYTE, "é", ""])
    ] = "any"
    return json.dumps(policy)


@_family(REFUSED)
def _bad_identity_names(random: Random) -> str:
    policy = _valid(random)
    policy["identities"][random.choice(_NAMES)] = {"addresses": []}
    return json.dumps(policy)


@_family(REFUSED)
def _both_forms(random: Random) -> str:
    policy = _valid(random)
    rule = random.choice([_nested(policy), _flat(policy)])
    rule |= {"src_ip": "web", "to": "web"}
    return json.dumps(policy)


@_family(REFUSED)
def _the_same_twice(random: Random) -> str:
    policy = _valid(random)
    if random.random() < 0.3:
        policy["rules"].append(random.choice(policy["rules"]))
        return json.dumps(policy)
    key, first = random.choice([
        ('"version": 1', '"version": 1'), ('"identities": {', '"identities": {}'), ('"rules": [', '"rules": []'),
        ('"web": {', '"web": {"addresses": []}'),
        ('"app": "web"', '"app": "web"'), ('"name": "nested"', '"name": "other"'),
        ('"ports": ["80/tcp"]', '"ports": "any"'),
        ('"dst_port": 53', '"dst_port": 53'), ('"action": "allow"', '"action": "deny"'),
    ])  # fmt: skip
    return json.dumps(policy).replace(key, f"{first}, {key}", 1)


@_family(REFUSED)
def _code_in_tags(random: Random) -> str:
    tag = random.choice([
        "!!python/object/apply:os.system", "!!python/name:os.system", "!!python/module:os", "!!binary", "!x", "!",
        "!!set", "!<tag:yaml.org,2002:python/object/new:subprocess.Popen>",
        "!!timestamp", "!!merge", "!!map", "!!str", "!!int",
    ])  # fmt: skip
    place = random.choice(['"version": ', '"rules": ', '"name": ', '"ports": ', '"action": ', '"labels": '])
    if random.random() < 0.3:
        return f'version: {tag} ["touch {CANARY}"]\n'
    return json.dumps(_valid(random)).replace(place, f"{place}{tag} ", 1)


@_family(REFUSED, 2)
def _laughs(random: Random) -> str:
    names = random.sample(string.ascii_lowercase, random.randrange(3, 26))
    lines = [f"{names[0]}: &{names[0]} [lol, lol]"]
    wide = random.choice([2, 9, 1000])
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * wide)}]" for a, b in pairwise(names)]
    return "\n".join(["version: 1", *lines])


@_family(REFUSED)
def _aliases(random: Random) -> str:
    text = as_yaml(_valid(random))
    what = random.choice(
        ["<<: {a: b}\n", "default: &x deny\n", "x: *x\n", "&a version: 1\n", "<<: *x\n", "? &a b\n: *a\n"]
    )
    return what + text


@_family(REFUSED, 1)
def _deep(random: Random) -> str:
    n = random.choice([17, 100, 5000, 200_000, MEGABYTE])
    opening = random.choice(["[", "{a: ", "[{a: ", "? ", "- ", "{? ", '{"a":['])
    if random.random() < 0.3:
        return "".join(" " * i + "a:\n" for i in range(min(n, 1500)))
    return "version: 1\nrules: " * (opening[0] in "[{") + opening * (n // len(opening) + 17)


@_family(REFUSED)
def _unprintable(random: Random) -> bytes:
    raw = as_yaml(_valid(random)).encode()
    bad = random.choice([b"\0", b"\x01", b"\x1b", b"\x7f", b"\xff", b"\xc0\x80", b"\xed\xa0\x80",
                         b"\xf8\x88\x80\x80\x80", b"\xef\xbf\xbe", b"\xc2\x9f", b"\0" * 100_000,
                         b"\x80" * MEGABYTE])  # fmt: skip
    at = random.randrange(len(raw) + 1)
    return raw[:at] + bad + raw[at:]


@_family(REFUSED)
def _other_encodings(random: Random) -> bytes:
    text = as_yaml(_valid(random)) + "# é\n"
    return text.encode(random.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp037"]))


@_family(REFUSED)
def _several_documents(random: Random) -> str:
    text = as_yaml(_valid(random))
    return random.choice([f"{text}---\n{text}", f"{text}...\n---\n", f"%YAML 1.1\n---\n{text}",
                          f"%TAG ! x:\n---\n{text}", f"{text}--- a\n", "--- a\n" * 10_000,
                          "%TAG ! tag:\n" * 50_000])  # fmt: skip


@_family(REFUSED, 1)
def _too_much(random: Random) -> str:
    return random.choice([
        lambda: "version: 1\nrules: [" + "a," * MEGABYTE + "]",
        lambda: "version: 1\nrules:\n" + "- {action: deny}\n" * 100_000,
        lambda: "version: 1\nidentities:\n" + "".join(f" n{i}: {{addresses: []}}\n" for i in range(100_000)),
        lambda: "version: 1\n" + "#" * (9 * MEGABYTE),
        lambda: "version: 1\nrules:\n" + "".join(
            f"- {{from: 10.{i >> 16}.{i >> 8 & 255}.{i & 255}, action: deny}}\n" for i in range(17_000)
        ),
        lambda: "{" + ", ".join(f"k{i}: 1" for i in range(200_000)) + "}",
        lambda: "version: 1\nrules: [" + "[]," * 200_000 + "]",
        lambda: "version: 1\nidentities: {a: {addresses: [" + ",".join(
            f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(100_000)
        ) + "]}}\nrules: [{from: b, action: deny}]",
    ])()  # fmt: skip


@_family(REFUSED, 1)
def _traps_of_labels(random: Random) -> str:
    """Few words, many pairs of selector and identity."""
    labels = {f"l{i}": "x" for i in range(11)}
    subsets = [{key: "x" for i, key in enumerate(labels) if number >> i & 1} for number in range(1, 2048)]
    identities = {f"n{i}": {"labels": labels, "addresses": [f"10.0.{i >> 8}.{i & 255}"]} for i in range(1200)}
    rules = [{"name": f"r{i}", "from": subset, "action": "allow"} for i, subset in enumerate(subsets)]
    random.shuffle(rules)
    return json.dumps({"version": 1, "identities": identities, "rules": rules})


# ---- damaged: who knows


def _text(random: Random) -> str:
    return random.choice([_plain, _as_json, _as_flow, _mark_and_line_ends, _unicode_names])(random)  # type: ignore[return-value]


@_family(EITHER, 30)
def _bytes_changed(random: Random) -> bytes:
    raw = bytearray(_text(random).encode())
    for _ in range(random.choice([1, 1, 1, 2, 5, 50])):
        at = random.randrange(len(raw))
        some = random.choice(
            [bytes([random.randrange(256)]), random.choice(string.punctuation).encode(), b"\n", b" ", b""]
        )
        raw[at : at + random.randrange(3)] = some
    return bytes(raw)


@_family(EITHER, 10)
def _cut_short(random: Random) -> bytes:
    raw = _text(random).encode()
    first = random.randrange(len(raw)) if random.random() < 0.2 else 0
    return raw[first : random.randrange(len(raw) + 1)]


@_family(EITHER, 15)
def _lines_moved(random: Random) -> str:
    lines = as_yaml(_valid(random)).split("\n")
    for _ in range(random.randrange(1, 4)):
        a, b = (random.randrange(len(lines)) for _ in range(2))
        change = random.randrange(4)
        if change == 0:
            lines[a], lines[b] = lines[b], lines[a]
        elif change == 1:
            lines.insert(a, lines[b])
        elif change == 2:
            lines[a] = random.choice([" ", "  ", "\t", "- ", "#", "'"]) + lines[a]
        else:
            lines[a] = lines[a][random.randrange(1, 3) :]
    return "\n".join(lines)


@_family(EITHER, 60)
def _values_changed(random: Random) -> str:
    """Any value in the place of any other, whole branches too."""
    policy = json.loads(json.dumps(_valid(random)))
    for _ in range(random.randrange(1, 4)):
        places = list(_places(policy))
        owner, key = random.choice(places)
        other, its = random.choice(places)
        change = random.randrange(5)
        if change == 0:
            del owner[key]
        elif change == 1:
            owner[key] = json.loads(json.dumps(other[its]))
        elif change == 2:
            owner[key] = [owner[key]]
        elif change == 3:
            owner[key] = random.choice(
                [*_ODD, *_ADDRESSES[:-2], *_NAMES, True, 0, 1, "tcp", "deny", "0.0.0.0/0", "::/0"]
            )
        else:
            owner[key] = str(owner[key])
    return json.dumps(policy) if random.random() < 0.7 else as_yaml(json.loads(json.dumps(policy)))


@_family(EITHER, 3)
def _two_at_once(random: Random) -> bytes:
    one, other = _text(random).encode(), _text(random).encode()
    return one[: random.randrange(len(one))] + other[random.randrange(len(other)) :]


@_family(EITHER, 2)
def _noise(random: Random) -> bytes:
    if random.random() < 0.5:
        return random.randbytes(random.randrange(2000))
    return "".join(random.choices(" \n:-{}[],'\"#&*!|>%@`?ab01\t", k=random.randrange(500))).encode()


def _places(value: Any) -> "list[tuple[Any, Any]]":
    found: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *_places(inner)]
    return found
