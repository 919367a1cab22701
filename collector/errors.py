"""What can go wrong in the collector.

CollectorError          root; `hint` is the next step to take, `exit_status` that of docs/cli.md
├── KernelError         loading, attaching, a missing kernel feature or privilege
│   ├── ForeignProgram  the interface has somebody else's program: it is left alone
│   └── VerifierError   the kernel's verifier refuses a program of ours
├── RefusedError        a request on the control socket that changes nothing (bad policy, wrong state)
└── StreamError         NATS is unreachable or refuses; recoverable: the collector goes on trying
"""


class CollectorError(Exception):
    """Root. `hint`: one line, what to do next."""

    exit_status = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class KernelError(CollectorError):
    """The kernel side cannot be had as asked. `errno`: the kernel's answer, 0 if it was not asked."""

    errno: int = 0


class ForeignProgram(KernelError):
    """The interface already has a program that is not ours."""


class VerifierError(KernelError):
    """The verifier's no, in its own words; more of them are a note."""


class RefusedError(CollectorError):
    """The request was understood and refused; nothing changed."""

    exit_status = 2


class StreamError(CollectorError):
    """NATS is away; retried."""
