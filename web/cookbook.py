"""The cookbook of docs/sql.md, for who would rather choose than type."""

import re
from functools import cache
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "sql.md"
_QUERY = re.compile(r"((?:[^\n]+\n)+)\n<!-- query: [\w-]+ -->\n```sql\n(.*?)\n```", re.DOTALL)


@cache
def queries() -> dict[str, str]:
    """What it tells → SQL, in the order of the document; none where that is not there."""
    try:
        text = DOCUMENT.read_text(encoding="utf-8")
    except OSError:
        return {}
    return {" ".join(title.split()).rstrip(":"): sql for title, sql in _QUERY.findall(text)}
