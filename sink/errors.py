"""What can go wrong in the sink.

SinkError          root; `hint` is the next step to take, `exit_status` that of docs/cli.md
├── QueryError     the question is wrong (syntax, unknown column, not read-only): exit status 2
│   └── AbsentError    it names what is not there (a flow, a revision)
├── SettingsError  settings that contradict each other: exit status 2
├── ExportError    a directory is no export, or a damaged one: exit status 2
├── BusyError      too many questions at once, or this one took too long; recoverable: ask again
│   └── ReopenedError  the store broke it off: it is opened anew (after a full disk), or writing needs the memory
└── StoreError     a commit failed (disk full, I/O error); recoverable: nothing is lost, it is tried again
    └── MemoryFullError  it found DuckDB's memory full of what questions hold
"""


class SinkError(Exception):
    """Root. `hint`: one line, what to do next."""

    exit_status = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(SinkError):
    """Settings that cannot hold together."""

    exit_status = 2


class QueryError(SinkError):
    """The SQL cannot be answered as it stands."""

    exit_status = 2


class AbsentError(QueryError):
    """What the question names is not in the store."""


class ExportError(SinkError):
    """The directory cannot be read as exported history, or cannot be exported into."""

    exit_status = 2


class BusyError(SinkError):
    """The question was given up: no reader free, or over its time."""


class ReopenedError(BusyError):
    """The store broke the question off; the next one will do."""

    def __init__(self) -> None:
        super().__init__("the store was opened anew or needed the memory to write while it answered", "ask again")


class StoreError(SinkError):
    """A transaction was rolled back; the store holds what it held before."""


class MemoryFullError(StoreError):
    """The same, because DuckDB's memory was full of what questions under way hold."""
