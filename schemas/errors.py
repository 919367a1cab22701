"""What is wrong with bytes that claim to follow these contracts."""


class SchemaError(Exception):
    """Root of this package's errors."""


class EnvelopeError(SchemaError):
    """A message is not what its subject promises; the text says where. The message is for the dead letters."""
