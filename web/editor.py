"""Elements to write and to save in: a text with highlighting and marks, and a button that saves a file."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import nicegui.elements.codemirror  # noqa: F401 (makes CodeMirror known to the browser, from this page)
from nicegui.element import Element
from nicegui.events import GenericEventArguments

from web.elements import STATIC


class Editor(Element, component=STATIC / "editor.js"):
    """A text to edit. `changed` gets it when typing pauses, `run` at Ctrl+Enter; `words` are offered to complete."""

    def __init__(
        self,
        label: str,
        text: str,
        language: Literal["YAML", "SQL"],
        changed: Callable[[str], Any],
        run: Callable[[str], Any],
    ) -> None:
        super().__init__()
        self._props.update(label=label, text=text, language=language, marks=[], words=[])
        self.on("text", _whole(changed))
        self.on("run", _whole(run))

    def put(self, text: str) -> None:
        """Another text; `changed` is not told."""
        self._props["text"] = text
        self.run_method("put", text)

    def insert(self, text: str) -> None:
        """Where the cursor is."""
        self.run_method("insert", text)

    def reveal(self, line: int, column: int) -> None:
        """Go there; both count from 1."""
        self.run_method("reveal", line, column)

    def show_marks(self, marks: Sequence[dict[str, Any]]) -> None:
        """`severity` (error, warning), `message`, and `line` and `column` from 1."""
        self._props["marks"] = list(marks)
        self.update()

    def offer(self, words: Sequence[str]) -> None:
        """Words to complete."""
        self._props["words"] = list(words)
        self.update()


def _whole(told: Callable[[str], Any]) -> Callable[[GenericEventArguments], Any]:
    """The pieces of a text put together, of which so many characters came before; one that broke off is forgotten."""
    pieces: list[str] = []

    def given(event: GenericEventArguments) -> Any:
        piece, before, last = event.args
        if before == 0:
            pieces.clear()
        pieces.append(str(piece))
        if not last:
            return None
        text = "".join(pieces)
        pieces.clear()
        return told(text)

    return given


class Save(Element, component=STATIC / "save.js"):
    """A button that saves a file; `failed` gets an error and its hint."""

    def __init__(self, label: str, name: str, failed: Callable[[str, str], Any]) -> None:
        super().__init__()
        self._props.update(label=label, name=name)
        self.on("failed", lambda event: failed(str(event.args[0]), str(event.args[1])))

    def text(self, text: str) -> None:
        """What it saves."""
        self._props["text"] = text
        self.update()

    def answer(self, path: str, body: str) -> None:
        """It saves the answer to this POST."""
        self._props.update(path=path, body=body)
        self.update()
