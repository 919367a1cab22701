"""YAML text → nodes that know their place.

A policy needs little of YAML, and the rest is where the traps are: anchors and aliases (bombs), tags (objects),
directives, several documents and duplicate keys are refused. Scalars stay the text that the file shows, so that
`on`, `010` or `12:30` never turn into something else behind the author's back.

Nodes are made from libyaml's events (0.15 s for 100,000 scalars; yaml.compose takes 0.65 s, and recurses in C).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from policy.errors import PolicyError

MAX_BYTES = 8 << 20
MAX_NODES = 250_000  # 10,000 rules of twelve values over 100,000 addresses, and room
MAX_BRANCHES = 65_536  # lists and mappings: each takes three times as long as a single value
MAX_DEPTH = 16

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DIRECTIVE = re.compile("^%", re.MULTILINE)
_SMALLER = "name large groups of addresses by CIDR"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(slots=True)
class Node:
    """A value in the file: lines and columns count from 1, `start` and `end` are offsets into the text."""

    line: int
    column: int
    start: int
    end: int

    kind = "value"


@dataclass(slots=True)
class Scalar(Node):
    """A word, a number, a string: `value` is its text, `plain` is true if it is not quoted."""

    value: str
    plain: bool

    kind = "a single value"

    @property
    def null(self) -> bool:
        """Nothing, or one of YAML's words for it."""
        return self.plain and self.value in _NULL


@dataclass(slots=True)
class Sequence(Node):
    """A list."""

    items: list[Node]

    kind = "a list"


@dataclass(slots=True)
class Mapping(Node):
    """Keys and values; keys are distinct."""

    pairs: dict[str, tuple[Scalar, Node]]

    kind = "a mapping"


def fail(node: Node, message: str, hint: str = "") -> NoReturn:
    """Raise a PolicyError at `node`."""
    raise PolicyError(message, hint, line=node.line, column=node.column)


def quoted(text: str) -> str:
    """`text` for a message: short, in quotes, nothing unprintable."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def read_document(text: str) -> Node:
    """The one document in `text` (no byte order mark). Raises PolicyError unless it is plain, bounded YAML."""
    _check_text(text)
    events = iter(_Loader(text).get_event, None)  # as yaml.parse does, in 3/4 of its time
    try:
        return _build(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise PolicyError(f"not valid YAML: {said}", _yaml_hint(text, line), line=line, column=column) from None
    except yaml.YAMLError as error:
        raise PolicyError(f"not valid YAML: {error}", line=1, column=1) from None


def _check_text(text: str) -> None:
    if (bad := _FORBIDDEN.search(text)) is not None:
        _fail_at(text, bad.start(), f"character U+{ord(bad[0]):04X} is not allowed", "a policy is plain text in UTF-8")
    if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
        refuse_too_large()
    if (directive := _DIRECTIVE.search(text)) is not None:
        _fail_at(text, directive.start(), "YAML directives (%…) are not part of the language", "take the line out")


def refuse_too_large() -> NoReturn:
    """Raise the PolicyError of a file of more than MAX_BYTES."""
    raise PolicyError(f"larger than {MAX_BYTES >> 20} MiB", _SMALLER, line=1, column=1)


def _fail_at(text: str, offset: int, message: str, hint: str) -> NoReturn:
    line_start = text.rfind("\n", 0, offset) + 1
    raise PolicyError(message, hint, line=text.count("\n", 0, offset) + 1, column=offset - line_start + 1)


def _yaml_hint(text: str, line: int) -> str:
    lines = text.split("\n")
    near = lines[max(0, line - 2) : line]
    if any("\t" in part[: len(part) - len(part.lstrip())] for part in near):
        return "indent with spaces, not tabs"
    if near and "::" in near[-1]:
        return 'quote IPv6 addresses that begin or end with a colon: "::1"'
    return "check indentation, colons and brackets here and on the line above"


def _build(events: Iterable[Any]) -> Node:
    """The root of the one document. One loop without calls: a file may be refused for the last of 300,000 values."""
    root: Node | None = None
    parent: Node | None = None  # the innermost open list or mapping
    key: Scalar | None = None  # the one in `parent` whose value comes next
    around: list[Node] = []
    nodes = branches = last = 0  # `last`: the offset behind what was read
    for event in events:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            if event.anchor is not None or event.tag is not None:
                _refuse_extras(event)
            mark, last = event.start_mark, event.end_mark.index
            node: Node = Scalar(mark.line + 1, mark.column + 1, mark.index, last, event.value, event.implicit[0])
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if event.anchor is not None or event.tag is not None:
                _refuse_extras(event)
            node = _opened(event, len(around))
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            if event.end_mark.index > event.start_mark.index:
                last = event.end_mark.index  # a bracket of its own; else it ends where its last value does
            around.pop().end = last
            parent = around[-1] if around else None
            continue
        else:
            _check_rare(event, root)
            continue
        nodes += 1
        if nodes > MAX_NODES:
            fail(node, f"more than {MAX_NODES:,} values in the file", _SMALLER)
        if type(parent) is Mapping:
            if key is None:
                key = _key(node, parent)
            else:
                parent.pairs[key.value] = (key, node)
                key = None
        elif type(parent) is Sequence:
            parent.items.append(node)
        else:
            root = node
        if kind is not yaml.ScalarEvent:
            around.append(node)
            parent = node
            branches += 1
            if branches > MAX_BRANCHES:
                fail(node, f"more than {MAX_BRANCHES:,} lists and mappings in the file", _SMALLER)
    if root is None:
        raise PolicyError("the file is empty", "begin with `version: 1`", line=1, column=1)
    return root


def _opened(event: Any, depth: int) -> Node:
    mark = event.start_mark
    line, column, index = mark.line + 1, mark.column + 1, mark.index
    node: Node
    if type(event) is yaml.SequenceStartEvent:
        node = Sequence(line, column, index, index, [])
    else:
        node = Mapping(line, column, index, index, {})
    if depth >= MAX_DEPTH:
        fail(node, f"nested more than {MAX_DEPTH} deep", "a policy needs 5 levels")
    return node


def _check_rare(event: Any, root: Node | None) -> None:
    if type(event) is yaml.AliasEvent:
        _refuse_extras(event)
    elif type(event) is yaml.DocumentStartEvent and root is not None:
        fail(_place(event), "a second YAML document begins here", "one policy a file: take out the `---`")


def _place(event: Any) -> Node:
    mark = event.start_mark
    return Node(mark.line + 1, mark.column + 1, mark.index, event.end_mark.index)


def _refuse_extras(event: Any) -> None:
    if event.anchor is not None:
        message = f"YAML anchors and aliases ({quoted(event.anchor)}) are not part of the language"
        fail(_place(event), message, "repeat the value, or use a label")
    if event.tag is not None:
        message = f"YAML tags ({quoted(event.tag)}) are not part of the language"
        fail(_place(event), message, "write the plain value")


def _key(node: Node, mapping: Mapping) -> Scalar:
    if not isinstance(node, Scalar):
        fail(node, f"{node.kind} cannot be a key", "expected a word, a colon and a value")
    if node.null:
        fail(node, "a key is missing before the colon", "expected a word, a colon and a value")
    if node.value in mapping.pairs:
        first = mapping.pairs[node.value][0]
        fail(node, f"{quoted(node.value)} is given twice", f"the first is in line {first.line}")
    return node
