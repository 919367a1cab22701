"""The fake keeps the promises of the real datapath."""

from collections.abc import Iterator

import numpy as np
import pytest

from collector.kernel.interface import Datapath, Interface
from tests.support.datapath_suite import DatapathSuite
from tests.support.fake_datapath import FakeDatapath, FakeKernel, make_rows

RING_RECORDS = 300


class FakeWorld:
    ring_records = RING_RECORDS

    def __init__(self) -> None:
        self.kernel = FakeKernel(RING_RECORDS)
        self._interfaces: tuple[Interface, ...] = (Interface("veth0"),)
        self.datapath: Datapath = FakeDatapath(self.kernel)

    def packets(self, n: int, first: int = 0) -> None:
        numbers = 1 + first + np.arange(n)
        self.kernel.push(make_rows(n, first_flow=1 + first, sport=numbers, proto=17))

    def reopen(self, *interfaces: Interface) -> Datapath:
        self._interfaces = interfaces or self._interfaces
        self.datapath = FakeDatapath(self.kernel, adopted=True, interfaces=self._interfaces)
        return self.datapath

    def add(self, name: str) -> None:
        self.kernel.set_links(*self.kernel.links, name)

    def remove(self, name: str) -> None:
        self.kernel.set_links(*(self.kernel.links - {name}))

    def rename(self, name: str, to: str) -> None:
        self.kernel.set_links(*(self.kernel.links - {name}), to)


class TestFakeDatapath(DatapathSuite):
    @pytest.fixture
    def world(self) -> Iterator[FakeWorld]:
        world = FakeWorld()
        yield world
        world.kernel.close()


def test_a_failure_is_raised_once() -> None:
    kernel = FakeKernel()
    datapath = FakeDatapath(kernel)
    kernel.failures["read"] = OSError("no")
    with pytest.raises(OSError, match="no"):
        datapath.read(1)
    assert datapath.read(1) is None
    kernel.close()


def test_reading_stops_at_a_record_being_written() -> None:
    kernel = FakeKernel()
    kernel.push(make_rows(3))
    kernel.busy_from = 2 * kernel.stride
    events = FakeDatapath(kernel).read(10)
    assert events is not None
    assert len(events.rows) == 2
    kernel.close()
