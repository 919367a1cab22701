"""Two policies swapped under live frames on two CPUs: no packet is judged by a mixture of them.

What is asserted of every frame stands in tests/support/swaps.py. ZTLENS_TEST_SWAPS makes the run longer.
"""

import os

from tests.support.swaps import FLOWS, swap, watched

SWAPS = int(os.environ.get("ZTLENS_TEST_SWAPS", "60"))


def test_no_packet_is_judged_by_a_mixture(loader: str) -> None:
    with watched(loader) as (datapath, sources):
        swapped = swap(datapath, sources, SWAPS)
    assert swapped.revisions > SWAPS // 2, "traffic met most of the revisions"
    print(f"{SWAPS} swaps under {swapped.frames:,} frames ({swapped.rate:,.0f}/s) of {FLOWS} flows, "
          f"{swapped.revisions} revisions in events")  # fmt: skip
