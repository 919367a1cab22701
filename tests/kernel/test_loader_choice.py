"""Which loader is taken and why; and what one loaded, the other goes on with."""

import errno
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from collector.errors import KernelError, VerifierError
from collector.kernel import libbpf, loader_bcc, loader_core
from collector.kernel.loader import AUTO, LOADERS, choose, load
from collector.kernel.private import private_datapath
from collector.kernel.sources import BPF_DIR, PROGRAMS, source_hash
from schemas.codes import EventKind
from tests.support.datapath_suite import balanced, drain, ports
from tests.support.kernel import KNOBS, instance
from tests.support.netns import Lab, wait_for
from tests.support.place import Place

OTHER = {"core": "bcc", "bcc": "core"}


@pytest.fixture
def place() -> Iterator[Place]:
    with instance() as pins, Lab() as lab:
        place = Place(lab, pins)
        yield place
        place.close()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the object is looked for in."""
    monkeypatch.setattr(loader_core, "BPF_DIR", tmp_path)
    return tmp_path


def test_auto_takes_core() -> None:
    assert (choose(AUTO).name, choose(AUTO).why) == ("core", "its object is there")
    assert [choose(name).name for name in LOADERS] == ["core", "bcc"]


def test_without_the_object_auto_takes_bcc(elsewhere: Path) -> None:
    assert (choose().name, choose().why) == ("bcc", f"no core: {elsewhere}/core.bpf.o: No such file or directory")
    with pytest.raises(KernelError, match=r"core\.bpf\.o: No such file") as caught:
        choose("core")
    assert caught.value.hint == "build it: make -C bpf (scripts/setup.sh does)"


def test_an_object_of_other_sources_is_not_used(elsewhere: Path) -> None:
    data = (BPF_DIR / "core.bpf.o").read_bytes()
    assert data.count(source_hash().encode()) == 1
    (elsewhere / "core.bpf.o").write_bytes(data.replace(source_hash().encode(), b"0" * 64))
    assert choose().why == f"no core: {elsewhere}/core.bpf.o was built from other sources"
    with pytest.raises(KernelError, match="built from other sources"):
        load("core", KNOBS)


def test_a_loader_that_is_none() -> None:
    with pytest.raises(KernelError, match="there is no loader cilium") as caught:
        choose("cilium")
    assert caught.value.hint == "loaders are: auto, core, bcc"


def test_what_is_no_object(elsewhere: Path) -> None:
    (elsewhere / "core.bpf.o").write_bytes(source_hash().encode())
    with pytest.raises(KernelError, match="reading the object"):
        load("core", KNOBS)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of one word: the verifier sees core's program read behind their end."""
    described = [replace(one, width=lambda _: 1) for one in loader_core.DESCRIBED]
    monkeypatch.setattr(loader_core, "DESCRIBED", described)


REFUSED = r"the verifier refused the program \w+: R\d min value is outside of the allowed memory range"


@pytest.mark.usefixtures("narrow")
def test_the_verifier_is_told_in_its_own_words() -> None:
    with pytest.raises(VerifierError) as caught:
        load("core", KNOBS)
    assert re.fullmatch(REFUSED, str(caught.value))
    assert caught.value.errno == errno.EACCES
    (note,) = caught.value.__notes__
    assert "invalid access to map value, value_size=8" in note
    assert "judge.h" in note, "with source lines"


@pytest.mark.usefixtures("narrow")
def test_what_the_verifier_refuses_of_core_bcc_compiles(place: Place) -> None:
    datapath = place.open(loader=AUTO)
    assert datapath.loader == "bcc"
    assert any(re.match(f"loaded by bcc: no core: {REFUSED}$", line) for line in datapath.notices)
    place.packets(2)
    wait_for(lambda: datapath.counters()["parsed"] == 2, "packets")


@pytest.mark.usefixtures("narrow")
def test_neither_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc.c").write_text("int xdp_ingress(struct xdp_md *ctx) { return nonsense; }\n")
    monkeypatch.setattr(loader_bcc, "BPF_DIR", tmp_path)
    with pytest.raises(KernelError) as caught:
        load(AUTO, KNOBS)
    assert re.search(rf"undeclared identifier 'nonsense' \(no core: {REFUSED}\)$", str(caught.value))


def test_nothing_is_left_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    _, loaded = load("core", KNOBS)
    assert set(loaded.programs) == set(PROGRAMS)
    loaded.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cannot_be_described_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("no")

    load("core", KNOBS)[1].close()  # what is probed once is probed
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(libbpf, "update", refuse)
    with pytest.raises(KernelError, match=r"^no$"):
        private_datapath(KNOBS, loader="core")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("first", LOADERS)
def test_one_adopts_what_the_other_loaded(place: Place, first: str) -> None:
    one = place.open(loader=first)
    place.packets(3)
    wait_for(lambda: one.counters()["parsed"] == 3, "packets")
    one.close()
    heir = place.open(loader=OTHER[first])
    assert (heir.adopted, heir.loader, heir.ring_id) == (True, first, one.ring_id)
    assert heir.notices[0].endswith(f", loaded by {first}")
    place.packets(2, first=10)
    wait_for(lambda: heir.counters()["parsed"] == 5, "packets")
    assert ports(drain(heir)) == [0, 1, 2, 10, 11]
    assert balanced(heir)


@pytest.mark.parametrize("first", LOADERS)
def test_one_replaces_what_the_other_loaded(place: Place, first: str) -> None:
    old = place.open(loader=first)
    place.packets(2)
    wait_for(lambda: old.counters()["parsed"] == 2, "packets")
    old.close()
    new = place.open(loader=OTHER[first], knobs=KNOBS | {"RING_BYTES": 131_072})
    assert (new.adopted, new.loader) == (False, OTHER[first])
    predecessor = new.predecessor
    assert predecessor is not None and (predecessor.loader, predecessor.ring_id) == (first, old.ring_id)
    place.packets(2, first=10)
    wait_for(lambda: new.counters()["parsed"] == 2, "packets")
    predecessor.detach()
    predecessor.end_all_flows()
    rows = drain(predecessor)
    assert sorted(rows["event"].tolist()) == [EventKind.NEW] * 2 + [EventKind.END] * 2
    predecessor.unpin()
    assert ports(drain(new)) == [10, 11]
