"""Questions to a running sink over its socket, as the page asks them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx


@contextmanager
def asking(path: Path) -> Iterator[httpx.Client]:
    """A client of the sink on the socket `path`."""
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://sink/api/v1/", timeout=60) as http:
        yield http


def document(http: httpx.Client, path: str, query: dict[str, Any]) -> Any:
    """An answer."""
    answer = http.get(path, params=query)
    assert answer.status_code == 200, f"{path}: {answer.text[:200]}"
    return answer.json()
