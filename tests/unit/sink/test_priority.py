"""What asks gives way to what stores."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sink.priority import NICE, give_way, giving_way
from sink.store import Store


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_gives_way_alone() -> None:
    with ThreadPoolExecutor(1, initializer=give_way) as thread:
        assert thread.submit(nice).result() == NICE
    assert nice() == 0


def test_what_it_starts_gives_way_too() -> None:
    def started() -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(nice).result()

    assert giving_way(started) == NICE
    assert giving_way(sum, [1, 2]) == 3


def test_the_threads_of_the_database_give_way(on_disk: Callable[..., Store]) -> None:
    before = {path.name for path in Path("/proc/self/task").iterdir()}
    store = on_disk(threads=3)
    started = {path.name for path in Path("/proc/self/task").iterdir()} - before
    assert len(started) >= 2  # DuckDB 1.5 starts those two, 2.0 some more
    assert {os.getpriority(os.PRIO_PROCESS, int(number)) for number in started} == {NICE}
    assert nice() == 0
    store.close()
