"""Features of the kernel are tried, and what is missing is gone round: the same books, or a clear refusal."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from collector.errors import KernelError
from collector.kernel import libbpf, maps, probes
from collector.kernel.private import private_datapath
from schemas.codes import Mode
from schemas.structs import FLOW, FLOW_KEY, RULE_COUNTER, dtype
from schemas.verdict import DTYPE
from tests.support.corpus import CORPUS
from tests.support.kernel import KNOBS, udp_frame
from tests.support.rules import ANY, Rule, Rules, compile_rules


@pytest.fixture(autouse=True)
def nothing_is_pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(probes.PRETEND, raising=False)


@pytest.mark.parametrize("name", probes.PROBES)
def test_this_kernel_has_it_and_the_probe_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert probes.PROBES[name].works() is True
    assert probes.has(name) is True
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    monkeypatch.setenv(probes.PRETEND, f"{name}, batch")
    assert probes.has(name) is False


def test_a_probe_tells_a_kernel_that_does_not_know() -> None:
    assert probes._made(99, 4, 8, 1, 0) is False
    assert probes._made(1, 4, 8, 1, 1 << 29) is False
    assert probes._link("tc", "xdp", 1, 0, (0,)) is False  # of another type: EINVAL, as from a kernel without links
    assert libbpf.has_helper("xdp", 100_000) is False


def test_what_there_is_no_way_round_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ringbuf", "mmapable", "jiffies64", "atomic_fetch"):
        monkeypatch.setenv(probes.PRETEND, name)
        with pytest.raises(KernelError, match=f"this kernel has no {probes.PROBES[name].what}") as caught:
            probes.require()
        assert caught.value.exit_status == 3
        assert caught.value.hint == f"Linux {probes.PROBES[name].since} has; see `ztlens doctor`"
    monkeypatch.setenv(probes.PRETEND, ",".join(name for name, p in probes.PROBES.items() if p.without))
    probes.require()


def test_a_feature_that_does_not_exist_cannot_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probes.PRETEND, "batch,ringbuffer")
    with pytest.raises(KernelError, match="no feature ringbuffer") as caught:
        probes.has("batch")
    assert "ringbuf, mmapable" in caught.value.hint


@pytest.fixture(params=["", "batch,percpu_batch"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(probes.PRETEND, request.param)
    yield request.param


def test_a_hash_is_written_read_and_emptied_with_and_without_batches(batches: str) -> None:
    key, value = dtype(FLOW_KEY), dtype(FLOW)
    some = maps.HashMap(libbpf.map_create("some", 1, key.itemsize, value.itemsize, entries=4096), key, value)
    keys, values = np.zeros(3000, key), np.zeros(3000, value)
    keys["lo_port"], values["packets"][:, 0] = np.arange(3000), 7 * np.arange(3000)
    some.put(keys, values)
    for size in (1, 777, 4096):
        parts = [(k["lo_port"].copy(), v["packets"][:, 0].copy()) for k, v in some.batches(size)]
        ports = np.concatenate([p for p, _ in parts])
        assert sorted(ports.tolist()) == list(range(3000))
        assert (np.concatenate([v for _, v in parts]) == 7 * ports.astype(np.uint64)).all()
    some.remove(keys[1000:])
    assert sorted(some.read()[0]["lo_port"].tolist()) == list(range(1000))
    some.remove(keys[:1000])
    assert [len(part) for part in some.read()] == [0, 0]
    some.close()


def test_per_cpu_counters_are_read_with_and_without_batches(batches: str) -> None:
    counter, cpus = dtype(RULE_COUNTER), libbpf.num_cpus()
    fd = libbpf.map_create("some", 6, 4, counter.itemsize, entries=100)
    some = maps.PerCpuArray(fd, counter)
    for i in range(100):
        value = np.zeros(cpus, counter)
        value["packets_passed"] = i + np.arange(cpus)
        libbpf.update(fd, np.array([i], np.uint32), value)
    expected = [cpus * i + sum(range(cpus)) for i in range(100)]
    assert some.sums()["packets_passed"].tolist() == expected
    assert some.sums(40, 60)["packets_passed"].tolist() == expected[40:60]
    assert some.read(99)["packets_passed"].tolist() == [list(range(99, 99 + cpus))]
    some.close()


def test_a_datapath_keeps_the_same_books_without_batches(batches: str) -> None:
    with private_datapath(KNOBS) as datapath:
        for i in range(40):
            datapath.run(udp_frame("10.0.0.1", 1 + i % 10, "10.0.0.2", 53, bytes(18)))
        report = datapath.sweep()
        assert (report.sums.live, report.sums.packets, report.sums.bytes) == (10, 40, 2400)
        assert datapath.counters()["parsed"] == 40
        assert int(datapath.rule_counters(0)["packets_passed"].sum()) == 40
        datapath.end_all_flows()
        assert datapath.sweep().sums.live == 0
        assert datapath.counters()["flows_ended"] == 10


def test_without_a_coarse_clock_the_precise_one_serves(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {}
    for lacking in ("", "coarse_clock"):
        monkeypatch.setenv(probes.PRETEND, lacking)
        with private_datapath(KNOBS, loader=loader) as datapath:
            times[lacking] = set()
            for _ in range(500):
                datapath.run(udp_frame("10.0.0.1", 1, "10.0.0.2", 53))
                times[lacking] |= set(datapath.flows()["flow"]["last_seen"].tolist())
    assert len(times[""]) < len(times["coarse_clock"]) == 500


def test_without_a_coarse_clock_the_books_are_the_same(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packet of the corpus, in and out, then every flow ended: nothing but the times differs."""
    rules = Rules((Rule(ANY, ANY, "tcp/80", True), Rule(ANY, ANY, "udp/53", False)), builtins=15)
    cpus, books = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, {min(cpus)})  # the CPU is part of a flow's id
    for lacking in ("", "coarse_clock"):
        monkeypatch.setenv(probes.PRETEND, lacking)
        with private_datapath(KNOBS, loader=loader, sample=1, budget=1_000_000) as datapath:
            datapath.apply(compile_rules(rules), datapath.next_revision)
            datapath.set_mode(Mode.ENFORCE)
            said = [datapath.run(frame)[0] for frame in CORPUS]
            said += [datapath.run(frame, program="tc_egress")[0] for frame in CORPUS]
            datapath.end_all_flows()
            events = datapath.read(4096)
            assert events is not None
            rows = np.sort(events.rows, order=["flow_id", "event", "packets_original", "packets_reply"])
            rows["time"] = 0
            counted = [datapath.rule_counters(slot).tobytes() for slot in (0, 1)]
            books.append((said, rows.tobytes(), datapath.counters(), counted))
    os.sched_setaffinity(0, cpus)
    assert {1, 2} <= set(books[0][0])
    assert len(books[0][1]) > len(CORPUS) * DTYPE.itemsize
    assert books[0] == books[1]


def test_without_ring_buffers_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probes.PRETEND, "ringbuf")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KernelError, match="no ring buffers"):
        private_datapath(KNOBS)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
