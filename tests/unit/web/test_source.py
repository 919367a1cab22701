"""What the page asks of the sink, and how it tells that there is no answer."""

from pathlib import Path

import httpx
import pytest

from web.errors import AwayError, RefusedError
from web.source import Source

BUSY = {"error": "4 questions are being answered already", "hint": "ask again in a moment", "exit": 3}


async def test_the_sink_says_how_long_a_question_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience of the page's is shorter than the sink's, whatever its settings: what it says is heard."""
    patience: list[dict[str, float | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        patience.append(request.extensions["timeout"])
        return httpx.Response(503, json=BUSY)

    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda **_: httpx.MockTransport(answer))
    source = Source(Path("unused"))
    for question in (source.ask("flows"), source.post("audit", {}), source.raw("sql", {})):
        with pytest.raises(RefusedError, match=r"^4 questions are being answered already$") as caught:
            await question
        assert (caught.value.hint, caught.value.status) == ("ask again in a moment", 503)
    assert [(given["read"], given["pool"]) for given in patience] == [(None, None)] * 3
    await source.close()


async def test_a_question_that_no_address_holds(tmp_path: Path) -> None:
    source = Source(tmp_path / "none")
    with pytest.raises(RefusedError, match=r"^The filters are longer than a question may be$") as caught:
        await source.ask("flows", {"where": "x" * 70_000})
    assert (caught.value.hint, caught.value.status) == ("Take some of them out, or ask under SQL.", 400)
    with pytest.raises(AwayError, match=r"^The sink does not answer$"):
        await source.ask("flows")
    await source.close()
