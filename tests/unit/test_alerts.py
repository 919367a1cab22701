"""Each alert, provoked and not, by promtool; dashboards and alerts ask only for what is told."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from schemas.metrics import BY_NAME
from tests.support.prometheus import ALERTS, DASHBOARDS, alerts, panels, promtool


class Case(NamedTuple):
    """A series (`values`, one each `step` minutes, in promtool's notation), and whether it fires after `minutes`.

    `beside`: other series and their values.
    """

    alert: str
    series: str
    values: str
    minutes: int
    fires: bool
    beside: tuple[tuple[str, str], ...] = ()
    step: int = 1


def counted(values: str, node: str = "n1") -> tuple[tuple[str, str], ...]:
    """A collector of that node, whose kernel counts packets of the rule `r`, and of another."""
    return (
        (f'ztlens_policy_info{{job="ztlens-collector",instance="h:2",node="{node}",revision="3"}}', "1x725"),
        ('ztlens_rule_packets_total{job="ztlens-collector",instance="h:2",rule="r",outcome="passed"}', values),
        ('ztlens_rule_packets_total{job="ztlens-collector",instance="h:2",rule="s",outcome="passed"}', "0+1x725"),
    )


NOT_SHOWN = {
    "ztlens_build_info", "ztlens_packets_total", "ztlens_flows_created_total", "ztlens_flows_ended_total",
    "ztlens_ring_bytes", "ztlens_ring_held_bytes", "ztlens_nats_retries_total", "ztlens_sink_received_total",
    "ztlens_sink_dropped_total",
}  # fmt: skip
"""For whoever looks closer."""
LOST = 'ztlens_lost_events_total{stage="ring",reason="lost"}'
GAPS = 'ztlens_lost_events_total{stage="store",reason="gap"}'
PAIRS = 'ztlens_denied_pairs_total{node="n1"}'
SILENT = 'ztlens_node_silent{node="n1"}'
IDLE = 'ztlens_rule_idle_seconds{job="ztlens-sink",instance="h:1",node="n1",rule="r"}'
DROPPED = 'ztlens_rule_packets_total{job="ztlens-collector",instance="h:2",rule="r",outcome="dropped"}'
COMMIT, LAG = "ztlens_commit_age_seconds", 'ztlens_stream_lag_messages{stream="VERDICTS"}'
SINK = 'up{job="ztlens-sink",instance="h:1"}'
CASES = (
    Case("ZtlensEventsLost", LOST, "0 0 7 7", 3, True),
    Case("ZtlensEventsLost", LOST, "9x10", 9, False),
    Case("ZtlensEventsLost", LOST, "9 9 0x10", 9, False),  # the collector was restarted
    Case("ZtlensEventsLost", 'ztlens_lost_events_total{stage="live",reason="capped"}', "0+9x5", 5, False),
    Case("ZtlensEventsLost", LOST, "0x20 _x40 5000x40", 61, True),  # the collector was away, and its ring ran over
    Case("ZtlensEventsLost", LOST, "0x20 _x40 5000x40", 65, True),
    Case("ZtlensEventsLost", LOST, "0x20 _x40 5000x40", 67, False),  # it was told
    Case("ZtlensEventsLost", LOST, "0x20 stale _x40 5000x40", 63, True),
    Case("ZtlensEventsLost", LOST, "9x20 _x40 9x40", 62, False),  # away, and nothing was lost
    Case("ZtlensEventsLost", LOST, "9x20 _x40 0x40", 62, False),  # away, and with a new ring
    Case("ZtlensEventsLost", LOST, "9x20 _x40 7x40", 62, True),  # a new ring, which ran over
    Case("ZtlensEventsLost", LOST, "9 9 0 9 9", 4, True),  # begun anew, and as many lost again
    Case("ZtlensEventsLost", GAPS, "_x20 300x80", 22, True),  # there before it was first asked
    Case("ZtlensEventsLost", GAPS, "_x20 300x80", 27, False),
    Case("ZtlensEventsLost", GAPS, "_x20 0x80", 22, False),
    Case("ZtlensNewDeniedPair", PAIRS, "0 0 1 1", 3, True),
    Case("ZtlensNewDeniedPair", PAIRS, "0 1 1x20", 20, False),
    Case("ZtlensNewDeniedPair", PAIRS, "_x20 7x80", 21, True),  # a node's first sample has them already
    Case("ZtlensNewDeniedPair", PAIRS, "_x20 7x80", 37, False),
    Case("ZtlensNewDeniedPair", PAIRS, "_x20 0x80", 21, False),
    Case("ZtlensNewDeniedPair", PAIRS, "7x20 0x9", 22, False),  # the sink was restarted
    Case("ZtlensNewDeniedPair", PAIRS, "1x20 0 1 1", 22, True),  # … and found another
    Case("ZtlensNewDeniedPair", PAIRS, "7x20 _x40 7x40", 62, False),
    Case("ZtlensNewDeniedPair", PAIRS, "7x20 _x40 8x40", 62, True),
    Case("ZtlensLedgerOutOfBalance", 'ztlens_ledger_balanced{node="n1"}', "1 0x6", 6, True),
    Case("ZtlensLedgerOutOfBalance", 'ztlens_ledger_balanced{node="n1"}', "0 0 0 1 0 0 0", 6, False),
    Case("ZtlensNodeSilent", SILENT, "0 1 1", 2, True),
    Case("ZtlensNodeSilent", SILENT, "0 1 0", 2, False),
    Case("ZtlensNodeSilent", SILENT, "1 1 stale _ 1 1", 3, True),  # the sink was restarted
    Case("ZtlensNodeSilent", SILENT, "1 1 stale _ 1 1", 4, True),
    Case("ZtlensNodeSilent", SILENT, "1 1 stale _x9", 8, False),  # the node is no longer told of
    Case("ZtlensStreamNearLimit", 'ztlens_stream_lag_ratio{stream="VERDICTS"}', "0.81 0.82", 1, True),
    Case("ZtlensStreamNearLimit", 'ztlens_stream_lag_ratio{stream="VERDICTS"}', "0.8 0.8", 1, False),
    Case("ZtlensSinkStuck", COMMIT, "0 60 120 180", 3, True, ((LAG, "5x9"),)),
    Case("ZtlensSinkStuck", COMMIT, "0 60 120 180", 3, False, ((LAG, "0x9"),)),
    Case("ZtlensSinkStuck", COMMIT, "0 60 120 0", 3, False, ((LAG, "5x9"),)),
    Case("ZtlensSinkStuck", COMMIT, "600+60x9", 3, False, ((LAG, "0 0 0 5 0"),)),  # the first for a long time
    Case("ZtlensFiguresStale", "ztlens_figures_age_seconds", "0+60x61", 61, True),
    Case("ZtlensFiguresStale", "ztlens_figures_age_seconds", "0+60x60", 60, False),
    Case("ZtlensRingHalfFull", "ztlens_ring_fill_ratio", "0.51 0.51", 1, True),
    Case("ZtlensRingHalfFull", "ztlens_ring_fill_ratio", "0.51 0.5", 1, False),
    Case("ZtlensRuleNeverHit", IDLE, "2592060+60x61", 61, True),
    Case("ZtlensRuleNeverHit", IDLE, "2592060+60x30 0+60x31", 61, False),
    Case("ZtlensRuleNeverHit", IDLE, "2592060+60x61", 61, True, counted("0x61")),
    Case("ZtlensRuleNeverHit", IDLE, "2592060+60x61", 61, False, counted("5x61")),  # nobody knows since when
    # 30 days, an hour at a time
    Case("ZtlensRuleNeverHit", IDLE, "2592060x725", 43_380, True, counted("5x725"), 60),
    Case("ZtlensRuleNeverHit", IDLE, "2592060x725", 43_380, False, counted("5+1x725"), 60),  # a flow of months
    Case("ZtlensRuleNeverHit", IDLE, "2592060x725", 43_380, False, (*counted("5x725"), (DROPPED, "0x9 7x715")), 60),
    Case("ZtlensRuleNeverHit", IDLE, "2592060x725", 43_380, False, counted("9x720 2x5"), 60),  # a new ring
    Case("ZtlensRuleNeverHit", IDLE, "2592060x725", 43_380, True, counted("5+1x725", "n2"), 60),  # another node's rule
    Case("ZtlensPolicyFileBroken", "ztlens_policy_file_broken", "0 1 1", 2, True),
    Case("ZtlensPolicyFileBroken", "ztlens_policy_file_broken", "1 0 1", 2, False),
    Case("ZtlensInterfaceNotWatched", 'ztlens_interface_watched{interface="eth0"}', "1 0 0", 2, True),
    Case("ZtlensInterfaceNotWatched", 'ztlens_interface_watched{interface="eth0"}', "1 1 1", 2, False),
    Case("ZtlensNatsAway", "ztlens_nats_connected", "1 0 0", 2, True),
    Case("ZtlensNatsAway", "ztlens_nats_connected", "0 1 0", 2, False),
    Case("ZtlensTargetDown", SINK, "1 0 0", 2, True),
    Case("ZtlensTargetDown", 'up{job="other",instance="h:1"}', "1 0 0", 2, False, ((SINK, "1x9"),)),
    Case("ZtlensTargetDown", 'up{job="ztlens-collector",instance="h:2"}', "1 0 0", 2, True, ((SINK, "1x9"),)),
    Case("ZtlensTargetDown", 'up{job="ztlens-collector",instance="h:2"}', "1 1 1", 2, True),  # nobody asks a sink
)


def test_every_alert_is_tried_both_ways() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES if case.fires == fires} == set(alerts())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.fires}-{case.values}")
def test_an_alert(case: Case, tmp_path: Path) -> None:
    asked = f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}})'
    document = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": f"{case.step}m",
        "tests": [{
            "interval": f"{case.step}m",
            "input_series": [
                {"series": name, "values": values} for name, values in ((case.series, case.values), *case.beside)
            ],
            "promql_expr_test": [{
                "expr": asked, "eval_time": f"{case.minutes}m",
                "exp_samples": [{"labels": "{}", "value": 1}] if case.fires else [],
            }],
        }],
    }  # fmt: skip
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_files() -> None:
    for done in (
        promtool("check", "rules", str(ALERTS)),
        promtool("check", "config", str(ALERTS.parent / "prometheus.yaml")),
    ):
        assert done.returncode == 0, done.stdout + done.stderr


def test_everything_asked_for_is_in_the_catalogue() -> None:
    for where, query in (*panels(), *alerts().items()):
        names = set(re.findall(r"\bztlens_\w+", query))
        assert {re.sub(r"_bucket$", "", name) for name in names} <= set(BY_NAME), where


def test_every_metric_is_shown_or_alerts() -> None:
    asked = " ".join(query for _, query in (*panels(), *alerts().items()))
    unseen = {name for name in BY_NAME if not re.search(rf"\b{name}(_bucket)?\b", asked)}
    assert unseen == NOT_SHOWN


@pytest.mark.parametrize("file", sorted(DASHBOARDS.glob("*.json")), ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["uid"] == file.stem
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in cells) < 24 and not cells & taken, panel["title"]
        taken |= cells
    known = {variable["name"] for variable in board["templating"]["list"]}
    asked = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for p in board["panels"] for target in p["targets"])))
    assert asked - {"__rate_interval"} <= known


def test_the_documents_tell_of_every_alert() -> None:
    text = (ALERTS.parents[2] / "docs/metrics.md").read_text()
    assert set(re.findall(r"^\| `(Ztlens\w+)` \|", text, re.M)) == set(alerts())


def test_names_follow_the_conventions() -> None:
    for metric in BY_NAME.values():
        assert metric.name.startswith("ztlens_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith(("_count", "_sum", "_bucket")), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert sorted(metric.buckets) == list(metric.buckets), metric.name
