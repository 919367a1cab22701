"""Generated hostile files: each is taken with a right meaning, or refused with file, line, column and reason, within a
second of CPU time and 200 MB. tests/support/hostile_run.py judges them in a process of its own, which has the limits.

The normal run has 600 files and wide limits, for whatever machine it is on. The long one has the exact ones:

    ZTLENS_HOSTILE_FILES=10000 ZTLENS_HOSTILE_SEED=7 pytest tests/unit/policy/test_policy_hostile_files.py
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.hostile_policies import EITHER, REFUSED, TAKEN, hostile

FILES = int(os.environ.get("ZTLENS_HOSTILE_FILES", "600"))
SEED = int(os.environ.get("ZTLENS_HOSTILE_SEED", "1"))
SECONDS, MEGABYTES = (1, 200) if FILES >= 10_000 else (10, 400)
BATCH = 500


def judged(first: int, count: int) -> dict[str, object]:
    """What became of a batch; fails with the number of the first file that broke a promise."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile_run", *map(str, (SEED, first, count, SECONDS, MEGABYTES))],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, cwd=Path(__file__).parents[3], capture_output=True,
        text=True, timeout=30 + 10 * count, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(600 + FILES)
def test_every_file_is_taken_right_or_refused_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [judged(first, min(BATCH, FILES - first)) for first in range(0, FILES, BATCH)]
    fates: Counter[str] = sum((Counter(batch["fates"]) for batch in batches), Counter())
    with capsys.disabled():
        print(f"\nhostile policies: {FILES:,} files, seed {SEED}, {dict(fates)}, "
              f"{sum(batch['pairs'] for batch in batches):,} pairs agree with the naive reader")  # fmt: skip
        for what in ("seconds", "megabytes"):
            print(f"hostile policies: most {what}: {max(batch[what] for batch in batches)}")
    assert sum(batch["files"] for batch in batches) == sum(fates.values()) == FILES
    assert fates["taken"] > FILES // 10
    assert fates["refused"] > FILES // 3


def test_the_generator_is_deterministic_and_makes_all_kinds() -> None:
    files = [hostile(3, index) for index in range(400)]
    assert files[:20] == [hostile(3, index) for index in range(20)]
    assert {file.fate for file in files} == {TAKEN, REFUSED, EITHER}
    assert len({file.family for file in files}) > 40
    assert len({file.raw for file in files}) > 390
