"""What can go wrong with a policy: one error, which says where and what would have been right.

PolicyError     root of this package; `str()` is `file:line:column: message`, `hint` the next step
"""


class PolicyError(Exception):
    """A policy that cannot be used. `line` and `column` count from 1; 0: the policy as a whole."""

    exit_status = 2

    def __init__(self, message: str, hint: str = "", file: str = "", line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.file = file
        self.line = line
        self.column = column

    def __str__(self) -> str:
        place = self.file or "policy.yaml"
        if self.line:
            place += f":{self.line}:{self.column}"
        return f"{place}: {self.message}"
