"""Properties: the engine and the literal reader of tests/support/naive_policy.py say the same of everything."""

import random
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.support.naive_policy import NaivePolicy
from tests.support.policies import as_yaml, compiled, hosts, judge_all, packets, policies

# `print_blob`: a failure prints what reproduces it.
PROPERTY = settings(
    max_examples=120, deadline=None, print_blob=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip


@PROPERTY
@given(policy=policies(), host=hosts(), data=st.data())
def test_engine_agrees_with_naive_reader(policy: dict[str, Any], host: tuple[str, ...], data: st.DataObject) -> None:
    text = as_yaml(policy)
    note(text)
    tuples = data.draw(packets(policy, host))
    naive = NaivePolicy(text, host)
    for packet, found in zip(tuples, judge_all(compiled(text, *host), tuples), strict=True):
        assert found == naive.judge(packet), packet


@settings(PROPERTY, max_examples=40)
@given(policy=policies(), host=hosts(), seed=st.integers(0, 2**32), data=st.data())
def test_order_of_rules_never_matters(
    policy: dict[str, Any], host: tuple[str, ...], seed: int, data: st.DataObject
) -> None:
    tuples = data.draw(packets(policy, host))
    before = judge_all(compiled(as_yaml(policy), *host), tuples)
    random.Random(seed).shuffle(policy["rules"])
    for rule in policy["rules"]:
        for key in ("from", "to", "ports", "from_except", "to_except"):
            if isinstance(rule.get(key), list):
                random.Random(seed).shuffle(rule[key])
    assert judge_all(compiled(as_yaml(policy), *host), tuples) == before
