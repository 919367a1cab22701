"""The names that `observe -f` and `replay` begin with."""

from typing import Any

import nats.errors
import pytest

from ztlens.live import policy_records


class Slow:
    """A client of a server that gives one record of two; its own consumer, too."""

    num_pending = 2

    def __init__(self) -> None:
        self.data, self._left = b"one", [[self]]

    def jetstream(self) -> "Slow":
        return self

    async def pull_subscribe(self, *_: Any, **__: Any) -> "Slow":
        return self

    async def consumer_info(self) -> "Slow":
        return self

    async def fetch(self, *_: Any, **__: Any) -> list["Slow"]:
        if not self._left:
            raise nats.errors.TimeoutError
        return self._left.pop()


async def test_names_that_did_not_come_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    client: Any = Slow()
    assert await policy_records(client) == [b"one"]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "NATS gave 1 policy records, not all in time: rules and identities may lack their names\n"
