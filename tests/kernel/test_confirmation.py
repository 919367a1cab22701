"""What nobody confirms is taken back by the datapath itself: by its own clock, with user space doing nothing."""

from collections.abc import Iterator

import pytest

from schemas.codes import Mode
from tests.support.packets import A6, B6, Talk
from tests.support.rules import ANY, Rule, Rules
from tests.support.workbench import DROP, PASS, Workbench, differences

FROM_A = Rules((Rule("10.0.0.1/32", ANY, ANY, True), Rule("fd00::1/128", ANY, ANY, True)))
NOTHING = Rules()
FAMILIES = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def trial(bench: Workbench) -> Iterator[Workbench]:
    """The bench; whatever is unconfirmed at the end is taken back."""
    yield bench
    bench.fall_back()


def deadline(bench: Workbench) -> int:
    """ns since t0; up to and with this moment the change holds."""
    change = bench.d.unconfirmed
    assert change is not None
    return change.until - bench.t0


def talk(version: int) -> Talk:
    return Talk("tcp") if version == 4 else Talk("tcp", A6, B6)


@FAMILIES
def test_a_policy_that_is_not_confirmed(trial: Workbench, version: int) -> None:
    trial.fresh(FROM_A, Mode.ENFORCE)
    old, one = trial.revision, talk(version)
    assert trial.send(one.there("S")).action == PASS
    trial.apply(NOTHING, 20)
    until = deadline(trial)
    cut = trial.send(one.back("SA"), until)
    assert cut.action == DROP
    assert differences(cut.events[0], {"event": "change", "decision": "deny", "revision": old + 1}) == {}
    back = trial.send(one.there("A"), until + 1)
    assert back.action == PASS
    assert differences(back.events[0], {"event": "change", "decision": "allow", "revision": old}) == {}
    again = trial.send(one.back("A"), until + 2)
    assert (again.action, again.kinds) == (PASS, ["sample"])
    # The collector's clearing away, whenever it comes, changes nothing for any packet.
    trial.d.fall_back()
    assert trial.send(one.back("A"), until + 3).kinds == ["sample"]
    trial.check()


@FAMILIES
def test_a_mode_that_is_not_confirmed(trial: Workbench, version: int) -> None:
    trial.fresh(NOTHING, Mode.MONITOR)
    one = talk(version)
    assert trial.send(one.there("S")).action == PASS
    trial.d.set_mode(Mode.ENFORCE, 20)
    until = deadline(trial)
    assert [trial.send(one.there("S"), at).action for at in (until - 1, until, until + 1)] == [DROP, DROP, PASS]
    assert trial.rules() == {0: (2, 2)}
    trial.check()


@FAMILIES
def test_what_is_confirmed_stays(trial: Workbench, version: int) -> None:
    trial.fresh(FROM_A, Mode.ENFORCE)
    one = talk(version)
    trial.apply(NOTHING, 20)
    until = deadline(trial)
    trial.d.confirm()
    assert [trial.send(one.there("S"), at).action for at in (0, until, until + 1)] == [DROP, DROP, DROP]
    trial.check()


def test_stages_of_a_switch_that_was_killed(trial: Workbench) -> None:
    """Stores come in this order: what to go back to, until when, the epoch. Any prefix of them is the old state."""
    trial.fresh(FROM_A, Mode.ENFORCE)
    epoch = trial.revision << 32 | Mode.ENFORCE
    for fields in ({"previous": epoch}, {"previous": epoch, "confirm_until": 1}):
        trial.d.set_config(**fields)
        assert trial.send(Talk("tcp").there("S")).action == PASS
        assert trial.d.unconfirmed is None
    trial.d.set_mode(Mode.MONITOR)
    assert (trial.d.mode, trial.d.unconfirmed) == (Mode.MONITOR, None)
    trial.check()
