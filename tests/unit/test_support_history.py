"""The made-up history of the benchmarks: an audit of it finds what was put in."""

from sink.client import History
from sink.history.audit import Question, Text
from sink.store import Commit, memory_store, prepare
from tests.support import batches, history
from tests.support.rollups import roll_up


def test_an_audit_finds_the_fates_of_all_flows() -> None:
    (rows,) = history.RealTraffic(600.0).blocks(1, 20_000)
    store = memory_store()
    store.append(Commit(batches=[prepare(batches.batch(rows))], records=[history.record()]))
    roll_up(store)
    found = History.on_store(store).audit(Question(candidate=Text(history.policy())))
    lists = {name: found[name] for name in ("newly_denied", "newly_allowed")} | {"unchanged": [found["unchanged"]]}
    sums = {name: [sum(e[of] for e in those) for of in ("flows", "packets", "bytes")] for name, those in lists.items()}
    assert sums == {name: fate.tolist() for name, fate in history.fates(rows).items()}
    assert found["uncertain"] == []
    assert 0 < sums["newly_allowed"][0] < sums["newly_denied"][0] < sums["unchanged"][0] / 20
    store.close()
