"""policy.yaml → `policy.model`. The first thing wrong ends it: a PolicyError with line, column and what was expected.

`schemas/policy.schema.json` is the same language for editors; this is the one that decides.
"""

import gc
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from policy import words
from policy.builtin import BUILTINS, IDENTITY_NAMES, RULE_NAMES
from policy.document import Mapping, Node, Scalar, Sequence, fail, quoted, read_document
from policy.errors import PolicyError
from policy.model import (
    Identity,
    Labels,
    Named,
    Policy,
    PortSpan,
    Prefix,
    Reserved,
    Rule,
    Selection,
    Term,
    merge_spans,
    name_from_content,
)
from schemas.codes import Decision

VERSION = 1
MAX_RULES = 16_384
"""Their bit vectors over as many classes are 32 MiB (`regions.MAX_MATRIX_BYTES`), and compiling is done in seconds."""

_TOP = ("version", "default", "builtins", "identities", "rules")
_IDENTITY = ("labels", "addresses")
_NESTED = ("from", "from_except", "to", "to_except", "ports")
_FLAT = ("src_ip", "dst_ip", "dst_port", "proto")
_SHARED = ("name", "action", "report_only", "sample")
_RULE = frozenset((*_NESTED, *_FLAT, *_SHARED))
_ACTIONS = {"allow": Decision.ALLOW, "deny": Decision.DENY}
_RESERVED = {str(word): word for word in Reserved}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}", re.ASCII)
_TAKEN_RULE_NAMES = frozenset(RULE_NAMES.values())
_MAX_TEXT = 128

Value = TypeVar("Value")


class _Known(NamedTuple):
    """What selectors may refer to."""

    names: set[str]
    labels: dict[str, set[str]]


def parse(text: str, file: str = "policy.yaml") -> Policy:
    """The policy that `text` describes; `file` is the name that errors carry. Raises PolicyError and nothing else."""
    try:
        with _no_collection():
            return _policy(text)
    except PolicyError as error:
        error.file = file
        raise


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nodes are many and none is garbage before the end: looking for cycles among them doubles the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _policy(text: str) -> Policy:
    body = text.removeprefix("\ufeff")
    root = read_document(body)
    if not isinstance(root, Mapping):
        fail(root, f"expected a mapping, found {root.kind}", "begin with `version: 1`")
    top = _fields(root, _TOP, "a policy")
    if "version" not in top:
        fail(root, "`version` is missing", f"begin with `version: {VERSION}`")
    version = top["version"]
    if _text(version, "version") != str(VERSION):
        fail(
            version, f"version {quoted(_text(version, 'version'))} is not known", f"this ztlens knows version {VERSION}"
        )
    default = _choice(top["default"], "default", _ACTIONS) if "default" in top else Decision.DENY
    identities = tuple(_identities(top["identities"])) if "identities" in top else ()
    known = _Known({i.name for i in identities}, {})
    for identity in identities:
        for key, value in identity.labels.items():
            known.labels.setdefault(key, set()).add(value)
    return Policy(
        version=VERSION,
        default=default,
        identities=identities,
        rules=_rules(top["rules"], known, body) if "rules" in top else (),
        text=text,
        hash=hashlib.sha256(text.encode()).hexdigest(),
        builtins_off=_builtins_off(top["builtins"]) if "builtins" in top else frozenset(),
        default_at=(top["default"].line, top["default"].column) if "default" in top else (0, 0),
    )


# ---- single values


def _text(node: Node, what: str) -> str:
    if not isinstance(node, Scalar):
        fail(node, f"`{what}`: expected a single value, found {node.kind}")
    if node.null:
        fail(node, f"`{what}` has no value", "give one, or leave the key out")
    return node.value


def _choice(node: Node, what: str, valid: dict[str, Value]) -> Value:
    text = _text(node, what)
    if text not in valid:
        expected = " or ".join((", ".join([*valid][:-1]), [*valid][-1]))
        fail(node, f"`{what}`: expected {expected}, found {quoted(text)}", words.nearest(text, valid))
    return valid[text]


def _boolean(node: Node, what: str) -> bool:
    text = _text(node, what)
    if not isinstance(node, Scalar) or not node.plain or text not in ("true", "false", "True", "False"):
        fail(node, f"`{what}`: expected true or false, found {quoted(text)}")
    return text.lower() == "true"


def _located(node: Node, convert: Callable[..., Value], *arguments: str) -> Value:
    try:
        return convert(*arguments)
    except PolicyError as error:
        error.line, error.column = node.line, node.column
        raise


def _fields(node: Node, valid: Iterable[str], what: str) -> dict[str, Node]:
    if not isinstance(node, Mapping):
        fail(node, f"{what}: expected a mapping, found {node.kind}")
    out = {}
    for name, (key, value) in node.pairs.items():
        if name not in valid:
            hint = words.nearest(name, valid) or "expected " + ", ".join(sorted(valid))
            fail(key, f"{what} has no key {quoted(name)}", hint)
        out[name] = value
    return out


