"""The documents as data: their code blocks, each with the mark that stands above it.

    <!-- run: live.py -->
    ```python
    …
    ```

A mark is an HTML comment `key: value` on the line right above the fence; readers do not see it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^(?:<!-- (?P<key>[a-z-]+): (?P<value>.*?) -->\n)?"
    r"(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: `key` and `value` of its mark ("" without one), `line` where its text begins."""

    file: Path
    line: int
    language: str
    text: str
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"


def documents() -> list[Path]:
    """README and every document of docs/."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(file: Path) -> list[Block]:
    """Every fenced block of a document, in order."""
    text = file.read_text(encoding="utf-8")
    return [
        Block(
            file, text.count("\n", 0, match.start("text")) + 1, match["language"].strip(), match["text"],
            match["key"] or "", match["value"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]  # fmt: skip


def marked(file: Path, key: str) -> dict[str, Block]:
    """Blocks with the mark `key`, by its value, which is given once."""
    found = [block for block in blocks(file) if block.key == key]
    by_value = {block.value: block for block in found}
    assert len(by_value) == len(found), f"{file.name}: a mark `{key}` is given twice"
    return by_value
