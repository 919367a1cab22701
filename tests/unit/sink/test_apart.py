"""Work in a process of its own: answers, refusals, and its end in every way."""

import os
import time

import pytest

from policy.errors import PolicyError
from policy.parse import parse
from sink.errors import BusyError, SinkError
from sink.history import apart as apart_module
from sink.history.apart import apart


def nothing(_: int) -> None:
    pass


def test_an_answer_of_another_process() -> None:
    assert apart(60, nothing, os.getpid) != os.getpid()
    big = b"x" * (3 << 20)
    assert apart(60, nothing, bytes.upper, big) == big.upper()
    assert apart(60, nothing, sorted, [1, 3, 2], reverse=True) == [3, 2, 1]


def test_what_it_is_given_comes_whole_however_late_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart_module, "_LOOKS", 0.001)
    looks: list[int] = []
    big = b"x" * (3 << 20)
    assert apart(60, looks.append, bytes.upper, big) == big.upper()
    assert len(looks) > 10


def test_a_refusal() -> None:
    with pytest.raises(PolicyError) as raised:
        apart(60, nothing, parse, "version: 2\n")
    assert raised.value.message == "version '2' is not known"
    assert raised.value.hint


def test_a_failure() -> None:
    with pytest.raises(SinkError, match=r"^a helper process failed: ZeroDivisionError: ") as raised:
        apart(60, nothing, divmod, 1, 0)
    assert raised.value.exit_status == 3
    with pytest.raises(SinkError, match=r"^a helper process failed: signal 6$"):
        apart(60, nothing, os.abort)


def test_its_time_is_over() -> None:
    with pytest.raises(BusyError, match=r"^the question took longer than 0 s$"):
        apart(0, nothing, time.sleep, 600)


def test_who_asked_has_left() -> None:
    def left(_: int) -> None:
        raise BusyError("who asked has left", "ask again")

    with pytest.raises(BusyError, match="who asked has left"):
        apart(60, left, time.sleep, 600)
