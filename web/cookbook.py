"""The cookbook of docs/sql.md, for who would rather choose than type.

A clone has the document by a symbolic link in this directory, the wheel and the image as a file in its place.
"""

import re
from functools import cache
from pathlib import Path

from web.errors import WebError

DOCUMENT = Path(__file__).with_name("sql.md")
_QUERY = re.compile(r"((?:[^\n]+\n)+)\n<!-- query: [\w-]+ -->\n```sql\n(.*?)\n```", re.DOTALL)


@cache
def queries() -> dict[str, str]:
    """What it tells → SQL, in the order of the document. Raises WebError where that is not there."""
    try:
        text = DOCUMENT.read_text(encoding="utf-8")
    except OSError as error:
        raise WebError(f"{DOCUMENT}: the cookbook cannot be read: {error.strerror}", "install ztlens again") from error
    return {" ".join(title.split()).rstrip(":"): sql for title, sql in _QUERY.findall(text)}
