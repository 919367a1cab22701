"""The token is made once, private, and never half."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from web.errors import WebError
from web.token import token


def test_made_once_and_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = token(state)
    assert len(made) == 43 and token(state) == made
    assert (state / "web.token").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in state.iterdir()] == ["web.token"]


def test_several_at_once_have_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(token, [tmp_path] * 8))) == 1


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 50])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "web.token").write_bytes(content)
    with pytest.raises(WebError):
        token(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WebError, match="cannot be kept"):
        token(tmp_path / "file")
