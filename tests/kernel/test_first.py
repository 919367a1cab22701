"""What a start does before the service is imported: load, and attach where nothing has to be prepared."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import kernel
from collector.errors import KernelError
from collector.first import kernel_side_first
from collector.kernel import Interface
from collector.kernel.interface import Datapath
from collector.settings import CollectorSettings
from schemas.codes import Mode
from tests.support.kernel import KNOBS, instance
from tests.support.netns import Lab
from tests.support.place import Place


@pytest.fixture
def place() -> Iterator[Place]:
    with instance() as pins, Lab() as lab:
        yield Place(lab, pins)


def settings(place: Place, **more: object) -> CollectorSettings:
    given = {"interfaces": (Interface("veth0"),), "netns": place.netns, "pins": place.pins, "loader": "core"} | more
    return CollectorSettings(node="n1", knobs=KNOBS, **given)  # type: ignore[arg-type]


def refuse(_: Datapath) -> None:
    raise KernelError("no")


def test_with_nothing_to_prepare_it_is_attached_at_once(place: Place) -> None:
    chosen, seen = settings(place), list[Datapath]()
    opener = kernel_side_first(chosen, adopting=False)
    attached = place.xdp().native
    assert attached
    datapath = opener(chosen.datapath(), seen.append)
    assert seen == [datapath] and place.xdp().native == attached
    assert (datapath.adopted, datapath.interfaces, datapath.loader) == (False, {"veth0": "native+egress"}, "core")
    datapath.close()


@pytest.mark.parametrize("more", [{"policy_file": Path("policy.yaml")}, {"mode": Mode.ENFORCE}])
def test_what_is_to_be_prepared_is_prepared_before_the_first_packet(place: Place, more: dict[str, object]) -> None:
    chosen, seen = settings(place, **more), list[int]()
    opener = kernel_side_first(chosen, adopting=False)
    assert place.xdp().any == 0
    opener(chosen.datapath(), lambda _: seen.append(place.xdp().any)).close()
    assert seen == [0] and place.xdp().native


@pytest.mark.parametrize("more", [{}, {"mode": Mode.ENFORCE}])
def test_a_start_that_cannot_be_prepared_leaves_nothing(place: Place, more: dict[str, object]) -> None:
    chosen = settings(place, **more)
    opener = kernel_side_first(chosen, adopting=False)
    with pytest.raises(KernelError, match=r"^no$"):
        opener(chosen.datapath(), refuse)
    assert (place.xdp().any, place.tc(), place.pins.exists()) == (0, 0, False)


def test_what_runs_is_adopted_and_what_was_loaded_goes(place: Place) -> None:
    chosen = settings(place)
    kernel_side_first(chosen, adopting=False)(chosen.datapath(), lambda _: None).close()
    before = place.xdp().native
    assert kernel_side_first(chosen, adopting=True) is kernel.open_datapath
    heir = kernel_side_first(chosen, adopting=False)(chosen.datapath(), refuse)  # pinned by another in the meantime
    assert (heir.adopted, place.xdp().native) == (True, before)
    heir.close()


def test_a_compiler_is_not_run_in_advance(place: Place) -> None:
    assert kernel_side_first(settings(place, loader="bcc"), adopting=False) is kernel.open_datapath
