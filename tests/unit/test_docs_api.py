"""docs/api.md: its list of paths is the API's, and its examples give what they show."""

import json
import re
from collections.abc import AsyncIterator

import pytest

from schemas.codes import Decision, Reason, RuleId
from schemas.verdict import STRIDE
from sink.api.endpoints import ENDPOINTS
from sink.store import Commit, memory_store, prepare
from tests.support import batches, served
from tests.support.docs import ROOT
from tests.support.served import Asker
from web import passing

TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```http\n(\w+) (\S+)\n(.*?)^```\n+```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    store = memory_store()
    denied = {"decision": Decision.DENY, "reason": Reason.DEFAULT, "rule": RuleId.DEFAULT, "dst_identity": 0}
    rows = [
        batches.verdict(flow_id=1),
        batches.verdict(flow_id=2, time=batches.START + 40_000_000_000, dport=22, **denied),
        batches.verdict(flow_id=3, time=batches.START + 70_000_000_000, dport=22, **denied),
    ]
    given = [prepare(batches.batch(row, i * STRIDE)) for i, row in enumerate(rows)]
    store.append(Commit(batches=given, records=[batches.policy_record()]))
    async with served.asking(store) as made:
        yield made
    store.close()


def test_every_path_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+) (\S+)` \| (.*) \|$", TEXT, re.MULTILINE)
    assert listed == [(one.method, one.path, one.summary) for one in ENDPOINTS]


def test_what_passes_through_the_page() -> None:
    text = " ".join(TEXT.split())
    assert f"At most {passing.QUESTIONS} questions and {passing.STREAMS} live streams pass at once" in text
    assert f"one more question waits up to {passing.WAIT:g} s" in text


@pytest.mark.parametrize(("method", "url", "body", "shown"), EXAMPLES, ids=[url for _, url, *_ in EXAMPLES])
async def test_examples(asker: Asker, method: str, url: str, body: str, shown: str) -> None:
    answer = await asker.http.request(method, url, content=body or None)
    assert answer.json() == json.loads(shown)


def test_examples_are_found() -> None:
    assert len(EXAMPLES) == TEXT.count("```http")
