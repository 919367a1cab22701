"""What a collector's start imports before the kernel side is being loaded, and before it is attached.

Packets pass unjudged until then, and each of these costs some 0.01 to 0.1 s.
"""

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "duckdb", "httpx", "msgspec", "nats", "numpy", "policy", "prometheus_client", "pyarrow", "pydantic",
         "rich", "ssl", "uvloop", "yaml"}  # fmt: skip
LOADING = "from ztlens.main import main; main(['collector', '--nats', 'h:1', '-i', 'none0']); import collector.first"
"""All that it takes, up to the interface that is not there (or the privilege), and then what loads."""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [(LOADING, set()), ("import collector.first, collector.kernel.opening", {"msgspec", "numpy"})],
    ids=["until it loads", "until it is attached"],
)
def test_nothing_that_takes_long_is_imported(code: str, heavy: set[str]) -> None:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert HEAVY & set(done.stdout.split()) == heavy
    assert "collector" in done.stdout.split()
