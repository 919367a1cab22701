"""What is written stays written."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's content safe on disk, or the names in a directory. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
