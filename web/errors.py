"""What can go wrong in the page.

WebError           root; `hint` is the next step to take, `exit_status` that of docs/cli.md
├── SettingsError  an address that cannot be listened on, or is not to be: exit status 2
├── AwayError      the sink does not answer; recoverable: it is asked again
└── RefusedError   the sink answered with an error: the question is wrong, or takes too long
"""


class WebError(Exception):
    """Root. `hint`: one line, what to do next."""

    exit_status = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(WebError):
    """Where the page is to listen."""

    exit_status = 2


class AwayError(WebError):
    """No sink answers."""


class RefusedError(WebError):
    """The sink's own words. `status`: of HTTP."""

    def __init__(self, message: str, hint: str = "", status: int = 400) -> None:
        super().__init__(message, hint)
        self.status = status
