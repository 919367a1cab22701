"""The prompt of `ztlens sql`: lines into statements, remembered and completed."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

NAMES = """
    SELECT view_name AS name, 'view' AS kind FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'
    UNION SELECT column_name, 'column' FROM duckdb_columns() WHERE NOT internal AND schema_name = 'main'
    UNION SELECT function_name || '(', 'function' FROM duckdb_functions()
        WHERE function_type IN ('macro', 'aggregate', 'scalar') AND function_name ~ '^[a-z][a-z0-9_]*$'
            AND (NOT internal OR function_type <> 'macro')
    UNION SELECT upper(keyword_name), 'keyword' FROM duckdb_keywords() ORDER BY ALL
"""
"""What may stand in a question, and what it is. Asked once, when the prompt begins."""
KINDS = ("view", "column", "keyword", "function")
"""In the order they are offered."""
_WORD = re.compile(r"\w+$")


class Names(Completer):
    """Completes views, columns, functions and keywords; keywords as they were begun, in capitals or not."""

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._names = sorted(set(names), key=lambda one: (KINDS.index(one[1]), one[0]))

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Names that begin with the word before the cursor; nothing inside a text."""
        before = document.text_before_cursor
        word = _WORD.search(before)
        if word is None or before.count("'") % 2:
            return
        begun = word[0]
        for name, kind in self._names:
            if name.lower().startswith(begun.lower()):
                text = name.lower() if kind == "keyword" and begun.islower() else name
                yield Completion(text, start_position=-len(begun), display_meta=kind)


def statements(names: Iterable[tuple[str, str]], remembered: Path) -> Iterator[str]:
    """Each statement that is typed, up to its `;`, until Ctrl-D; Ctrl-C drops what was begun."""
    history: History
    try:
        remembered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remembered.touch(mode=0o600)
        history = FileHistory(str(remembered))
    except OSError:
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(history=history, completer=Names(names), complete_while_typing=False)
    lines: list[str] = []
    while True:
        try:
            lines.append(session.prompt("ztlens> " if not lines else "   ...> "))
        except KeyboardInterrupt:
            lines = []
            continue
        except EOFError:
            return
        text = "\n".join(lines).strip()
        if not text:
            lines = []
        elif text.endswith(";"):
            lines = []
            yield text
