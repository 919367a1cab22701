"""What is wrong with bytes that claim to follow these contracts, or with words of a person."""


class SchemaError(Exception):
    """Root of this package's errors."""


class EnvelopeError(SchemaError):
    """A message is not what its subject promises; the text says where. The message is for the dead letters."""


class InputError(SchemaError):
    """What a person wrote cannot be understood; `hint`: how to write it."""

    exit_status = 2

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
