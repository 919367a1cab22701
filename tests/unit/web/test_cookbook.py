"""The cookbook is that of the document, to the last query."""

from pathlib import Path

import pytest

from tests.support.docs import ROOT
from web import cookbook
from web.cookbook import queries
from web.errors import WebError


def test_every_query_of_the_document() -> None:
    text = (ROOT / "docs/sql.md").read_text(encoding="utf-8")
    found = queries()
    assert len(found) == text.count("<!-- query: ") > 20
    assert all(f"```sql\n{sql}\n```" in text for sql in found.values())
    assert "Top denied pairs of the last day" in found
    bytes_a_minute = next(title for title in found if title.startswith("Bytes a minute."))
    assert bytes_a_minute.endswith("is what came in between") and "lag(bytes" in found[bytes_a_minute]


def test_an_installation_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookbook, "DOCUMENT", tmp_path / "sql.md")
    with pytest.raises(WebError, match=r"sql\.md: the cookbook cannot be read: No such file or directory") as error:
        queries.__wrapped__()
    assert error.value.hint == "install ztlens again"
