"""Whatever the OpenAPI document allows, and what it does not: no answer is a 500, each is as the document says."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import checks
from schemathesis.specs.openapi import checks as of_documents

from sink import api
from sink.api import openapi, readers, shared
from sink.settings import SinkSettings
from sink.store import Commit, Store, memory_store, prepare, rollup
from tests.support import batches, served

pytestmark = pytest.mark.once
EXAMPLES = int(os.environ.get("ZTLENS_FUZZ_EXAMPLES", "12"))
"""Of each path and each way to make them."""
SEED = int(os.environ.get("ZTLENS_FUZZ_SEED", "1"))
CHECKS = [
    checks.not_a_server_error, of_documents.status_code_conformance, of_documents.content_type_conformance,
    of_documents.response_schema_conformance,
]  # fmt: skip
ENDLESS = "/api/v1/verdicts/live"
"""Its answers have no end: tests/unit/sink/test_api_live.py asks them."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    one = memory_store()
    given = batches.traffic(600, seed=5)
    one.append(Commit(batches=[prepare(batches.batch(given.rows))], records=[batches.policy_record()]))
    while rollup.step(one):
        pass
    yield one
    one.close()


@pytest.fixture(scope="module")
def app(store: Store) -> Iterator[Any]:
    async def status() -> dict[str, Any]:
        return served.TOLD

    made = api.Api(store, SinkSettings(Path("unused"), "", Path("unused"), query_timeout=30.0), status)
    with pytest.MonkeyPatch.context() as patch:
        for module in (readers, shared):  # who asks here seems to have left as soon as the question is sent
            patch.setattr(module, "LOOKS", 60.0)
        yield made.app
    made.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operation" in metafunc.fixturenames:
        given = [(method, path) for path, ways in openapi.document()["paths"].items() for method in ways]
        metafunc.parametrize("operation", given, ids=" ".join)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_no_answer_is_a_500_and_each_is_as_the_document_says(
    operation: tuple[str, str], mode: schemathesis.GenerationMode, app: Any
) -> None:
    method, path = operation
    if path == ENDLESS:
        return
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    asked = schema[path][method.upper()]

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(case=asked.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(timeout=120)  # seconds; else 10, and a machine may be busy
        case.validate_response(answer, checks=CHECKS)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:  # where anything may stand, nothing is wrong
        assert mode is schemathesis.GenerationMode.NEGATIVE