def _items(node: Node) -> list[Node]:
    """The entries of a list, or the one value in its place."""
    return node.items if isinstance(node, Sequence) else [node]


# ---- identities and built-in rules


def _identities(node: Node) -> Iterable[Identity]:
    if isinstance(node, Scalar) and node.null:
        return
    if not isinstance(node, Mapping):
        fail(
            node,
            f"`identities`: expected names with their addresses, found {node.kind}",
            "as in `web: {addresses: […]}`",
        )
    for name, (key, value) in node.pairs.items():
        if name in _RESERVED or name in IDENTITY_NAMES.values():
            fail(key, f"the identity name {quoted(name)} is reserved", f"reserved are {', '.join(_RESERVED)}")
        if _NAME.fullmatch(name) is None or (words.looks_like_address(name) and _is_address(name)):
            hint = "up to 63 letters, digits, `_`, `-` and `.`, and not an address"
            fail(key, f"{quoted(name)} is not a name for an identity", hint)
        entry = _fields(value, _IDENTITY, f"identity {quoted(name)}")
        if "addresses" not in entry:
            fail(
                key,
                f"identity {quoted(name)} has no `addresses`",
                "give a list of addresses and CIDRs; it may be empty",
            )
        labels = _pairs(entry["labels"], "labels") if "labels" in entry else {}
        addresses = tuple([_prefix(item) for item in _items(entry["addresses"])])
        yield Identity(name, labels, addresses, key.line, key.column)


def _is_address(text: str) -> bool:
    try:
        words.prefix(text)
    except PolicyError:
        return False
    return True


def _prefix(node: Node) -> Prefix:
    if type(node) is not Scalar or node.null:
        fail(node, "expected an address or CIDR" + ("" if isinstance(node, Scalar) else f", found {node.kind}"))
    try:
        return words.prefix(node.value)
    except PolicyError as error:
        error.line, error.column = node.line, node.column
        raise


def _pairs(node: Node, what: str) -> dict[str, str]:
    if not isinstance(node, Mapping):
        fail(node, f"`{what}`: expected label: value pairs, found {node.kind}", "as in {app: db, env: prod}")
    out = {}
    for name, (key, value) in node.pairs.items():
        if _LABEL.fullmatch(name) is None:
            fail(key, f"{quoted(name)} is not a label", "up to 128 letters, digits, `_`, `-`, `.` and `/`")
        text = _text(value, name)
        if not text or len(text) > _MAX_TEXT or not text.isprintable():
            fail(value, f"{quoted(text)} is not a label's value", f"1 to {_MAX_TEXT} printable characters")
        out[name] = text
    return out


def _builtins_off(node: Node) -> frozenset[str]:
    entries = _fields(node, BUILTINS, "`builtins`")
    return frozenset(name for name, value in entries.items() if not _boolean(value, name))


# ---- rules


def _rules(node: Node, known: _Known, body: str) -> tuple[Rule, ...]:
    if isinstance(node, Scalar) and node.null:
        return ()
    if not isinstance(node, Sequence):
        fail(node, f"`rules`: expected a list, found {node.kind}", "begin each rule with `- `")
    if len(node.items) > MAX_RULES:
        fail(
            node.items[MAX_RULES],
            f"more than {MAX_RULES:,} rules",
            "use labels, lists and CIDRs to say more in one rule",
        )
    rules: dict[str, Rule] = {}
    for item in node.items:
        rule = _rule(item, known, body)
        first = rules.setdefault(rule.name, rule)
        if first is not rule:
            message = f"the rule {quoted(rule.name)} is given twice"
            fail(item, message, f"the first is in line {first.line}; take one out or give it another `name`")
    return tuple(rules.values())


def _rule(node: Node, known: _Known, body: str) -> Rule:
    fields = _fields(node, _RULE, "a rule")
    flat = [key for key in _FLAT if key in fields]
    nested = [key for key in _NESTED if key in fields]
    if flat and nested:
        message = f"`{flat[0]}` and `{nested[0]}` do not go together"
        fail(fields[flat[0]], message, "write the rule with from, to, ports or with src_ip, dst_ip, dst_port, proto")
    if "action" not in fields:
        fail(node, "the rule has no `action`", "add `action: allow` or `action: deny`")
    action = _choice(fields["action"], "action", _ACTIONS)
    report_only = _boolean(fields["report_only"], "report_only") if "report_only" in fields else False
    if report_only and action == Decision.ALLOW:
        fail(fields["report_only"], "`report_only` is for rules that deny", "take it out, or write `action: deny`")
    if flat:
        source = _flat_selection(fields.get("src_ip"), "src_ip", known)
        destination = _flat_selection(fields.get("dst_ip"), "dst_ip", known)
        ports = _flat_ports(fields.get("dst_port"), fields.get("proto"))
    else:
        source = _selection(fields.get("from"), fields.get("from_except"), "from", known)
        destination = _selection(fields.get("to"), fields.get("to_except"), "to", known)
        ports = _ports(fields.get("ports"))
    if "name" in fields:
        name = _rule_name(fields["name"])
    else:
        name = name_from_content(action, report_only, source, destination, ports)
    sample = _sample(fields["sample"]) if "sample" in fields else 0
    text = _outdented(body, node)
    return Rule(name, action, source, destination, ports, report_only, sample, text, node.line, node.column)


