"""In what order workers get the files of tests: the longest first, so that all of them are done at about the same time.

Those that look at a page keep a processor busy each, so what waits more than it works stands between them.
"""

import pytest

LONGEST = (
    "integration/test_web_policy", "e2e/test_kills", "e2e/test_page", "e2e/test_enforce", "integration/test_web",
    "integration/test_replay", "e2e/test_demo", "integration/test_sink_service", "integration/test_web_sql",
    "kernel/test_three_judges", "integration/test_cli_up", "e2e/test_interfaces", "e2e/test_bad_input",
    "kernel/test_kernel_datapath", "kernel/test_packets_property", "unit/sink/test_compaction", "unit/sink/test_export",
    "integration/test_cli_export", "e2e/test_metrics", "unit/sink/test_spans", "unit/sink/test_api_fuzz",
    "integration/test_escapes", "integration/test_metrics", "kernel/test_counting_events", "e2e/test_docs_guide",
    "e2e/test_clock", "e2e/test_nodes", "kernel/test_following", "kernel/test_counting_sweep", "e2e/test_top",
    "unit/policy/test_policy_hostile_files", "kernel/test_attachments", "kernel/test_datapath_lifecycle",
    "e2e/test_collector_real", "e2e/test_swaps", "integration/test_docs_quickstart", "unit/sink/test_golden",
    "unit/sink/test_suggest", "e2e/test_exact",
)  # fmt: skip
"""More than 15 s each."""
_PLACES = {f"tests/{name}.py": place for place, name in enumerate(LONGEST)}


def longest_first(items: list[pytest.Item]) -> None:
    """Sort by file; tests of a file, and files that are not LONGEST, stay in their order."""
    items.sort(key=lambda item: _PLACES.get(item.nodeid.partition("::")[0], len(LONGEST)))
