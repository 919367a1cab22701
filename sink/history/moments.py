"""Which moments a question may name: those that history can hold."""

from sink.errors import QueryError
from sink.history.pairs import FOR_EVER


def check(*moments: int | None) -> None:
    """Of ns since 1970 UTC, None: not given. Raises QueryError for what a TIMESTAMP_NS cannot say."""
    if any(moment is not None and abs(moment) > FOR_EVER for moment in moments):
        raise QueryError(
            "a moment lies outside of what ns since 1970 of 64 bits can say", "history knows the years 1678 to 2261"
        )