def _rule_name(node: Node) -> str:
    name = _text(node, "name")
    if not name or len(name) > _MAX_TEXT or not name.isprintable() or name != name.strip():
        fail(node, f"{quoted(name)} is not a name", f"1 to {_MAX_TEXT} printable characters, no space at either end")
    if name in _TAKEN_RULE_NAMES or name.startswith(("builtin:", "rule:")):
        fail(node, f"the rule name {quoted(name)} is reserved", "verdicts use it for what no rule decided")
    return name


def _sample(node: Node) -> int:
    number = words.integer(_text(node, "sample"), 1, 2**32 - 1)
    if number is None:
        fail(node, "`sample`: expected a number from 1 on: 1 in so many packets", "leave it out for the node's own")
    return number


def _outdented(body: str, node: Node) -> str:
    """What the author wrote for `node`, moved to the left margin."""
    margin = " " * (node.column - 1)
    return body[node.start : node.end].replace("\n" + margin, "\n")


def _selection(terms: Node | None, exclude: Node | None, key: str, known: _Known) -> Selection:
    taken = _terms(exclude, f"{key}_except", known) if exclude is not None else ()
    if terms is None:
        return Selection((Reserved.ANY,), taken)
    selected = _terms(terms, key, known)
    if not selected:
        fail(terms, f"`{key}` is an empty list: the rule could never match", "leave the key out for any")
    return Selection(selected, taken)


def _terms(node: Node, key: str, known: _Known) -> tuple[Term, ...]:
    if not isinstance(node, Sequence):
        return (_term(node, key, known),)
    return tuple(sorted({_term(item, key, known) for item in node.items}, key=str))


def _term(node: Node, key: str, known: _Known) -> Term:
    if isinstance(node, Mapping):
        pairs = _pairs(node, key)
        if not pairs:
            fail(node, f"`{key}`: an empty selector", "write `any` for every address")
        for label, value in pairs.items():
            _check_label(node, label, value, known)
        return Labels(tuple(sorted(pairs.items())))
    if isinstance(node, Sequence):
        fail(node, f"`{key}`: a list inside a list", "write one list")
    text = _text(node, key)
    if (reserved := _RESERVED.get(text)) is not None:
        return reserved
    if text in known.names:
        return Named(text)
    if words.looks_like_address(text):
        return _located(node, words.prefix, text)
    hint = words.nearest(text, (*_RESERVED, *known.names)) or "define it under `identities`"
    return fail(node, f"`{key}`: no identity is called {quoted(text)}", hint)


def _check_label(node: Mapping, label: str, value: str, known: _Known) -> None:
    """A selector that no identity can fit is a slip of the pen: a deny rule with it would protect nothing."""
    key, place = node.pairs[label]
    if label not in known.labels:
        hint = words.nearest(label, known.labels) or "add it to an identity's `labels`"
        fail(key, f"no identity has the label {quoted(label)}", hint)
    if value not in known.labels[label]:
        hint = words.nearest(value, known.labels[label]) or "add it to an identity's `labels`"
        fail(place, f"no identity has the label {label}: {quoted(value)}", hint)


def _flat_selection(node: Node | None, key: str, known: _Known) -> Selection:
    if node is None:
        return Selection((Reserved.ANY,))
    if not isinstance(node, Scalar):
        fail(
            node,
            f"`{key}`: expected one address, CIDR or name, found {node.kind}",
            "for more write the rule with from, to, ports",
        )
    return Selection((_term(node, key, known),))


def _ports(node: Node | None) -> tuple[PortSpan, ...]:
    if node is None:
        return words.protocol_spans("any")
    items = _items(node)
    if not items:
        fail(node, "`ports` is an empty list: the rule could never match", "leave the key out for any")
    if len(items) == 1:
        return merge_spans([*_located(items[0], words.port_spans, _text(items[0], "ports"))])
    return merge_spans([span for item in items for span in _located(item, words.port_spans, _text(item, "ports"))])


def _flat_ports(port: Node | None, proto: Node | None) -> tuple[PortSpan, ...]:
    protocol = _text(proto, "proto") if proto is not None else "any"
    spans = _located(proto, words.protocol_spans, protocol) if proto is not None else words.protocol_spans("any")
    number = _text(port, "dst_port") if port is not None else "0"
    if port is None or number in ("0", "any"):
        return spans
    return merge_spans([*_located(port, words.spans_of, number, protocol)])
