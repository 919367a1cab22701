"""Who works first where there are fewer CPUs than work: what stores, before what asks."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

NICE = 10
T = TypeVar("T")
P = ParamSpec("P")


def give_way() -> None:
    """From here on this thread, and those it starts, let others work first (on Linux a thread has a nice value)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def giving_way(work: Callable[P, T], *args: P.args, **how: P.kwargs) -> T:
    """What `work` gives, done in a thread that gives way; threads it leaves behind do, too."""
    with ThreadPoolExecutor(1, initializer=give_way) as thread:
        return thread.submit(work, *args, **how).result()
